import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import vit_jax
from vit_jax import checkpoint, checkpoint_format, sharding, trees
from vit_jax.errors import RunError, UserError
from vit_jax.train_state import TrainState

CONFIG = {
  'model': {'name': 'vit', 'variant': 'B/16', 'patch': (4, 4)},
  'optimizer': {'learning_rate': 1e-3},
}


def host_state(step=1, optimizer=None):
  """A TrainState of numpy arrays that depend on the step."""
  rng = np.random.default_rng(step)
  params = {
    'dense': {
      # Random bits, which are stored as they are for want of redundancy.
      'kernel': rng.integers(0, 2**32, (64, 40), np.uint32).view(np.float32),
      'bias': rng.normal(size=8).astype(jnp.bfloat16),
    }
  }
  optimizer = optimizer or optax.adam(1e-3, mu_dtype=jnp.bfloat16)
  return TrainState(
    step=np.int32(step),
    params=params,
    opt_state=jax.tree.map(np.asarray, optimizer.init(params)),
  )


def place(state, mesh):
  return jax.device_put(
    state, sharding.state_shardings(state, mesh, min_size=1)
  )


def host_on_device(step):
  return place(host_state(step), sharding.make_mesh(data=1, fsdp=8))


def abstract(state, mesh=None):
  mesh = mesh or sharding.make_mesh(data=1, fsdp=8)
  shardings = sharding.state_shardings(state, mesh, min_size=1)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )


def save(directory, *steps, metrics=None, **kwargs):
  checkpointer = checkpoint.Checkpointer(directory, **kwargs)
  for step in steps:
    checkpointer.save(
      step,
      host_on_device(step),
      config=CONFIG,
      metrics=(metrics or {}).get(step, {}),
    )
  checkpointer.close()


def restore(directory, config=CONFIG, state=None, **kwargs):
  """Returns `(state, meta, log lines)` of a new Checkpointer, or None."""
  lines = []
  checkpointer = checkpoint.Checkpointer(
    directory, on_log=lines.append, **kwargs
  )
  wanted = abstract(host_state() if state is None else state)
  found = checkpointer.restore(wanted, config=config)
  checkpointer.close()
  return found and (*found, lines)


def assert_same_bits(found, want):
  assert jax.tree.structure(found) == jax.tree.structure(want)
  want = trees.flatten(want)
  for name, x in trees.flatten(jax.device_get(found)).items():
    assert x.dtype == want[name].dtype, name
    assert x.tobytes() == want[name].tobytes(), name


def listing(directory):
  """`{file: bytes}` of everything below a directory."""
  files = [p for p in pathlib.Path(directory).rglob('*') if p.is_file()]
  return {str(p): p.read_bytes() for p in files}


def names(directory):
  return sorted(p.name for p in pathlib.Path(directory).iterdir())


MESHES = {
  '8 x 1': dict(data=8),
  '2 x 4': dict(data=2, fsdp=4),
  '1 x 8': dict(data=1, fsdp=8),
  'one device': dict(),
}


@pytest.mark.parametrize('name', MESHES)
def test_every_leaf_comes_back_bit_for_bit_on_another_mesh(name, tmp_path):
  def mesh_of(name):
    devices = jax.devices()[:1] if name == 'one device' else None
    return sharding.make_mesh(**MESHES[name], devices=devices)

  other = {'8 x 1': '2 x 4', '1 x 8': 'one device'}.get(name, '8 x 1')
  want = host_state(5)
  assert want.ema_params is None
  assert want.extra == want.frozen == {}
  state = place(want, mesh_of(name))
  checkpointer = checkpoint.Checkpointer(tmp_path)
  wanted = abstract(want, mesh_of(other))
  with jax.transfer_guard('disallow'):
    checkpointer.save(5, state, config=CONFIG)
    found, meta = checkpointer.restore(wanted, config=CONFIG)
  assert_same_bits(found, want)
  for x, s in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert x.sharding == s.sharding
  assert (meta['step'], meta['data_position']) == (5, 5)
  assert meta['config'] == checkpoint_format.as_json(CONFIG)
  assert meta['versions']['jax'] == jax.__version__
  checkpointer.close()


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
  mesh = sharding.make_mesh()
  want = {'params': {'a': np.random.default_rng(0).random((8, 2**19))}}
  want = jax.tree.map(np.float32, want)
  state = place(want, mesh)
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  checkpointer = checkpoint.Checkpointer(tmp_path)
  checkpointer.save(1, state, config=CONFIG)
  jax.block_until_ready(step(step(state)))
  assert state['params']['a'].is_deleted()
  found, _ = checkpointer.restore(abstract(want, mesh), config=CONFIG)
  assert_same_bits(found, want)
  checkpointer.close()


