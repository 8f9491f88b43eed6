"""`python -m vit_jax summary` of configs and weights, without their data."""

import json
import pathlib

import pytest

from vit_jax.commands import summary
from vit_jax.pretrained.formats import vit_jax as ours

_RECIPE = """
import ml_collections

def get_config(arg=''):
  config = ml_collections.ConfigDict()
  config.total_epochs = 300.0
  config.model = dict(name='vit', variant='mu/8', num_classes=5, pooling='mean')
  config.objective = dict(name='supervised')
  config.input = dict(
      data=dict(name='image_folder', data_dir='/absent', split='train'),
      ops='decode|random_resized_crop(16)|onehot(5)',
      device_ops='normalize(-1, 1)', batch_size=4096)
  config.optimizer = dict(name='adamw', learning_rate=1e-3, warmup_epochs=5.0)
  config.ema = dict(decay=0.99)
  return config
"""
# Of mu/8 for 16x16x3: embedding, positions, block, norms, head.
_NUM_PARAMS = (
  193 * 32 + 128 + (4 * 33 * 32 + 33 * 128 + 129 * 32) + 6 * 32 + 33 * 5
)


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / 'recipe.py'
  path.write_text(_RECIPE)
  return f'--config={path}'


def _json(capsys, *argv):
  assert summary.main([*argv, '--format=json']) == 0
  return json.loads(capsys.readouterr().out)


def test_a_config_without_its_data(recipe, capsys):
  found = _json(capsys, recipe)
  assert found['image_shape'] == [16, 16, 3]
  assert found['num_params'] == _NUM_PARAMS
  assert sum(x['num_params'] for x in found['layers']) == _NUM_PARAMS
  memory, num_bytes = found['memory_bytes'], 4 * _NUM_PARAMS
  assert memory['params'] == memory['average of params'] == num_bytes
  assert memory['gradients'] == num_bytes
  # Two moments and the counts of steps.
  assert 0 <= memory['optimizer state'] - 2 * num_bytes <= 12
  kept = found['activation_bytes_per_image']
  assert memory['activations of 4,096 images'] == 4096 * kept > 0
  # 4 tokens: the embedding, the block, its attention, the head.
  macs = 4 * 192 * 32 + 4 * (4 * 32 * 32 + 2 * 32 * 128) + 2 * 4 * 4 * 32
  assert found['gmacs_per_image'] * 1e9 == pytest.approx(macs + 32 * 5)


def test_changes_of_the_config_count(recipe, capsys):
  found = _json(
    capsys,
    recipe,
    '--config.ema=None',
    '--config.optimizer.mu_dtype=bfloat16',
    "--config.optimizer.freeze=['(patch_embedding|encoder).*', 'position.*']",
    '--config.model.num_classes=7',
    '--config.input.batch_size=8',
  )
  head = 4 * 33 * 7
  memory = found['memory_bytes']
  assert 'average of params' not in memory
  assert memory['gradients'] == head
  assert 0 <= memory['optimizer state'] - 1.5 * head <= 12
  assert 'activations of 8 images' in memory


def test_the_table_has_every_layer_and_the_totals(recipe, capsys):
  assert summary.main([recipe]) == 0
  out = capsys.readouterr().out
  for word in (
    'patch_embedding',
    'kernel [8, 8, 3, 32]',
    'encoder/block_00/attention/query',
    '[1, 4, 2, 16]',
    f'{_NUM_PARAMS:,} parameters',
    'GMACs for an image of 16x16x3',
    'optimizer state',
    'average of params',
  ):
    assert word in out


def test_the_image_size_can_be_said(recipe, capsys):
  found = _json(capsys, recipe, '--image_size=32,16', '--channels=1')
  assert found['image_shape'] == [32, 16, 1]
  # Where the ops do not tell it, an image is read, and here there is none.
  argv = [recipe, '--config.input.ops=decode']
  assert summary.main(argv) == 2
  error = capsys.readouterr().err
  assert '/absent' in error and '--image_size' in error
  assert _json(capsys, *argv, '--image_size=24')['image_shape'] == [24, 24, 3]
  assert summary.main([recipe, '--image_size=0']) == 2
  assert '--image_size' in capsys.readouterr().err


def test_images_give_their_size_where_the_ops_do_not(capsys):
  root = pathlib.Path(__file__).parents[2]
  recipe = f'--config={root}/configs/quickstart.py'
  found = _json(capsys, recipe, '--config.model.depth=1')
  assert found['image_shape'] == [8, 8, 1]


def test_weights_as_they_are_stored(tiny_weights, tmp_path, capsys):
  weights = tiny_weights(pooling='mean', channels=1)
  for name in ('head/kernel', 'head/bias'):
    weights.params[name] = weights.params[name].astype('float16')
  ours.write(weights, tmp_path / 'x.safetensors')
  found = _json(capsys, f'--weights={tmp_path / "x.safetensors"}')
  num_params = _NUM_PARAMS - 2 * 64 * 32
  assert found['image_shape'] == [16, 16, 1]
  assert found['num_params'] == num_params
  assert found['memory_bytes'] == {
    'params as stored': 4 * num_params - 2 * 33 * 5,
    'params': 4 * num_params,
  }
  assert found['model']['pooling'] == 'mean'


def test_mistakes_end_with_one_message(recipe, tmp_path, capsys):
  for argv, word in (
    (['--weights=absent/x.npz'], 'absent/x.npz'),
    (['--config=absent.py'], 'absent.py'),
    ([recipe, '--config.model.variant=Q/8'], "'Q/8'"),
    ([recipe, '--config.optimizer.learning_rat=1'], "'learning_rate'"),
    ([recipe, '--image_size=17'], '17x17'),
    ([], '--config or --weights'),
    ([recipe, '--weights=x'], '--config or --weights'),
    ([recipe, '--step=3'], '--step'),
    ([recipe, '--channels=0'], '--channels'),
  ):
    assert summary.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and word in error
