"""Parameters and states read without the run that wrote them."""

import hashlib
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoints.bits import assert_same_bits
from vit_jax.checkpoints import format as checkpoint_format, manager, reader
from vit_jax.errors import UserError


def host_params(step):
  rng = np.random.default_rng(step)
  return {
    'dense': {
      'kernel': rng.normal(size=(64, 40)).astype(np.float32),
      'bias': rng.normal(size=8).astype(jnp.bfloat16),
    }
  }


def save(directory, steps, ema=False):
  checkpointer = manager.Checkpointer(directory)
  for step in steps:
    state = {'step': np.int32(step), 'params': host_params(step)}
    if ema:
      state['ema_params'] = host_params(-step % 100)
    state['opt_state'] = {'mu': host_params(step)}
    config = {'model': {'variant': 'B/16'}}
    checkpointer.save(step, jax.device_put(state), config=config)
  checkpointer.close()


def test_parameters_are_loaded_without_knowing_the_optimizer(tmp_path):
  save(tmp_path, [1, 2], ema=True)
  params, meta = reader.load_params(tmp_path)
  assert_same_bits(params, host_params(2))
  assert {type(x) for x in jax.tree.leaves(params)} == {np.ndarray}
  assert meta['config'] == {'model': {'variant': 'B/16'}}
  params, meta = reader.load_params(tmp_path, [1])
  assert_same_bits(params, host_params(1))
  assert meta['step'] == 1
  params, _ = reader.load_params(tmp_path, ema=True)
  assert_same_bits(params, host_params(98))


def test_loading_passes_over_damage_and_changes_nothing(tmp_path):
  save(tmp_path, [1, 2])
  path = tmp_path / '2' / 'state' / 'manifest.ocdbt'
  path.write_bytes(path.read_bytes()[:-1])
  lines = []
  params, meta = reader.load_params(tmp_path, on_log=lines.append)
  assert_same_bits(params, host_params(1))
  assert meta['step'] == 1
  assert len(lines) == 1
  assert lines[0].startswith(f'checkpoint {tmp_path}/2 is damaged: ValueError')
  with pytest.raises(UserError, match='no good checkpoint'):
    reader.load_params(tmp_path, [2], on_log=lines.append)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['1', '2']


def test_an_error_of_loading_lists_the_existing_names(tmp_path):
  save(tmp_path, [1])
  with pytest.raises(UserError, match=f'of step 3 in {tmp_path}; it has: 1'):
    reader.load_params(tmp_path, [3])
  with pytest.raises(UserError, match='it has: none'):
    reader.load_params(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match='1 holds no ema_params: the run kept no'):
    reader.load_params(tmp_path, ema=True)


def test_meta_of_another_step_is_damage(tmp_path):
  save(tmp_path, [1])
  (tmp_path / '1').rename(tmp_path / '3')
  directory = checkpoint_format.absolute(tmp_path)
  assert checkpoint_format.steps(directory) == [3]
  with pytest.raises(checkpoint_format.DamagedError, match='its checksum'):
    checkpoint_format.read_meta(directory, 3)


def test_a_checkpoint_that_is_removed_meanwhile_is_damage(tmp_path):
  save(tmp_path, [1])
  directory = checkpoint_format.absolute(tmp_path)
  with pytest.raises(checkpoint_format.DamagedError, match='FileNotFound'):
    checkpoint_format.read_meta(directory, 2)


def test_meta_is_json_that_a_human_can_read(tmp_path):
  save(tmp_path, [1])
  meta = json.loads((tmp_path / '1' / 'meta' / 'metadata').read_text())
  kernel = meta['leaves']['params/dense/kernel']
  assert (kernel['dtype'], kernel['shape']) == ('float32', [64, 40])
  assert (meta['processes'], meta['devices']) == (1, 8)
  assert {'python', 'jax', 'optax', 'orbax-checkpoint'} < set(meta['versions'])


def test_relative_paths_and_addresses_of_buckets_are_understood(monkeypatch):
  monkeypatch.chdir('/')
  assert str(checkpoint_format.absolute('runs/a')) == '/runs/a'
  bucket = checkpoint_format.absolute('gs://bucket/runs/a')
  assert str(bucket) == 'gs://bucket/runs/a'
  home = str(pathlib.Path.home())
  assert str(checkpoint_format.absolute('~/a')) == f'{home}/a'


def test_the_first_cause_of_an_error_is_reported_without_the_spec():
  try:
    try:
      raise ValueError('NOT_FOUND: a\n  file [tensorstore_spec={}]')
    except ValueError as e:
      raise RuntimeError('reading failed') from e
  except RuntimeError as e:
    assert checkpoint_format.shorten(e) == 'ValueError: NOT_FOUND: a file'


