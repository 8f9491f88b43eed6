"""Saves interrupted by a signal, a full disk or a dead process."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax.checkpoints import manager as checkpoint
from vit_jax.errors import RunError

ROOT = pathlib.Path(vit_jax.__file__).parent.parent


def restore(directory, host):
  """Restores `{'params': {'a': host}}` bit for bit; returns the meta."""
  abstract = jax.ShapeDtypeStruct(host.shape, host.dtype)
  checkpointer = checkpoint.Checkpointer(directory)
  state, meta = checkpointer.restore({'params': {'a': abstract}}, config={})
  checkpointer.close()
  assert state['params']['a'].tobytes() == host.tobytes()
  return meta


def names(directory):
  return sorted(p.name for p in directory.iterdir())


def run_python(code, directory):
  """Runs code in another process, in `directory`; absl logs at INFO."""
  prelude = (
    'import os, resource, signal\n'
    'import jax, numpy as np\n'
    'from absl import logging\n'
    'logging.set_verbosity(logging.INFO)\n'
    'from vit_jax.checkpoints import manager as checkpoint\n'
    'from vit_jax.errors import RunError\n'
    'checkpointer = checkpoint.Checkpointer(\n'
    "  'run/checkpoints', keep_latest=1)\n"
    'rng = np.random.default_rng(0)\n'
    'host = rng.integers(0, 2**32, (2**22,), dtype=np.uint32)\n'
    "state = {'params': {'a': jax.device_put(host)}}\n"
    'config = {}\n'
  )
  return subprocess.run(
    [sys.executable, '-c', prelude + code],
    cwd=directory,
    env=dict(os.environ, PYTHONPATH=str(ROOT), XLA_FLAGS=''),
    capture_output=True,
    text=True,
    timeout=120,
  )


def restore_large(directory):
  """Restores what `run_python` saves; returns the step."""
  rng = np.random.default_rng(0)
  host = rng.integers(0, 2**32, (2**22,), dtype=np.uint32)
  return restore(directory, host)['step']


def test_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
  # The kernel kills who writes beyond the limit, unless the signal is ignored,
  # as Python does: the file of the arrays is cut off there.
  done = run_python(
    'checkpointer.save(1, state, config=config, wait=True)\n'
    'signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n'
    'resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n'
    'hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))\n'
    'checkpointer.save(2, state, config=config, wait=True)\n',
    tmp_path,
  )
  assert done.returncode == -signal.SIGXFSZ, done.stderr
  assert done.stdout + done.stderr == ''
  directory = tmp_path / 'run' / 'checkpoints'  # Given as a relative path.
  assert names(directory) == ['1', '2.orbax-checkpoint-tmp']
  assert restore_large(directory) == 1
  assert names(directory) == ['1']


def test_failed_write_surfaces_wherever_it_is_next_looked_for(tmp_path):
  # No file may grow beyond 1 MB: it fails in the background, like a full disk,
  # and without special rights.
  done = run_python(
    'checkpointer.save(1, state, config=config, wait=True)\n'
    'hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n'
    'def limit(size):\n'
    '  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))\n'
    'def attempt(name, fn, *args, **kwargs):\n'
    '  message = ""\n'
    '  try:\n'
    '    fn(*args, **kwargs)\n'
    '  except RunError as e:\n'
    '    message = e\n'
    "  left = sorted(os.listdir('run/checkpoints'))\n"
    '  print(name, message, left, checkpointer.latest_good, sep="|")\n'
    'save = checkpointer.save\n'
    'limit(10**6)\n'
    'attempt("save", save, 2, state, config=config)\n'
    'attempt("wait", checkpointer.wait)\n'
    'attempt("save", save, 2, state, config=config)\n'
    'attempt("next save", save, 3, state, config=config)\n'
    'attempt("save and wait", save, 3, state, config=config, wait=True)\n'
    'limit(hard)\n'
    'attempt("good save", save, 4, state, config=config, wait=True)\n'
    'limit(10**6)\n'
    'save(5, state, config=config)\n'
    'attempt("close", checkpointer.close)\n',
    tmp_path,
  )
  assert (done.returncode, done.stderr) == (0, '')
  directory = tmp_path / 'run' / 'checkpoints'
  rows = [line.split('|') for line in done.stdout.splitlines()]
  # Writing fails in the background, so the first saves return.
  assert [row[0] for row in rows if not row[1]] == ['save', 'save', 'good save']
  steps = {'wait': 2, 'next save': 2, 'save and wait': 3, 'close': 5}
  failed = {row[0]: row[1:] for row in rows if row[1]}
  assert list(failed) == list(steps)
  for name, (message, left, latest_good) in failed.items():
    good = '4' if name == 'close' else '1'
    assert message.startswith(
      f'the checkpoint of step {steps[name]} could not be written to '
      f'{directory}: '
    ), message
    assert 'File too large' in message
    assert f'The checkpoint of step {good} is untouched' in message
    assert (left, latest_good) == (f"['{good}']", good)
  assert restore_large(directory) == 4


def test_a_failed_write_does_not_keep_the_threads(tmp_path, monkeypatch):
  checkpointer = checkpoint.Checkpointer(tmp_path)
  manager, closed = checkpointer._manager, []
  close = manager.close
  monkeypatch.setattr(manager, 'close', lambda: closed.append(close()))

  def fail():
    raise RunError('the disk is full')

  monkeypatch.setattr(checkpointer, 'wait', fail)
  with pytest.raises(RunError, match='the disk is full'):
    checkpointer.close()
  assert len(closed) == 1


def test_files_that_fail_together_give_one_message_and_leave_nothing(tmp_path):
  # With a limit of 10 bytes all files fail, with 300 the meta and the arrays.
  done = run_python(
    'checkpointer.save(1, state, config=config, wait=True)\n'
    'hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n'
    'for size in 3 * [10, 300]:\n'
    '  checkpointer = checkpoint.Checkpointer("run/checkpoints")\n'
    '  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))\n'
    '  try:\n'
    '    checkpointer.save(2, state, config=config, wait=True)\n'
    '  except RunError as e:\n'
    '    assert "The checkpoint of step 1 is untouched" in str(e)\n'
    '  else:\n'
    '    assert False, size\n'
    '  checkpointer.close()\n'
    '  resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n'
    '  assert os.listdir("run/checkpoints") == ["1"], size\n',
    tmp_path,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert restore_large(tmp_path / 'run' / 'checkpoints') == 1


def test_full_disk_ends_with_the_free_space_and_the_good_step(tmp_path):
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', str(tmp_path)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('mounting a small file system needs root')
  host = np.random.default_rng(0).random(10_000, np.float32)
  state = jax.device_put({'params': {'a': host}})
  try:
    checkpointer = checkpoint.Checkpointer(tmp_path)
    checkpointer.save(1, state, config={}, wait=True)
    (tmp_path / 'filler').write_bytes(b'x' * 150_000)
    with pytest.raises(RunError) as error:
      checkpointer.save(2, state, config={}, wait=True)
    message = str(error.value)
    assert message.startswith(
      f'the checkpoint of step 2 could not be written to {tmp_path}: the disk '
      'is full (0 MiB free). The checkpoint of step 1 is untouched: make room'
    )
    assert names(tmp_path) == ['1', 'filler']
    # The run may go on where there is room again.
    (tmp_path / 'filler').unlink()
    checkpointer.save(2, state, config={})
    checkpointer.close()
    assert restore(tmp_path, host)['step'] == 2
  finally:
    subprocess.run(['umount', str(tmp_path)], check=True)


def test_two_processes_write_one_checkpoint_that_one_process_reads(tmp_path):
  code = """
