"""Several real processes: they train as one, and end as one."""

import argparse
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.training import tiny_runs
from vit_jax.checkpoints import format as checkpoint_format, reader
from vit_jax.errors import UserError
from vit_jax.parallel import distributed
from vit_jax.training import train

_ROOT = pathlib.Path(__file__).parents[2]
_HEARTBEAT_SECONDS = 20

_KILLER = '''
"""The synthetic images; process 1 gets a signal once it has read some."""
import itertools, os
import jax
from vit_jax.data.sources import synthetic

_reads = itertools.count(1)

class Source(synthetic.Source):
  def __getitem__(self, index):
    if next(_reads) == int(os.environ.get('KILL_AFTER', -1)):
      if jax.process_index() == 1:
        os.kill(os.getpid(), int(os.environ['KILL_WITH']))
    return super().__getitem__(index)
'''


def _config():
  """A run of 12 tiny steps on 4 devices."""
  val = dict(name='classification', data=tiny_runs.TEST, ops='', every_steps=6)
  return tiny_runs.eventful(
    'mine.killer',
    # Linear in the gradient: Adam would turn its rounding into updates.
    optimizer=dict(name='sgd', learning_rate=0.1, momentum=0.9),
    evals=dict(val=val),
    mesh=dict(data=2, fsdp=2),
    sharding=dict(min_size=1, min_rows=1, max_unsplit=1),
    checkpoint=dict(every_steps=3, keep_latest=9),
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Holds the recipe and the source of the images."""
  folder = tmp_path_factory.mktemp('distributed')
  (folder / 'mine').mkdir()
  (folder / 'mine' / 'killer.py').write_text(_KILLER)
  (folder / 'recipe.py').write_text(
    'import ml_collections\n'
    f'def get_config():\n  return ml_collections.ConfigDict({_config()})\n'
  )
  return folder


def _launch(folder, workdir, processes, devices, **environ):
  """Returns the code, the output and when each process ended, in seconds."""
  launcher = subprocess.Popen(
    [sys.executable, _ROOT / 'scripts' / 'launch_local.py']
    + [f'--processes={processes}', f'--devices={devices}']
    + [f'--heartbeat_seconds={_HEARTBEAT_SECONDS}', '--']
    + [f'--config={folder}/recipe.py', f'--workdir={folder}/{workdir}'],
    env=os.environ | {'PYTHONPATH': f'{_ROOT}:{folder}'} | environ,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  lines, ended = [], {}
  try:
    for line in launcher.stdout:
      lines.append(line)
      match = re.match(r'\[(\d)\] ended with code (-?\d+)', line)
      if match:
        ended[int(match[1])] = (int(match[2]), time.monotonic())
    return launcher.wait(), ''.join(lines), ended
  finally:
    launcher.terminate()


def _train(folder, workdir, monkeypatch):
  """Trains in this process alone, on as many devices."""
  monkeypatch.syspath_prepend(folder)
  config = _config()
  config['mesh']['devices'] = jax.devices()[:4]
  train.train(folder / workdir, **config)


def _rows(folder, workdir):
  return tiny_runs.rows(folder / workdir, timing=False)


def _state(folder, workdir, step):
  directory = checkpoint_format.absolute(folder / workdir / 'checkpoints')
  meta = checkpoint_format.read_meta(directory, step)
  leaves = {
    name: jax.ShapeDtypeStruct(tuple(leaf['shape']), np.dtype(leaf['dtype']))
    for name, leaf in meta['leaves'].items()
  }
  return reader.read_state(directory, meta, leaves)


def _assert_close(rows, others):
  assert [row['step'] for row in rows] == [row['step'] for row in others]
  for row, other in zip(rows, others, strict=True):
    assert row.keys() == other.keys()
    for key, value in row.items():
      assert value == pytest.approx(other[key], rel=1e-6, abs=1e-6), key


@pytest.fixture(scope='module')
def whole(folder):
  """The rows and the state of an undisturbed run of two processes."""
  code, output, _ = _launch(folder, 'whole', 2, 2)
  assert code == 0, output
  return _rows(folder, 'whole'), _state(folder, 'whole', 12), output


def test_two_processes_write_the_files_of_one_process(
  folder, whole, monkeypatch
):
  rows, state, output = whole
  assert [row['step'] for row in rows] == list(range(1, 13))
  assert [row['val/num_examples'] for row in rows if 'val/top1' in row] == [
    21,
    21,
  ]
  assert output.count('starting from scratch') == 1
  _train(folder, 'alone', monkeypatch)
  _assert_close(rows, _rows(folder, 'alone'))
  for name, leaf in _state(folder, 'alone', 12).items():
    np.testing.assert_allclose(leaf, state[name], atol=1e-6, err_msg=name)


def test_a_killed_process_ends_the_others_and_the_run_continues(
  folder, whole, monkeypatch, capsys
):
  rows, state, _ = whole
  code, output, ended = _launch(
    folder, 'killed', 2, 2, KILL_AFTER='80', KILL_WITH=str(int(signal.SIGKILL))
  )
  assert ended[1][0] == -signal.SIGKILL, output
  assert code == 128 + signal.SIGKILL
  # The other one notices by the broken connection or the missing heartbeat.
  assert ended[0][0] not in (0, 42)
  assert ended[0][1] - ended[1][1] < _HEARTBEAT_SECONDS + 5
  assert re.search('0 of 2 cannot go on|another task died', output)
  steps = [row['step'] for row in _rows(folder, 'killed')]
  assert 3 <= len(steps) < 12
  shutil.copytree(folder / 'killed', folder / 'one')

  # The same number of processes: the same bits.
  code, output, _ = _launch(folder, 'killed', 2, 2)
  assert code == 0, output
  assert 'continuing from step' in output
  assert _rows(folder, 'killed') == rows
  for name, leaf in _state(folder, 'killed', 12).items():
    assert leaf.tobytes() == state[name].tobytes(), name

  # Another number: the same batches, up to rounding in their sums.
  _train(folder, 'one', monkeypatch)
  assert 'continuing from step' in capsys.readouterr().out
  _assert_close(_rows(folder, 'one'), rows)
  for name, leaf in _state(folder, 'one', 12).items():
    np.testing.assert_allclose(leaf, state[name], atol=1e-6, err_msg=name)


def test_sigterm_to_one_process_saves_the_same_step_in_all(folder):
  code, output, ended = _launch(
    folder,
    'preempted',
    2,
    2,
    KILL_AFTER='64',
    KILL_WITH=str(int(signal.SIGTERM)),
  )
  assert code == 42, output
  assert {ended[0][0], ended[1][0]} == {42}
  step = int(re.search(r'saved step (\d+) and stopped', output)[1])
  assert 0 < step < 12
  state = _state(folder, 'preempted', step)
  assert state['step'] == step
  steps = [row['step'] for row in _rows(folder, 'preempted')]
  assert steps == list(range(1, step + 1))


_ROWS = '''
"""Each device holds the rows of the global batch that the mesh gives it."""
import sys
from unittest import mock
import jax, numpy as np
jax.config.update('jax_num_cpu_devices', 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.data import pipeline

devices = jax.devices()
data = dict(name='synthetic', split='train', num_examples=21, image_size=8)
args = dict(data=data, ops='', batch_size=8)
def alone(make, **args):
  with (
    mock.patch.object(jax, 'process_index', lambda: 0),
    mock.patch.object(jax, 'process_count', lambda: 1),
  ):
    return make(**args)

num_rows = []
for sizes, order in (
  (dict(data=4), [0, 1, 2, 3]),
  (dict(data=4), [2, 0, 3, 1]),
  (dict(data=1, fsdp=4), [3, 2, 1, 0]),
  (dict(data=2, tensor=2), [0, 2, 1, 3]),
  (dict(data=1, tensor=4), [0, 1, 2, 3]),
  (dict(slices=2), [0, 1, 2, 3]),
):
  mesh = mesh_lib.make_mesh(**sizes, devices=[devices[i] for i in order])
  spread = mesh_lib.batch_sharding(mesh)
  ours = pipeline.TrainInput(**args, seed=0, sharding=spread).batches(5)
  want = alone(pipeline.TrainInput, **args, seed=0).batches(5)
  pairs = [(next(ours), next(want))]
  ours = pipeline.EvalInput(**args, sharding=spread)
  pairs += zip(ours, alone(pipeline.EvalInput, **args), strict=True)
  assert len(pairs) == 4
  for batch, whole in pairs:
    num_rows.append(len(batch['label']))
    for name, array in pipeline.to_global(batch, spread).items():
      assert array.shape == whole[name].shape
      for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[name][shard.index])
print(num_rows[::4])
'''


def test_every_process_reads_the_rows_of_its_own_devices():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    address = f'localhost:{s.getsockname()[1]}'
  environ = os.environ | {'PYTHONPATH': str(_ROOT), 'NPROC': '16'}
  del environ['XLA_FLAGS']
  workers = [
    subprocess.Popen(
      [sys.executable, '-c', _ROWS, address, str(i)],
      env=environ,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    for worker in workers:
      out, err = worker.communicate(timeout=120)
      assert worker.returncode == 0, err
      # Where tensor spans the processes, both read the same rows.
      assert out.splitlines()[-1] == '[4, 4, 4, 8, 8, 4]'
  finally:
    for worker in workers:
      worker.kill()


_NO_FLAGS = dict(coordinator=None, num_processes=None, process_id=None)
_SLURM = {'SLURM_NTASKS': '4', 'SLURM_PROCID': '3'}
_MPI = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'}
_TPU = {'TPU_ML_PLATFORM': 'JAX'}
_GKE = _TPU | {'TPU_WORKER_HOSTNAMES': 'a,b'}


@pytest.mark.parametrize(
  'flags, environ, want',
  [
    ({}, {}, None),
    ({}, _SLURM, ('SLURM', {})),
    ({}, {'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, None),
    # Inside an allocation, but not started by srun.
    ({}, {'SLURM_NTASKS': '4'}, None),
    ({}, _MPI, ('Open MPI', {})),
    ({}, _TPU, ('TPU metadata', {})),
    ({}, _GKE, ('GKE', {})),
    ({}, _TPU | {'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    (
      {},
      _TPU | {'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'},
      ('GKE', {}),
    ),
    (
      {},
      {'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '0'},
      ('Kubernetes', {}),
    ),
    ({}, {'KUBERNETES_SERVICE_HOST': 'x'}, None),
    (dict(num_processes=1), _GKE, None),
    # Flags win; what they leave out comes from the launcher.
    (
      dict(coordinator='h:1'),
      _SLURM,
      ('flags', dict(coordinator='h:1', num_processes=4, process_id=3)),
    ),
    (
      dict(num_processes=2, process_id=1),
      {'JAX_COORDINATOR_ADDRESS': 'h:2'},
      ('flags', dict(coordinator='h:2', num_processes=2, process_id=1)),
    ),
  ],
)
def test_the_environment_says_who_the_processes_are(flags, environ, want):
  assert distributed.find(_NO_FLAGS | flags, environ) == want


def test_an_unused_tpu_connects_nothing():
  assert distributed.find(_NO_FLAGS, _TPU, platforms='cpu') is None


@pytest.mark.parametrize(
  'flags, message',
  [
    (dict(coordinator='h:1'), '--num_processes and --process_id too'),
    (dict(num_processes=4), '--coordinator and --process_id too'),
    (
      dict(coordinator='h:1', num_processes=4, process_id=4),
      'process_id=4: expected 0 to 3',
    ),
  ],
)
def test_conflicting_flags_are_named(flags, message):
  with pytest.raises(UserError, match=message):
    distributed.find(_NO_FLAGS | flags, {})


def test_no_way_to_the_others_is_a_message(monkeypatch):
  def fail(**_):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
  monkeypatch.setenv('OMPI_COMM_WORLD_RANK', '0')
  args = argparse.Namespace(**_NO_FLAGS, heartbeat_seconds=100)
  with pytest.raises(UserError, match=r'Open MPI.*Give --coordinator'):
    distributed.initialize(args)
