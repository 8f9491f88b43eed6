"""Stems against their definitions, by name and as modules."""

import jax
import numpy as np

from vit_jax.models import _stems


def _normal(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def _noisy(params, seed=1):
  """Returns parameters of which none is zero or one."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params
  )


def test_patch_embedding_is_the_convolution_with_stride_of_its_window():
  image = _normal(2, 12, 20, 5)  # rectangular images and patches, 5 channels
  module = _stems.PatchEmbedding((3, 10), width=7)
  params = _noisy(module.init(jax.random.key(0), image)['params'])
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
  image = _normal(2, 8, 12, 5)
  module = _stems.ConvStem(patch_size=(4, 4), width=6)
  params = _noisy(module.init(jax.random.key(0), image)['params'])
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