def data_file(directory, step):
  """The file that holds the raw bytes of the kernel, and where it does."""
  raw = host_state(step).params['dense']['kernel'][:8].tobytes()
  for name, content in listing(directory / str(step)).items():
    if raw in content:
      return pathlib.Path(name), content.index(raw)
  raise AssertionError('the kernel is compressed; no place to flip a bit')


def flip(path, offset, bit=4):
  content = bytearray(path.read_bytes())
  content[offset] ^= 1 << bit
  path.write_bytes(bytes(content))


def flip_kernel(directory):
  path, offset = data_file(directory, 2)
  flip(path, offset + 100)


def flip_config(directory):
  path = directory / '2' / 'meta' / 'metadata'
  flip(path, path.read_bytes().index(b'B/16'), bit=0)


def truncate_data(directory):
  path, offset = data_file(directory, 2)
  os.truncate(path, offset + 100)


def remove_data(directory):
  data_file(directory, 2)[0].unlink()


def empty(directory):
  for path in sorted((directory / '2').rglob('*'), reverse=True):
    path.unlink() if path.is_file() else path.rmdir()


DAMAGES = {
  'a flipped bit of an array': (
    flip_kernel,
    'the data of params/dense/kernel does not match its fingerprint',
  ),
  'a flipped bit of the config': (flip_config, 'does not match its checksum'),
  'a truncated file': (truncate_data, 'ValueError: '),
  'a missing file': (remove_data, 'ValueError: '),
  'a missing index': (
    lambda d: (d / '2' / 'state' / 'manifest.ocdbt').unlink(),
    'ValueError: NOT_FOUND',
  ),
  'missing meta': (
    lambda d: (d / '2' / 'meta' / 'metadata').unlink(),
    'is not readable (FileNotFoundError',
  ),
  'an empty folder': (empty, 'its folder is empty'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_named_and_the_newest_good_checkpoint_used(damage, tmp_path):
  harm, message = DAMAGES[damage]
  save(tmp_path, 1, 2)
  harm(tmp_path)
  lines = []
  checkpointer = checkpoint.Checkpointer(
    tmp_path, keep_best='val/top1', on_log=lines.append
  )
  wanted = abstract(host_state())
  state, meta = checkpointer.restore(wanted, config=CONFIG)
  assert_same_bits(state, host_state(1))
  assert meta['step'] == checkpointer.latest_good == 1
  assert lines[0].startswith(f'checkpoint {tmp_path}/2 is damaged: ')
  assert message in lines[0]
  assert lines[1:] == [f'moved the damaged checkpoint to {tmp_path}/2.corrupt']
  # The run reaches step 2 again and can save it.
  checkpointer.save(2, host_on_device(2), config=CONFIG)
  checkpointer.close()
  state, meta, lines = restore(tmp_path)
  assert (meta['step'], lines) == (2, [])
  assert_same_bits(state, host_state(2))
  assert names(tmp_path) == ['1', '2', '2.corrupt']
  if damage == 'an empty folder':
    empty(tmp_path)
    restore(tmp_path)
    assert names(tmp_path) == ['1', '2.corrupt', '2.corrupt-2']


def test_no_good_checkpoint_ends_the_run_and_changes_nothing(tmp_path):
  save(tmp_path, 1, 2)
  flip_kernel(tmp_path)
  (tmp_path / '1' / 'meta' / 'metadata').unlink()
  before = listing(tmp_path)
  with pytest.raises(RunError, match=r'is good \(steps 2, 1; .*To start from'):
    restore(tmp_path)
  assert listing(tmp_path) == before


def test_nothing_but_empty_folders_and_foreign_files_is_a_fresh_start(tmp_path):
  (tmp_path / '9').mkdir()
  (tmp_path / 'plots').mkdir()
  (tmp_path / '01').mkdir()
  (tmp_path / '8').write_text('a note')
  (tmp_path / '7.orbax-checkpoint-tmp').mkdir()
  assert restore(tmp_path) is None
  assert names(tmp_path) == ['01', '8', '9.corrupt', 'plots']
  assert restore(tmp_path / 'new') is None


def test_lack_of_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
  save(tmp_path, 1, 2)
  before = listing(tmp_path)

  def fail(*args, **kwargs):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

  checkpointer = checkpoint.Checkpointer(tmp_path)
  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', fail)
  with pytest.raises(RunError, match=r'2, which may well be good.*of memory'):
    checkpointer.restore(abstract(host_state()), config=CONFIG)
  checkpointer.close()
  assert listing(tmp_path) == before


def test_another_model_is_an_error_that_shows_the_differences(tmp_path):
  save(tmp_path, 1, 2)
  flip_config(tmp_path)  # A damaged newer checkpoint stays where it is, too.
  before = listing(tmp_path)
  config = dict(
    CONFIG, model={'name': 'vit', 'variant': 'S/16', 'num_registers': 4}
  )
  state = host_state()
  params = {'dense': {'bias': state.params['dense']['bias'][:4]}, 'new': {}}
  params['new']['scale'] = np.zeros(3, np.float32)
  with pytest.raises(UserError) as error:
    restore(tmp_path, config, state.replace(params=params))
  lines = [line.strip() for line in str(error.value).splitlines()]
  assert lines == [
    f'the checkpoint of step 1 in {tmp_path} is not of the model and optimizer '
    'of this config:',
    "model.variant: 'B/16' in the checkpoint, 'S/16' in the config",
    'model.patch: [4, 4] in the checkpoint, not set in the config',
    'model.num_registers: not set in the checkpoint, 4 in the config',
    '- params/new/scale float32[3]',
    '+ params/dense/kernel float32[64, 40]',
    '! params/dense/bias is bfloat16[8], the config means bfloat16[4]',
    'Nothing was changed. Put the config back as it was, or use another '
    'workdir',
  ]
  assert listing(tmp_path) == before


def test_another_optimizer_is_an_error_that_shows_the_leaves(tmp_path):
  save(tmp_path, 1)
  with pytest.raises(UserError, match=r'\+ opt_state/0/nu/dense/kernel') as e:
    restore(tmp_path, state=host_state(optimizer=optax.sgd(1e-3, 0.9)))
  assert '- opt_state/0/trace/dense/kernel float32[64, 40]' in str(e.value)
  # A first moment of another dtype would be cast in silence.
  with pytest.raises(UserError, match=r'mu/dense/kernel is bfloat16\[64, 40\]'):
    restore(tmp_path, state=host_state(optimizer=optax.adam(1e-3)))


def test_other_settings_may_change_and_are_told(tmp_path):
  save(tmp_path, 1)
  config = {
    'model': dict(CONFIG['model'], remat='full'),
    'optimizer': {'learning_rate': 5e-4},
  }
  _, _, lines = restore(tmp_path, config)
  assert lines == [
    'changed since the checkpoint of step 1: model.remat: not set in the '
    "checkpoint, 'full' in the config",
    'changed since the checkpoint of step 1: optimizer.learning_rate: 0.001 in '
    'the checkpoint, 0.0005 in the config',
  ]
  assert restore(tmp_path)[2] == []


def test_the_latest_the_best_and_every_nth_checkpoint_are_kept(tmp_path):
  top1 = {1: 0.5, 2: 0.9, 3: float('nan'), 4: 0.1, 5: 0.2, 6: 0.3, 7: 0.9}
  metrics = {step: {'val/top1': value} for step, value in top1.items()}
  metrics[3]['val/loss'] = 1.0
  keep = dict(keep_latest=1, keep_every_steps=4)
  save(tmp_path / 'a', *range(1, 7), metrics=metrics, **keep)
  assert names(tmp_path / 'a') == ['4', '6']
  best = dict(keep, keep_best='val/top1')
  save(tmp_path / 'b', *range(1, 4), metrics=metrics, **best)
  assert names(tmp_path / 'b') == ['2', '3']
  # A restarted run remembers, and the newer of two equals is the best.
  save(tmp_path / 'b', 4, 5, 6, metrics=metrics, **best)
  assert names(tmp_path / 'b') == ['2', '4', '6']
  save(tmp_path / 'b', 7, metrics=metrics, **best)
  assert names(tmp_path / 'b') == ['4', '7']
  save(
    tmp_path / 'c', *range(3, 7), metrics=metrics, keep_best_mode='min', **best
  )
  assert names(tmp_path / 'c') == ['4', '6']


def test_a_saved_step_is_not_written_again(tmp_path):
  save(tmp_path, 1)
  before = listing(tmp_path)
  save(tmp_path, 1, metrics={1: {'val/top1': 0.5}})
  assert listing(tmp_path) == before


def test_latest_good_is_the_last_step_that_is_on_the_disk(tmp_path):
  checkpointer = checkpoint.Checkpointer(tmp_path)
  assert checkpointer.latest_good is None
  state = place(host_state(), sharding.make_mesh())
  checkpointer.save(1, state, config=CONFIG, wait=True)
  assert checkpointer.latest_good == 1
  checkpointer.save(2, state, config=CONFIG)
  assert checkpointer.latest_good in (1, 2)
  checkpointer.wait()
  assert checkpointer.latest_good == 2
  checkpointer.close()
  again = checkpoint.Checkpointer(tmp_path)
  assert again.latest_good is None  # Not verified yet.
  again.restore(abstract(host_state()), config=CONFIG)
  assert again.latest_good == 2
  again.close()


def test_directory_that_cannot_be_written_says_so(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    UserError, match=f'write checkpoints to {tmp_path}/file/a'
  ):
    checkpoint.Checkpointer(tmp_path / 'file' / 'a')


def test_arguments_out_of_range_are_all_named(tmp_path):
  with pytest.raises(UserError) as error:
    checkpoint.Checkpointer(
      tmp_path, keep_latest=0, keep_every_steps=0, keep_best_mode='high'
    )
  assert str(error.value) == (
    'checkpoint: keep_latest=0: expected 1 or more; keep_every_steps=0: '
    "expected 1 or more; keep_best_mode='high': expected 'max', 'min'"
  )


def test_parameters_alone_are_loaded_without_the_optimizer(tmp_path):
  mesh = sharding.make_mesh(data=1, fsdp=8)
  average = jax.tree.map(lambda x: x[::-1].copy(), host_state(2).params)
  checkpointer = checkpoint.Checkpointer(tmp_path)
  for step in (1, 2):
    state = host_state(step).replace(ema_params=average)
    checkpointer.save(step, place(state, mesh), config=CONFIG)
  checkpointer.close()
  params, meta = checkpoint_format.load_params(tmp_path)
  assert_same_bits(params, host_state(2).params)
  assert {type(x) for x in jax.tree.leaves(params)} == {np.ndarray}
  assert meta['config']['model']['variant'] == 'B/16'
  params, meta = checkpoint_format.load_params(tmp_path, 1)
  assert_same_bits(params, host_state(1).params)
  params, _ = checkpoint_format.load_params(tmp_path, ema=True)
  assert_same_bits(params, average)
  params, _ = checkpoint_format.load_params(
    tmp_path,
    shardings=lambda p: sharding.state_shardings(
      {'params': p}, mesh, min_size=1
    )['params'],
  )
  assert_same_bits(params, host_state(2).params)
  kernel = params['dense']['kernel']
  assert kernel.addressable_shards[0].data.shape == (8, 40)
  # Damage to what is not read does not matter; damage to the rest does.
  lines = []
  flip_kernel(tmp_path)
  params, meta = checkpoint_format.load_params(tmp_path, on_log=lines.append)
  assert (meta['step'], len(lines)) == (1, 1)
  with pytest.raises(UserError, match='no good checkpoint'):
    checkpoint_format.load_params(tmp_path, 2, on_log=lines.append)
  assert names(tmp_path) == ['1', '2']


def test_loading_what_is_not_there_says_what_is(tmp_path):
  save(tmp_path, 1)
  with pytest.raises(UserError, match=f'of step 3 in {tmp_path}; it has: 1'):
    checkpoint_format.load_params(tmp_path, 3)
  with pytest.raises(UserError, match='it has: none'):
    checkpoint_format.load_params(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match='1 holds no ema_params: the run kept no'):
    checkpoint_format.load_params(tmp_path, ema=True)


def run_python(code, directory):
  """Runs code in another process, in `directory`; absl logs at INFO."""
  root = pathlib.Path(vit_jax.__file__).parent.parent
  prelude = (
    'import os, resource, signal\n'
    'import jax, numpy as np\n'
    'from absl import logging\n'
    'logging.set_verbosity(logging.INFO)\n'
    'from vit_jax import checkpoint\n'
    'from vit_jax.errors import RunError\n'
    "checkpointer = checkpoint.Checkpointer('run/checkpoints')\n"
    'rng = np.random.default_rng(0)\n'
    'host = rng.integers(0, 2**32, (2**22,), dtype=np.uint32)\n'
    "state = {'params': {'a': jax.device_put(host)}}\n"
    'config = {}\n'
  )
  return subprocess.run(
    [sys.executable, '-c', prelude + code],
    cwd=directory,
    env=dict(os.environ, PYTHONPATH=str(root), XLA_FLAGS=''),
    capture_output=True,
    text=True,
    timeout=120,
  )


def restore_large(directory):
  """Restores what `run_python` saves; returns the step."""
  host = np.random.default_rng(0).integers(0, 2**32, (2**22,), dtype=np.uint32)
  state, meta, _ = restore(directory, {}, {'params': {'a': host}})
  assert_same_bits(state, {'params': {'a': host}})
  return meta['step']


def test_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
  done = run_python(
    'checkpointer.save(1, state, config=config, wait=True)\n'
    'checkpointer.save(2, state, config=config)\n'
    'os.kill(os.getpid(), signal.SIGKILL)\n',
    tmp_path,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
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
    'resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))\n'
    'def attempt(name, fn, *args, **kwargs):\n'
    '  try:\n'
    '    fn(*args, **kwargs)\n'
    '    print(name, "passed", sep="|")\n'
    '  except RunError as e:\n'
    "    left = sorted(os.listdir('run/checkpoints'))\n"
    '    print(name, e, left, checkpointer.latest_good, sep="|")\n'
    'save = checkpointer.save\n'
    'attempt("save", save, 2, state, config=config)\n'
    'attempt("wait", checkpointer.wait)\n'
    'attempt("save", save, 2, state, config=config)\n'
    'attempt("next", save, 3, state, config=config)\n'
    'attempt("now", save, 3, state, config=config, wait=True)\n'
    'attempt("save", save, 3, state, config=config)\n'
    'attempt("close", checkpointer.close)\n',
    tmp_path,
  )
  assert (done.returncode, done.stderr) == (0, '')
  directory = tmp_path / 'run' / 'checkpoints'
  rows = [line.split('|') for line in done.stdout.splitlines()]
  failed = {row[0]: row[1:] for row in rows if row[1] != 'passed'}
  # Writing fails in the background, so the three saves return.
  assert [row[0] for row in rows] == [
    'save', 'wait', 'save', 'next', 'now', 'save', 'close'
  ]  # fmt: skip
  assert list(failed) == ['wait', 'next', 'now', 'close']
  for name, (message, left, latest_good) in failed.items():
    step = 2 if name in ('wait', 'next') else 3
    start = f'the checkpoint of step {step} could not be written to {directory}'
    assert message.startswith(start), message
    assert 'File too large' in message
    assert 'The checkpoint of step 1 is untouched' in message
    assert (left, latest_good) == ("['1']", '1')
  assert restore_large(directory) == 1


def test_full_disk_ends_with_the_free_space_and_the_good_step(tmp_path):
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', str(tmp_path)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('mounting a small file system needs root')
  try:
    checkpointer = checkpoint.Checkpointer(tmp_path)
    checkpointer.save(1, host_on_device(1), config=CONFIG, wait=True)
    (tmp_path / 'filler').write_bytes(b'x' * 150_000)
    with pytest.raises(RunError) as error:
      checkpointer.save(2, host_on_device(1), config=CONFIG, wait=True)
    message = str(error.value)
    assert message.startswith(
      f'the checkpoint of step 2 could not be written to {tmp_path}: the disk '
      'is full (0 MiB free). The checkpoint of step 1 is untouched: make room'
    )
    assert names(tmp_path) == ['1', 'filler']
    # The run may go on where there is room again.
    (tmp_path / 'filler').unlink()
    checkpointer.save(2, host_on_device(1), config=CONFIG)
    checkpointer.close()
    assert restore(tmp_path)[1]['step'] == 2
  finally:
    subprocess.run(['umount', str(tmp_path)], check=True)


def test_two_processes_write_one_checkpoint_that_one_process_reads(tmp_path):
  code = """
import glob, os, sys
import jax, numpy as np
rank, port = int(sys.argv[1]), sys.argv[2]
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', 2, rank)
from vit_jax import checkpoint, sharding
mesh = sharding.make_mesh(data=1, fsdp=-1)
host = {'params': {'a': np.arange(4096, dtype=np.float32).reshape(8, 512)}}
shardings = sharding.state_shardings(host, mesh, min_size=1)
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
  root = pathlib.Path(vit_jax.__file__).parent.parent
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code, str(rank), port],
      cwd=tmp_path,
      env=dict(
        os.environ,
        PYTHONPATH=str(root),
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
  state, meta, _ = restore(tmp_path / 'run', {}, {'params': {'a': host}})
  assert (meta['step'], meta['processes']) == (2, 2)
  assert_same_bits(state, {'params': {'a': host}})
