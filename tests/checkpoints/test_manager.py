"""Saving, keeping, restoring and refusing checkpoints."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tests.checkpoints.bits import assert_same_bits
from vit_jax.checkpoints import format as checkpoint_format, manager
from vit_jax.errors import RunError, UserError
from vit_jax.parallel import mesh as mesh_lib, rules as rules_lib
from vit_jax.training.train_state import TrainState

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
    state, rules_lib.state_shardings(state, mesh, min_size=1)
  )


def host_on_device(step):
  return place(host_state(step), mesh_lib.make_mesh(data=1, fsdp=8))


def abstract(state, mesh=None):
  mesh = mesh or mesh_lib.make_mesh(data=1, fsdp=8)
  shardings = rules_lib.state_shardings(state, mesh, min_size=1)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )


def save(directory, *steps, metrics=None, **kwargs):
  checkpointer = manager.Checkpointer(directory, **kwargs)
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
  checkpointer = manager.Checkpointer(directory, on_log=lines.append, **kwargs)
  wanted = abstract(host_state() if state is None else state)
  found = checkpointer.restore(wanted, config=config)
  checkpointer.close()
  return found and (*found, lines)


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
    return mesh_lib.make_mesh(**MESHES[name], devices=devices)

  other = {'8 x 1': '2 x 4', '1 x 8': 'one device'}.get(name, '8 x 1')
  want = host_state(5)
  assert want.ema_params is None
  assert want.extra == want.frozen == {}
  state = place(want, mesh_of(name))
  checkpointer = manager.Checkpointer(tmp_path)
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


# A small array is written from the device's own buffer, which JAX then copies
# instead of donating; a large one is cut into slices first.
@pytest.mark.parametrize('columns', [2**10, 2**20])
def test_state_may_be_donated_as_soon_as_save_returns(tmp_path, columns):
  mesh = mesh_lib.make_mesh()
  want = {'params': {'a': np.random.default_rng(0).random((8, columns))}}
  want = jax.tree.map(np.float32, want)
  state = place(want, mesh)
  step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  checkpointer = manager.Checkpointer(tmp_path)
  checkpointer.save(1, state, config=CONFIG)
  jax.block_until_ready(step(step(state)))
  assert columns < 2**20 or state['params']['a'].is_deleted()
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
  checkpointer = manager.Checkpointer(
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

  checkpointer = manager.Checkpointer(tmp_path)
  for error in (
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory'),
    MemoryError('out of memory'),
    PermissionError('no right to it, or out of memory'),
    ValueError('PERMISSION_DENIED: of a bucket out of memory'),
  ):

    def fail(*args, error=error, **kwargs):
      raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', fail)
    with pytest.raises(RunError, match=r'2, which may well be good.*of memory'):
      checkpointer.restore(abstract(host_state()), config=CONFIG)
  checkpointer.close()
  assert listing(tmp_path) == before


def test_another_model_ends_the_run_and_changes_nothing(tmp_path):
  save(tmp_path, 1, 2)
  flip_config(tmp_path)  # A damaged newer checkpoint stays where it is, too.
  before = listing(tmp_path)
  config = dict(CONFIG, model={'name': 'vit', 'variant': 'S/16'})
  with pytest.raises(UserError, match="'B/16' in the checkpoint, 'S/16' in"):
    restore(tmp_path, config)
  # A first moment of another dtype would be cast in silence.
  state = host_state(optimizer=optax.adam(1e-3))
  with pytest.raises(UserError, match=r'mu/dense/kernel is bfloat16\[64, 40\]'):
    restore(tmp_path, state=state)
  assert listing(tmp_path) == before


def test_other_settings_may_change_and_are_reported(tmp_path):
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


def test_only_a_finite_metric_is_the_best():
  policy = manager.BestCheckpoint('val/top1', 1)
  for step, value in enumerate([0.5, float('inf'), float('nan')]):
    policy.note(step, {'val/top1': value})
  assert policy.values == {0: 0.5}


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
  # The lowest is neither the latest nor one of every four.
  metrics[5]['val/top1'] = 0.05
  save(
    tmp_path / 'c', *range(3, 7), metrics=metrics, keep_best_mode='min', **best
  )
  assert names(tmp_path / 'c') == ['4', '5', '6']


def test_a_saved_step_is_not_written_again(tmp_path):
  save(tmp_path, 1)
  before = listing(tmp_path)
  save(tmp_path, 1, metrics={1: {'val/top1': 0.5}})
  assert listing(tmp_path) == before


def test_other_code_that_uses_orbax_keeps_its_handler_of_arrays(tmp_path):
  before = ocp.type_handlers.get_type_handler(jax.Array)
  manager.Checkpointer(tmp_path).close()
  assert ocp.type_handlers.get_type_handler(jax.Array) is before


def test_latest_good_is_the_last_step_that_is_on_the_disk(tmp_path):
  checkpointer = manager.Checkpointer(tmp_path)
  assert checkpointer.latest_good is None
  state = place(host_state(), mesh_lib.make_mesh())
  checkpointer.save(1, state, config=CONFIG, wait=True)
  assert checkpointer.latest_good == 1
  checkpointer.save(2, state, config=CONFIG)
  assert checkpointer.latest_good in (1, 2)
  checkpointer.wait()
  assert checkpointer.latest_good == 2
  (tmp_path / '2').rename(tmp_path / 'being written')
  assert checkpointer.latest_good == 1
  (tmp_path / 'being written').rename(tmp_path / '2')
  checkpointer.close()
  again = manager.Checkpointer(tmp_path)
  assert again.latest_good is None  # Not verified yet.
  again.restore(abstract(host_state()), config=CONFIG)
  assert again.latest_good == 2
  again.close()


def test_an_unwritable_directory_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    UserError, match=f'write checkpoints to {tmp_path}/file/a'
  ):
    manager.Checkpointer(tmp_path / 'file' / 'a')


def test_arguments_out_of_range_are_all_named(tmp_path):
  with pytest.raises(UserError) as error:
    manager.Checkpointer(
      tmp_path, keep_latest=0, keep_every_steps=0, keep_best_mode='high'
    )
  assert str(error.value) == (
    'checkpoint: keep_latest=0: expected 1 or more; keep_every_steps=0: '
    "expected 1 or more; keep_best_mode='high': expected 'max', 'min'"
  )