def forge(path, change):
  """Changes the meta of a checkpoint and makes its checksum fit again."""
  meta = json.loads(path.read_text())
  change(meta)
  del meta['checksum']
  text = json.dumps(meta, sort_keys=True).encode()
  checksum = hashlib.sha256(text).hexdigest()
  path.write_text(json.dumps(dict(meta, checksum=checksum)))


def leaf(change):
  return lambda meta: change(meta['leaves']['params/dense/bias'])


FORGERIES = {
  'no step': lambda meta: meta.pop('step'),
  'no config': lambda meta: meta.pop('config'),
  'config a text': lambda meta: meta.update(config='x'),
  'no metrics': lambda meta: meta.pop('metrics'),
  'a metric of 400 digits': lambda meta: meta.update(metrics={'x': 10**400}),
  'a leaf without data': lambda meta: meta['leaves'].update(
    {'params/x': meta['leaves']['params/dense/bias']}
  ),
  'metrics a text': lambda meta: meta.update(metrics={'val/top1': 'x'}),
  'no leaves': lambda meta: meta.pop('leaves'),
  'leaves a list': lambda meta: meta.update(leaves=[1]),
  'a leaf a number': lambda meta: meta['leaves'].update(x=1),
  'no fingerprint': leaf(lambda x: x.pop('fingerprint')),
  'no shape': leaf(lambda x: x.pop('shape')),
  'a negative shape': leaf(lambda x: x.update(shape=[-1])),
  'an unknown dtype': leaf(lambda x: x.update(dtype='float31')),
  'logged a list': lambda meta: meta.update(logged=[1]),
  'logged a text': lambda meta: meta.update(logged={'rows': 'x'}),
}


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  directory = tmp_path_factory.mktemp('two_steps')
  save(directory, [1, 2])
  return directory


def meta_of_the_newest(two_steps, tmp_path):
  shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
  return tmp_path / '2' / 'meta' / 'metadata'


@pytest.mark.parametrize('name', FORGERIES)
def test_forged_meta_is_damage(two_steps, tmp_path, name):
  forge(meta_of_the_newest(two_steps, tmp_path), FORGERIES[name])
  lines = []
  params, meta = reader.load_params(tmp_path, on_log=lines.append)
  assert meta['step'] == 1
  assert_same_bits(params, host_params(1))
  assert len(lines) == 1
  assert lines[0].startswith(f'checkpoint {tmp_path}/2 is damaged: ')


@pytest.mark.parametrize('text', ['[' * 100_000, '{"a":' * 100_000, '1', ''])
def test_metadata_other_than_an_object_is_damage(two_steps, tmp_path, text):
  meta_of_the_newest(two_steps, tmp_path).write_text(text)
  lines = []
  wanted = {
    'step': np.int32(0),
    'params': host_params(1),
    'opt_state': {'mu': host_params(1)},
  }
  wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted
  )
  checkpointer = manager.Checkpointer(
    tmp_path, keep_best='val/top1', on_log=lines.append
  )
  config = {'model': {'variant': 'B/16'}}
  state, _ = checkpointer.restore(wanted, config=config)
  checkpointer.close()
  assert state['step'] == 1
  assert [line.partition(' to ')[0] for line in lines[1:]] == [
    'moved the damaged checkpoint'
  ]


@pytest.mark.parametrize('kind', ['a pipe', 'a device', 'huge', 'a pipe below'])
@pytest.mark.parametrize(
  'name', ['meta/metadata', 'state/_METADATA', 'state/manifest.ocdbt']
)
def test_a_file_that_cannot_be_read_to_its_end_is_damage(
  two_steps, tmp_path, kind, name
):
  shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
  path = tmp_path / '2' / name
  path.unlink()
  what = 'is not a regular file'
  if kind == 'huge':
    path.touch()
    os.truncate(path, 2**34)
    what = 'has 17,179,869,184 bytes, and the limit is max_bytes=16,777,216'
  elif kind == 'a device':
    path.symlink_to('/dev/zero')
  elif kind == 'a pipe':
    os.mkfifo(path)
  else:
    elsewhere = tmp_path / 'elsewhere'
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)
    os.mkfifo(elsewhere / path.name)
    (elsewhere / 'loop').symlink_to(elsewhere)
  lines = []
  _, meta = reader.load_params(tmp_path, on_log=lines.append)
  assert meta['step'] == 1
  damaged = f'checkpoint {tmp_path}/2 is damaged: {path} {what}'
  assert lines == [damaged]
