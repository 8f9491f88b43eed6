"""Recipes that take any weights that can be loaded: `config.model.like`."""

import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax import trees
from vit_jax.configs import finetune
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog, like
from vit_jax.training import train

OPS = "decode|resize_small(17, method='bicubic', rounding='down')"
OPS += "|central_crop(16, rounding='even')"


@pytest.fixture
def photos(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(20):
    path = tmp_path / f'photos/{"ab"[i % 2]}/{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 18, 3), np.uint8)).save(path)
  return tmp_path / 'photos'


def _write(make, format, path):
  """Writes weights of a tiny model in a format of others; returns the path."""
  weights = make(
    pooling='token', activation='gelu', norm_epsilon=1e-6, width=64, num_heads=1
  )
  weights.preprocess.update(ops=OPS, device_ops="normalize('imagenet')")
  if format == 'pth':
    torch = pytest.importorskip('torch')
    from safetensors.torch import load_file

    catalog.save(weights, path / 'timm', format='timm')
    torch.save(load_file(path / 'timm/model.safetensors'), path / 'x.pth')
    return path / 'x.pth'
  if format == 'npz':
    weights.model.update(activation='gelu_tanh')
    catalog.save(weights, path / 'x.npz')
    return path / 'x.npz'
  catalog.save(weights, path / format, format=format)
  return path / format


@pytest.mark.parametrize('format', ['timm', 'huggingface', 'npz', 'pth'])
def test_a_recipe_takes_the_files_of_others(
  format, tiny_weights, photos, tmp_path
):
  source = _write(tiny_weights, format, tmp_path)
  found = catalog.load(source)
  config = finetune.get_config(f'model={source},data={photos}').to_dict()
  assert '(224' in config['input']['ops']
  complete = like.complete(config)
  expected = dict(found.model, representation_size=None, dtype='bfloat16')
  expected['residual_dtype'] = 'float32'
  assert complete['model'] == expected | dict(num_classes=2)
  normalize = found.preprocess.get('device_ops', 'normalize(-1, 1)')
  assert complete['input']['device_ops'] == normalize
  assert 'device_ops' not in config['input'] and 'like' in config['model']
  assert like.complete(complete) == complete


def test_tuning_starts_from_weights_of_timm(tiny_weights, photos, tmp_path):
  source = _write(tiny_weights, 'timm', tmp_path)
  config = finetune.get_config(
    f'model={source},data={photos},resolution=24,steps=2,freeze'
  )
  config.model.dtype, config.pictures = 'float32', {}
  train.train(str(tmp_path / 'run'), **config.to_dict())
  before = trees.flatten(catalog.load(source).params)
  weights = catalog.load(tmp_path / 'run', ema=False)
  after = trees.flatten(weights.params)
  assert weights.model['num_classes'] == 2 and 'like' not in weights.model
  assert weights.preprocess['device_ops'] == "normalize('imagenet')"
  assert after['head/kernel'].any()
  for name, array in after.items():
    if not name.startswith('head/') and name != 'position_embedding':
      np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_config_without_like_stays_as_it_is():
  config = dict(model=dict(variant='S/16'), input=dict(device_ops='x'))
  assert like.complete(config) == config


def test_keys_beside_like_win(tiny_weights, tmp_path):
  catalog.save(tiny_weights(), tmp_path / 'w.safetensors')
  model = dict(like=str(tmp_path / 'w.safetensors'), dropout_rate=0.5)
  config = like.complete(dict(model=model, input=dict(device_ops='x')))
  assert config['model'] == dict(tiny_weights().model, dropout_rate=0.5)
  assert config['input'] == dict(device_ops='x')


def test_weights_that_are_not_there_are_named():
  config = finetune.get_config('model=augrg-B/16')
  with pytest.raises(UserError, match=r"(?s)like='augrg-B/16': .*augreg-B/16"):
    train.build(config.to_dict())


def test_a_pickle_without_torch_says_how_to_install_it(tmp_path, monkeypatch):
  (tmp_path / 'x.pth').write_bytes(b'PK')
  monkeypatch.setitem(sys.modules, 'torch', None)
  config = finetune.get_config(f'model={tmp_path}/x.pth')
  with pytest.raises(UserError, match='pip install torch'):
    train.build(config.to_dict())
