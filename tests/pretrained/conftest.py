"""Small models with random parameters, and files of others' making."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import lookup
from vit_jax.pretrained.weights import Weights


@pytest.fixture
def make_weights():
  """Returns `make(image_shape=(32, 32, 3), **section) -> Weights`.

  Every parameter is drawn from N(0, 0.2), so that none is zero or one and any
  two that are swapped show.
  """

  def make(image_shape=(32, 32, 3), preprocess=None, **section):
    sizes = dict(width=24, depth=3, mlp_dim=40, num_heads=3, patch_size=8)
    section = dict(name='vit', num_classes=5) | sizes | section
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32),
      shapes_of(tuple(section.items()), image_shape),
    )
    preprocess = preprocess or dict(image_size=image_shape[:2])
    return Weights(params=params, model=section, preprocess=preprocess)

  return make


@functools.cache
def shapes_of(section, image_shape):
  model = lookup.build('models', dict(section), 'Model')
  image = jnp.zeros((1, *image_shape))
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


@pytest.fixture
def outputs():
  """Returns `outputs(weights, image_BHWC) -> dict` of the model's outputs."""

  def apply(weights, image):
    model = lookup.build('models', weights.model, 'Model')
    return jax.jit(model.apply)({'params': weights.params}, image)

  return apply


@pytest.fixture
def google_file():
  """Returns the function `google_arrays`."""
  return google_arrays


def google_arrays(
  *,
  prefix='',
  numbers=(1, 2, 3),
  position='Transformer/posembed_input/pos_embedding',
  class_token=True,
  class_row=True,
  map_head='',
  pre_logits=False,
  stacked=False,
  dtype='float32',
):
  """Returns the arrays of a Google file, its names spelled out once more.

  The sizes are those of `make_weights`, but for two blocks.
  """
  rng = np.random.default_rng(0)
  attention, norm, mlp = numbers
  width, depth, heads = 24, 2, (3, 8)

  def layer(name, *shape, bias=None, leaf='kernel'):
    return {f'{name}/{leaf}': shape, f'{name}/bias': bias or shape[-1:]}

  def parts(name, attention, norm, mlp):
    return {
      **layer(f'{name}LayerNorm_{norm}', width, leaf='scale'),
      **{
        f'{name}MultiHeadDotProductAttention_{attention}/{key}': shape
        for part in ('query', 'key', 'value')
        for key, shape in layer(part, width, *heads, bias=heads).items()
      },
      **layer(
        f'{name}MultiHeadDotProductAttention_{attention}/out', *heads, width
      ),
      **layer(f'{name}MlpBlock_{mlp}/Dense_0', width, 40),
      **layer(f'{name}MlpBlock_{mlp}/Dense_1', 40, width),
    }

  shapes = {
    **layer('embedding', 8, 8, 3, width),
    **layer('Transformer/encoder_norm', width, leaf='scale'),
    **layer('head', 8 if pre_logits else width, 5),
  }
  if class_token:
    shapes['cls'] = (1, 1, width)
  if position:
    shapes[position] = (1, 4**2 + class_row, width)
  if map_head is not None and not class_token:
    shapes[f'{map_head}probe'] = (1, 1, width)
    shapes |= parts(map_head, 0, 0, 0)
  if pre_logits:
    shapes |= layer('pre_logits', width, 8)
  for i in range(depth):
    name = f'Transformer/encoderblock_{i}/'
    shapes |= layer(f'{name}LayerNorm_0', width, leaf='scale')
    shapes |= parts(name, attention, norm, mlp)
  arrays = {
    name: rng.normal(0, 0.2, shape).astype(dtype)
    for name, shape in sorted(shapes.items())
  }
  if stacked:
    block = 'Transformer/encoderblock'
    for name in [n for n in arrays if n.startswith(f'{block}_0/')]:
      rest = name.removeprefix(f'{block}_0/')
      each = [arrays.pop(f'{block}_{i}/{rest}') for i in range(depth)]
      arrays[f'{block}/{rest}'] = np.stack(each)
  return {prefix + name: array for name, array in arrays.items()}


@pytest.fixture
def timm():
  """Returns timm; tests/conftest.py mends torchvision, which it imports."""
  return pytest.importorskip('timm')