import glob, os, sys
import jax, numpy as np
rank, port = int(sys.argv[1]), sys.argv[2]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', 2, rank)
from vit_jax.checkpoints import manager as checkpoint
from vit_jax.parallel import mesh as mesh_lib, rules as rules_lib
mesh = mesh_lib.make_mesh(data=1, fsdp=-1)
host = {'params': {'a': np.arange(4096, dtype=np.float32).reshape(8, 512)}}
shardings = rules_lib.state_shardings(host, mesh, min_size=1)
state = jax.tree.map(
  lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]),
  host, shardings)
checkpointer = checkpoint.Checkpointer('run')
checkpointer.save(1, state, config={})
checkpointer.save(2, state, config={}, wait=True)
if rank == 0:  # Damage that only process 1 meets.
  file = max(glob.glob('run/2/state/ocdbt.process_1/d/*'), key=os.path.getsize)
  os.truncate(file, os.path.getsize(file) // 2)
jax.experimental.multihost_utils.sync_global_devices('harm')
abstract = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
found, meta = checkpointer.restore(abstract, config={})
a = found['params']['a']
assert all((s.data == host['params']['a'][s.index]).all()
           for s in a.addressable_shards)
assert not a.is_fully_addressable
checkpointer.save(2, found, config={})
checkpointer.close()
print(meta['step'], meta['processes'])
jax.distributed.shutdown()
"""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = str(s.getsockname()[1])
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code, str(rank), port],
      cwd=tmp_path,
      env=dict(
        os.environ,
        PYTHONPATH=str(ROOT),
        XLA_FLAGS='--xla_force_host_platform_device_count=2',
      ),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (out, err) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == '1 2'
  host = np.arange(4096, dtype=np.float32).reshape(8, 512)
  meta = restore(tmp_path / 'run', host)
  assert (meta['step'], meta['processes']) == (2, 2)
