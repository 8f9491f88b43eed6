"""libtpu is not loaded where there is no TPU, and is where there may be one."""

import importlib.util
import os
import subprocess
import sys

import pytest

from vit_jax.parallel import platforms

_HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None


@pytest.fixture
def root(tmp_path):
  """Returns the root of a machine in Google's cloud with a network card."""
  _add_pci(tmp_path, '0000:00:04.0', vendor='0x1ae0', kind='0x020000')
  (tmp_path / 'dev/vfio').mkdir(parents=True)
  (tmp_path / 'dev/vfio/vfio').write_text('')  # Of virtual machines in general.
  return tmp_path


@pytest.fixture
def libtpu(monkeypatch):
  """Makes it look as if libtpu were installed, and no plugin of jax."""
  monkeypatch.setattr(platforms.importlib.util, 'find_spec', _find_spec)
  monkeypatch.setattr(platforms, '_plugins', set)


def _find_spec(name, *args):
  return object() if name == 'libtpu' else None


def _add_pci(root, name, *, vendor, kind):
  folder = root / 'sys/bus/pci/devices' / name
  folder.mkdir(parents=True)
  (folder / 'vendor').write_text(f'{vendor}\n')
  (folder / 'class').write_text(f'{kind}\n')


def test_without_a_tpu_jax_gets_the_platforms(libtpu, root):
  # jax sets them; children inherit them.
  environ = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_LIBRARY_PATH': '/libtpu.so'}
  assert platforms.skip_absent_tpu(environ, root=str(root))
  assert environ['JAX_PLATFORMS'] == 'cpu'


@pytest.mark.parametrize(
  ('plugins', 'device', 'expected'),
  [
    ({'xla_cuda13'}, 'dev/nvidia0', 'cuda,cpu'),
    ({'xla_cuda12'}, 'dev/nvidiactl', 'cuda,cpu'),
    ({'xla_cuda13'}, None, 'cpu'),
    (set(), 'dev/nvidia0', 'cpu'),
    ({'xla_cuda13', 'other'}, 'dev/nvidia0', None),
    ({'xla_rocm7'}, None, None),
  ],
)
def test_gpus_and_other_plugins_are_still_found(
  libtpu, root, monkeypatch, plugins, device, expected
):
  monkeypatch.setattr(platforms, '_plugins', lambda: plugins)
  if device:
    (root / device).write_text('')
  environ = {}
  platforms.skip_absent_tpu(environ, root=str(root))
  assert environ.get('JAX_PLATFORMS') == expected


@pytest.mark.parametrize(
  'environ',
  [
    {'JAX_PLATFORMS': 'cuda'},
    {'JAX_PLATFORMS': ''},
    {'TPU_WORKER_HOSTNAMES': 'a,b'},
    {'JAX_FORCE_TPU_INIT': '1'},
  ],
)
def test_settings_by_user_or_cloud_come_first(libtpu, root, environ):
  before = dict(environ)
  assert not platforms.skip_absent_tpu(environ, root=str(root))
  assert environ == before


def test_a_machine_with_a_tpu_is_left_alone(libtpu, root):
  def is_skipped():
    return platforms.skip_absent_tpu({}, root=str(root))

  assert is_skipped()
  for path in ('dev/accel0', 'dev/vfio/0'):
    (root / path).write_text('')
    assert not is_skipped()
    (root / path).unlink()
  # An accelerator of Google, whatever generation it is.
  _add_pci(root, '0000:00:05.0', vendor='0x1ae0', kind='0x120000')
  assert not is_skipped()


def test_nothing_is_done_without_libtpu_or_after_jax(libtpu, root, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS')
  assert not platforms.skip_absent_tpu(root=str(root))  # jax is imported.
  monkeypatch.setattr(platforms.importlib.util, 'find_spec', lambda *_: None)
  assert not platforms.skip_absent_tpu({}, root=str(root))


@pytest.mark.skipif(not _HAS_LIBTPU, reason='libtpu is not installed')
def test_a_command_starts_in_silence():
  program = """
import sys
from vit_jax.commands import _cli
def show(argv):
  import jax
  print(jax.devices()[0].platform)
sys.exit(_cli.run(show, []))
"""
  environ = {
    key: value
    for key, value in os.environ.items()
    if key not in ('JAX_PLATFORMS', 'XLA_FLAGS', 'TPU_SKIP_MDS_QUERY')
  }
  if platforms._has_sign_of_tpu(environ, platforms.pathlib.Path('/')):
    pytest.skip('this machine has a TPU')
  done = subprocess.run(
    [sys.executable, '-c', program],
    env=environ,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.stdout.strip() in ('cpu', 'gpu')
  assert done.stderr == ''


@pytest.mark.parametrize(
  ('environ', 'plugins', 'device', 'expected'),
  [
    ({'JAX_PLATFORMS': 'cpu'}, {'xla_cuda13'}, 'dev/nvidia0', True),
    ({'JAX_PLATFORMS': 'cuda,cpu'}, set(), None, False),
    ({'JAX_PLATFORMS': 'tpu'}, set(), None, False),
    ({}, set(), None, True),
    ({'JAX_PLATFORMS': ''}, {'xla_cuda13'}, None, True),
    ({}, {'xla_cuda13'}, 'dev/nvidia0', False),
    ({}, {'xla_rocm7'}, None, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, set(), None, False),
    ({}, set(), 'dev/accel0', False),
  ],
)
def test_a_run_on_the_cpu_is_known_before_jax(
  root, monkeypatch, environ, plugins, device, expected
):
  monkeypatch.setattr(platforms, '_plugins', lambda: plugins)
  if device:
    (root / device).write_text('')
  assert platforms.runs_on_cpu(environ, root=str(root)) == expected
