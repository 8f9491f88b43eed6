"""Layers, parameters, multiply-adds and memory, against published numbers."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vit_jax import trees
from vit_jax.inference import model_summary
from vit_jax.models import vit

_SHAPE = (16, 16, 3)


def test_published_sizes():
  # DeiT's paper and timm (benchmark): 5.7, 22.1, 86.6 million parameters; 1.3,
  # 4.6, 17.6 GMACs. Theirs have a row of positions for the class token.
  for variant, params, gmacs in (
    ('Ti/16', 5_717_416, 1.26),
    ('S/16', 22_050_664, 4.6),
    ('B/16', 86_567_656, 17.56),
  ):
    model = vit.Model(variant, num_classes=1000, scan=True)
    found = model_summary.layers(model, (224, 224, 3))
    assert sum(x.num_params for x in found) == params - model.width
    macs = model_summary.macs(model, (224, 224, 3))
    # timm counts the norms, too.
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(
  'options',
  [
    dict(),
    dict(scan=True),
    dict(scan=True, remat='full'),
    dict(pooling='map', layer_scale=0.1, qk_norm=True, num_registers=2),
    dict(position='sincos2d', final_norm='features', pooling='mean'),
    dict(head_hidden_dim=6),
  ],
)
def test_every_parameter_is_in_one_layer(options):
  model = vit.Model('mu/8', num_classes=5, depth=3, **options)
  image = jnp.zeros((1, *_SHAPE))
  params = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  found = model_summary.layers(model, _SHAPE)
  names = []
  for layer in found:
    numbers = range(layer.repeats) if '*' in layer.name else [0]
    for i in numbers:
      name = layer.name.replace('*', f'{i:02d}')
      own = [f'{name}/{last}' for last in layer.shapes]
      names += [name] if layer.output is None else own
      for leaf, shape in zip(own, layer.shapes.values(), strict=True):
        leaf = name if layer.output is None else leaf
        assert trees.flatten(params)[leaf].shape == shape
    number = layer.repeats * sum(math.prod(s) for s in layer.shapes.values())
    assert layer.num_params == number
  assert sorted(names) == sorted(trees.flatten(params))


def test_layers_are_in_the_order_of_the_forward_pass():
  found = model_summary.layers(
    vit.Model('mu/8', num_classes=5, depth=3), _SHAPE
  )
  assert [(x.name, x.repeats, x.output) for x in found] == [
    ('class_token', 1, None),
    ('position_embedding', 1, None),
    ('patch_embedding', 1, (1, 2, 2, 32)),
    ('encoder/block_*/norm_attention', 3, (1, 5, 32)),
    ('encoder/block_*/attention/query', 3, (1, 5, 2, 16)),
    ('encoder/block_*/attention/key', 3, (1, 5, 2, 16)),
    ('encoder/block_*/attention/value', 3, (1, 5, 2, 16)),
    ('encoder/block_*/attention/out', 3, (1, 5, 32)),
    ('encoder/block_*/norm_mlp', 3, (1, 5, 32)),
    ('encoder/block_*/mlp/up', 3, (1, 5, 128)),
    ('encoder/block_*/mlp/down', 3, (1, 5, 32)),
    ('encoder/norm', 1, (1, 5, 32)),
    ('head', 1, (1, 5)),
  ]


class _Linear(nn.Module):
  """Two products without anything between them."""

  output: str = 'features'

  @nn.compact
  def __call__(self, image, *, train=False):
    x = image.reshape(len(image), -1)
    for i, dim in enumerate((5, 7)):
      x = nn.Dense(dim, use_bias=False, name=f'dense_{i}')(x)
    return {self.output: x}


def test_macs_and_activations_of_products_by_hand():
  # Of each product the backward pass needs the input: 48 and 5 floats.
  assert model_summary.macs(_Linear(), (4, 4, 3)) == 48 * 5 + 5 * 7
  assert model_summary.activation_bytes(_Linear(), (4, 4, 3)) == 4 * (48 + 5)


def test_a_model_with_logits_alone_has_a_summary():
  model = _Linear(output='logits')
  assert model_summary.macs(model, (4, 4, 3)) == 48 * 5 + 5 * 7
  assert model_summary.activation_bytes(model, (4, 4, 3)) == 4 * (48 + 5)


def test_layers_that_differ_in_shape_are_not_merged():
  found = model_summary.layers(_Linear(), (4, 4, 3))
  assert [x.name for x in found] == ['dense_0', 'dense_1']


def test_activations_grow_with_depth_and_shrink_with_remat():
  def kept(**options):
    options = dict(scan=True, num_classes=5) | options
    return model_summary.activation_bytes(vit.Model('mu/8', **options), _SHAPE)

  one, two, three = (kept(depth=depth) for depth in (1, 2, 3))
  assert three - two == two - one > 0
  assert kept(depth=2, scan=False) == pytest.approx(two, rel=0.05)
  # A block's input: 5 tokens of 32 floats.
  few = [kept(depth=depth, remat='full') for depth in (1, 3)]
  assert few[1] - few[0] == 2 * 5 * 32 * 4
  assert kept(depth=3, dtype='bfloat16') < 0.75 * three
