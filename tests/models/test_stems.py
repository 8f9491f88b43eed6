"""Stems against their definitions, by name and as modules."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.models import draws
from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.models import _stems
from vit_jax.models.vit import VARIANTS, Model, ViT


def test_patch_embedding_is_the_convolution_with_stride_of_its_window():
  # Rectangular images and patches, 5 channels.
  image = draws.normal(2, 12, 20, 5)
  module = _stems.PatchEmbedding((3, 10), width=7)
  params = draws.params(module, image)['params']
  expected = jax.lax.conv_general_dilated(
    image,
    params['kernel'],
    window_strides=(3, 10),
    padding='VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  expected += params['bias'][None, None, None]
  tokens = module.apply({'params': params}, image)
  assert tokens.shape == (2, 4, 2, 7)
  np.testing.assert_allclose(tokens, expected, atol=1e-5)


def test_conv_stem_is_convolutions_with_norms_and_activations():
  image = draws.normal(2, 8, 12, 5)
  module = _stems.ConvStem(patch_size=(4, 4), width=6)
  params = draws.params(module, image)['params']
  params, x = jax.tree.map(np.float64, params), image.astype(np.float64)
  for i, channels in enumerate((3, 6)):
    kernel = params[f'convolution_{i}']['kernel']
    B, H, W, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = np.zeros((B, H // 2, W // 2, channels))
    for row, column in np.ndindex(3, 3):
      pixels = padded[:, row : row + H : 2, column : column + W : 2]
      x += pixels @ kernel[row, column]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
      x.var(-1, keepdims=True) + 1e-6
    )
    norm = params[f'norm_{i}']
    x = np.asarray(jax.nn.gelu(x * norm['scale'] + norm['bias']))
  expected = x @ params['out']['kernel'] + params['out']['bias']
  tokens = module.apply({'params': params}, image)
  assert tokens.shape == (2, 2, 3, 6)
  np.testing.assert_allclose(tokens, expected, atol=1e-4)


class Flat(nn.Module):
  """A user's stem: a token is the mean colour of its patch."""

  patch_size: tuple[int, int]
  width: int

  @nn.compact
  def __call__(self, image_BHWC):
    B, H, W, C = image_BHWC.shape
    rows, columns = self.patch_size
    parts = image_BHWC.reshape(B, H // rows, rows, W // columns, columns, C)
    return nn.Dense(self.width)(parts.mean(axis=(2, 4)))


def test_a_stem_is_a_module_that_is_passed_in():
  image = draws.normal(2, 16, 16, 3)
  stem = Flat((8, 8), 32)
  model = Model('mu/8', stem=stem)
  params = draws.params(model, image)['params']
  names = set(trees.flatten(params['patch_embedding']))
  assert names == {'Dense_0/kernel', 'Dense_0/bias'}
  outputs = model.apply({'params': params}, image)
  # Only the mean of a patch is seen.
  swapped = image[:, [1, 0, *range(2, 16)]]
  np.testing.assert_allclose(
    model.apply({'params': params}, swapped)['features'],
    outputs['features'],
    atol=1e-5,
  )
  with pytest.raises(UserError, match='stem=3: expected a module'):
    Model('mu/8', stem=3)
  with pytest.raises(UserError, match='names are for vit'):
    ViT(**VARIANTS['mu'], patch_size=8, stem='conv')


def test_a_name_in_a_config_means_a_stem_with_the_options_of_the_model():
  section = dict(name='vit', variant='mu/8', stem='conv', norm_epsilon=1e-5)
  model = lookup.build('models', section, 'Model')
  stem = _stems.ConvStem((8, 8), 32, norm_epsilon=1e-5)
  assert model == Model('mu/8', stem=stem, norm_epsilon=1e-5)
  # A plain one is the default.
  assert Model('mu/8', stem='patch') == Model('mu/8')


def test_a_stem_of_the_users_own_is_found_only_where_it_is_trusted(
  tmp_path, monkeypatch
):
  (tmp_path / 'my_parts').mkdir()
  (tmp_path / 'my_parts' / 'flat.py').write_text(
    'import flax.linen as nn\n'
    'class Stem(nn.Module):\n'
    '  width: int\n'
    '  def __call__(self, image):\n'
    '    return image[:, ::8, ::8, :1].repeat(self.width, -1)\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  section = dict(name='vit', variant='mu/8', stem='my_parts.flat')
  model = lookup.build('models', section, 'Model', trusted=True)
  params = draws.params(model, draws.normal(1, 16, 16, 3))['params']
  assert 'patch_embedding' not in params
  assert model.stem.width == 32
  with pytest.raises(UserError, match='a name out of a file is not imported'):
    lookup.build('models', section, 'Model')
  with pytest.raises(UserError, match="unknown key 'trusted'"):
    lookup.build('models', section | dict(trusted=True), 'Model')
