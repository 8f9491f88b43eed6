"""Numbers, names and shapes of parameters, against published models."""

import jax
import jax.numpy as jnp
import pytest

from vit_jax import trees
from vit_jax.models.vit import VARIANTS, Model

# Published parameter counts at 224x224 with 1000 classes. big_vision's models
# with pooling 'mean', and with 'map' and no head.
MEAN = {
  'mu/16': 76_648,
  'Ti/16': 5_717_032,
  'S/16': 22_049_896,
  'S/32': 22_878_184,
  'M/16': 38_836_712,
  'B/16': 86_566_120,
  'B/32': 88_222_696,
  'L/16': 304_324_584,
  'So400m/14': 413_595_352,
  'H/14': 632_043_240,
  'g/14': 1_012_608_616,
  'g-opt/16': 1_136_283_112,
  'G/14': 1_844_437_352,
  'G-opt/14': 1_664_839_144,
  'e/14': 3_807_210_728,
}
MAP = {'B/16': 92_884_224, 'So400m/14': 427_680_704}
# google-research/vision_transformer, pooling 'token'. Their position table has
# a row for the class token. Here that row is part of the class token, so that
# each of these models has one width less.
TOKEN = {
  'Ti/16': 5_717_416 - 192,
  'S/16': 22_050_664 - 384,
  'S/32': 22_878_952 - 384,
  'B/8': 86_576_872 - 768,
  'B/16': 86_567_656 - 768,
  'B/32': 88_224_232 - 768,
  'L/16': 304_326_632 - 1024,
  'L/32': 306_535_400 - 1024,
  'H/14': 632_045_800 - 1280,
}


def _shapes(model, image_size=224, channels=3):
  image = jnp.zeros((1, image_size, image_size, channels))
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


def _count(model, **image):
  return sum(p.size for p in jax.tree.leaves(_shapes(model, **image)))


@pytest.mark.parametrize('variant', MEAN)
def test_number_of_parameters_with_mean_pooling(variant):
  # Scanned, because 56 blocks take a second to trace.
  model = Model(variant, 1000, pooling='mean', scan=True)
  assert _count(model) == MEAN[variant]


@pytest.mark.parametrize('variant', TOKEN)
def test_number_of_parameters_with_a_class_token(variant):
  assert _count(Model(variant, 1000, scan=True)) == TOKEN[variant]


@pytest.mark.parametrize('variant', MAP)
def test_number_of_parameters_with_attention_pooling(variant):
  assert _count(Model(variant, pooling='map', scan=True)) == MAP[variant]


def test_every_variant_has_a_published_number_of_parameters():
  assert {name.split('/')[0] for name in MEAN} == set(VARIANTS)


def test_number_of_parameters_of_published_options():
  # big_vision's S/16 for ImageNet-1k, with its MLP head and with a linear one.
  options = dict(pooling='mean', position='sincos2d')
  head = Model('S/16', 1000, **options, representation_size=True)
  assert _count(head) == 22_122_472
  assert _count(Model('S/16', 1000, **options)) == 21_974_632
  # ImageNet-21k.
  assert _count(Model('B/16', 21_843, pooling='mean')) == 102_594_387
  # DINO, https://github.com/facebookresearch/dino, without a head.
  assert _count(Model('S/16')) == 21_665_664 - 384


def test_leaves_have_these_names_and_shapes():
  model = Model('B/16', 10, depth=1, num_registers=4, layer_scale=0.1)
  leaves = trees.flatten(_shapes(model))
  block = 'encoder/block_00'
  assert {name: leaf.shape for name, leaf in leaves.items()} == {
    'patch_embedding/kernel': (16, 16, 3, 768),
    'patch_embedding/bias': (768,),
    'class_token': (1, 1, 768),
    'registers': (1, 4, 768),
    'position_embedding': (14, 14, 768),
    f'{block}/norm_attention/scale': (768,),
    f'{block}/norm_attention/bias': (768,),
    f'{block}/attention/query/kernel': (768, 12, 64),
    f'{block}/attention/query/bias': (12, 64),
    f'{block}/attention/key/kernel': (768, 12, 64),
    f'{block}/attention/key/bias': (12, 64),
    f'{block}/attention/value/kernel': (768, 12, 64),
    f'{block}/attention/value/bias': (12, 64),
    f'{block}/attention/out/kernel': (12, 64, 768),
    f'{block}/attention/out/bias': (768,),
    f'{block}/scale_attention': (768,),
    f'{block}/norm_mlp/scale': (768,),
    f'{block}/norm_mlp/bias': (768,),
    f'{block}/mlp/up/kernel': (768, 3072),
    f'{block}/mlp/up/bias': (3072,),
    f'{block}/mlp/down/kernel': (3072, 768),
    f'{block}/mlp/down/bias': (768,),
    f'{block}/scale_mlp': (768,),
    'encoder/norm/scale': (768,),
    'encoder/norm/bias': (768,),
    'head/kernel': (768, 10),
    'head/bias': (10,),
  }


def test_a_scan_stacks_the_blocks_and_nothing_else():
  loop = trees.flatten(_shapes(Model('Ti/16', 10, depth=3)))
  scan = trees.flatten(_shapes(Model('Ti/16', 10, depth=3, scan=True)))
  expected = {}
  for name, leaf in loop.items():
    if 'block_00' in name:
      name = name.replace('block_00', 'blocks')
      expected[name] = (3, *leaf.shape)
    elif 'block_' not in name:
      expected[name] = leaf.shape
  assert {name: leaf.shape for name, leaf in scan.items()} == expected
