"""The whole model: initial values, options, outputs, error texts."""

import jax
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import _position
from vit_jax.models.vit import Model

IMAGE = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(np.float32)


def _tiny(variant='mu/16', num_classes=5, **overrides):
  """Returns a model of two small blocks, and parameters, none of them 0."""
  model = Model(variant, num_classes, depth=2, **overrides)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE)['params']
  rng = np.random.default_rng(1)

  def draw(name, leaf):
    center = 1 if name.endswith('scale') else 0
    return (center + 0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  return model, trees.map_named(draw, shapes)


def _apply(model, params, image=IMAGE, **kwargs):
  apply = jax.jit(model.apply, static_argnames='train')
  return apply({'params': params}, image, **kwargs)


def test_the_head_starts_at_its_bias_or_at_random():
  model = Model('mu/16', 5, head_bias_init=-10.0)
  params = model.init(jax.random.key(0), IMAGE)['params']
  np.testing.assert_array_equal(_apply(model, params)['logits'], -10)
  model = Model('mu/16', 5, head_zero_init=False)
  params = model.init(jax.random.key(0), IMAGE)['params']
  assert np.abs(params['head']['kernel']).min() > 0


ALL_OPTIONS = dict(
  num_registers=3,
  pooling='map',
  representation_size=7,
  head_hidden_dim=6,
  head_dropout_rate=0.1,
  layer_scale=0.5,
  qk_norm=True,
  dropout_rate=0.1,
  attention_dropout_rate=0.1,
  stochastic_depth_rate=0.1,
)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('options', [{}, ALL_OPTIONS, dict(scan=True)])
def test_parameters_gradients_and_outputs_are_float32(dtype, options):
  model, params = _tiny(dtype=dtype, **options)

  def loss(params):
    rngs = {'dropout': jax.random.key(0)}
    outputs = model.apply({'params': params}, IMAGE, train=True, rngs=rngs)
    return outputs['logits'].sum(), outputs

  grads, outputs = jax.eval_shape(jax.grad(loss, has_aux=True), params)
  leaves = jax.tree.leaves((params, grads, outputs))
  assert {leaf.dtype for leaf in leaves} == {np.dtype('float32')}


def test_bfloat16_computes_in_bfloat16_and_stays_near_float32():
  model, params = _tiny()
  full = _apply(model, params)
  half_model = Model('mu/16', 5, depth=2, dtype='bfloat16')
  half = _apply(half_model, params)
  # Eight bits of mantissa, through two blocks.
  error = np.abs(full['tokens'] - half['tokens']).max()
  assert 1e-4 < error < 0.1
  jaxpr = str(jax.make_jaxpr(half_model.apply)({'params': params}, IMAGE))
  dots = [line for line in jaxpr.splitlines() if 'dot_general' in line]
  results = [line.split('=')[0].split(':')[1].strip() for line in dots]
  # All but the head, and the logits of attention, give bfloat16.
  assert sum(r.startswith('f32') for r in results) == 1 + 2
  assert len(results) == 1 + 2 * 8 + 1


def test_outputs_of_each_pooling():
  model, params = _tiny(pooling='token', num_registers=3)
  outputs = _apply(model, params)
  assert {k: v.shape for k, v in outputs.items()} == {
    'tokens': (2, 6, 32),
    'prefix_tokens': (2, 4, 32),
    'features': (2, 32),
    'logits': (2, 5),
  }
  np.testing.assert_array_equal(
    outputs['features'], outputs['prefix_tokens'][:, 0]
  )

  model, params = _tiny(pooling='mean', num_registers=3, num_classes=None)
  outputs = _apply(model, params)
  assert set(outputs) == {'tokens', 'prefix_tokens', 'features'}
  assert outputs['prefix_tokens'].shape == (2, 3, 32)
  mean = outputs['tokens'].mean(axis=1)
  np.testing.assert_allclose(outputs['features'], mean, atol=1e-6)

  model, params = _tiny(pooling='map')
  outputs = _apply(model, params)
  assert set(outputs) == {'tokens', 'features', 'logits'}
  assert outputs['features'].shape == (2, 32)

  model, params = _tiny(pooling='none')
  outputs = _apply(model, params)
  np.testing.assert_array_equal(outputs['features'], outputs['tokens'])
  logits = outputs['tokens'] @ params['head']['kernel']
  logits += params['head']['bias'][None, None]
  assert outputs['logits'].shape == (2, 6, 5)
  np.testing.assert_allclose(outputs['logits'], logits, atol=1e-5)


@pytest.mark.parametrize('size, features', [(True, 32), (7, 7)])
def test_a_representation_is_a_tanh_layer_before_the_head(size, features):
  model, params = _tiny(representation_size=size)
  outputs = _apply(model, params)
  layer = params['representation']
  z = outputs['prefix_tokens'][:, 0] @ layer['kernel'] + layer['bias'][None]
  assert outputs['features'].shape == (2, features)
  np.testing.assert_allclose(outputs['features'], np.tanh(z), atol=1e-6)


def test_an_mlp_head_is_a_hidden_layer_with_the_activation_of_the_blocks():
  model, params = _tiny(head_hidden_dim=7, activation='gelu')
  outputs = _apply(model, params)
  head = params['head']
  assert head['hidden']['kernel'].shape == (32, 7)
  assert head['kernel'].shape == (7, 5)
  features = outputs['prefix_tokens'][:, 0]
  np.testing.assert_array_equal(outputs['features'], features)
  z = features @ head['hidden']['kernel'] + head['hidden']['bias'][None]
  z = jax.nn.gelu(z, approximate=False)
  logits = z @ head['kernel'] + head['bias'][None]
  np.testing.assert_allclose(outputs['logits'], logits, atol=1e-5)


@pytest.mark.parametrize('hidden, pooling', [(None, 'mean'), (400, 'none')])
def test_head_dropout_zeroes_what_the_last_layer_reads_in_training(
  hidden, pooling
):
  options = dict(head_hidden_dim=hidden, head_dropout_rate=0.5, pooling=pooling)
  model, params = _tiny(width=400, num_classes=400, **options)
  # An identity shows what the last layer reads.
  params['head'] |= dict(kernel=np.eye(400, dtype='f'), bias=np.zeros(400, 'f'))
  full = _apply(model, params)
  rngs = {'dropout': jax.random.key(3)}
  dropped = _apply(model, params, train=True, rngs=rngs)
  np.testing.assert_array_equal(full['features'], dropped['features'])
  kept = dropped['logits'] != 0
  assert 0.4 < np.mean(kept) < 0.6
  expected = np.where(kept, 2 * full['logits'], 0)
  np.testing.assert_allclose(dropped['logits'], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['sincos2d', 'sincos2d_moco'])
def test_a_fixed_position_table_acts_as_a_learned_one_of_its_values(name):
  fixed, params = _tiny(position=name)
  assert 'position_embedding' not in params
  table = getattr(_position, name)(2, 3, 32)
  learned = Model('mu/16', 5, depth=2)
  np.testing.assert_allclose(
    _apply(fixed, params)['logits'],
    _apply(learned, params | {'position_embedding': table})['logits'],
    atol=1e-6,
  )


def test_without_positions_patches_may_be_shuffled():
  model, params = _tiny(position='none')
  flipped = np.concatenate([IMAGE[:, 16:], IMAGE[:, :16]], axis=1)
  logits = [_apply(model, params, i)['logits'] for i in (IMAGE, flipped)]
  np.testing.assert_allclose(*logits, atol=1e-5)
  model, params = _tiny()
  logits = [_apply(model, params, i)['logits'] for i in (IMAGE, flipped)]
  assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_patches_may_be_rectangular_and_images_have_any_channels():
  model = Model('mu', patch_size=[16, 8])
  image = np.ones((2, 32, 48, 5), np.float32)
  params = model.init(jax.random.key(0), image)['params']
  assert params['patch_embedding']['kernel'].shape == (16, 8, 5, 32)
  assert params['position_embedding'].shape == (2, 6, 32)
  assert _apply(model, params, image)['tokens'].shape == (2, 12, 32)
  # The override wins over the name.
  assert Model('mu/16', patch_size=(4, 2)).patch_size == (4, 2)


def test_a_convolutional_stem_sees_more_than_its_patch_and_no_more():
  # Four convolutions of 3x3 and stride 2: a token reads 31 pixels, from 15
  # before its patch of 16 to its end.
  model, params = _tiny(stem='conv')
  stem = params['patch_embedding']
  assert stem['convolution_0']['kernel'].shape == (3, 3, 3, 4)
  assert stem['convolution_3']['kernel'].shape == (3, 3, 16, 32)
  for block in params['encoder'].values():
    if 'attention' in block:
      block['attention']['out']['kernel'] = np.zeros((2, 16, 32), np.float32)
  before = _apply(model, params)['tokens']
  for column, expected in (
    (15, [True, True, False]),
    (16, [False, True, False]),
    (17, [False, True, True]),
    (47, [False, False, True]),
  ):
    image = IMAGE.copy()
    image[0, 0, column] += 100  # row 0 of 2 rows of 3 patches
    change = np.abs(_apply(model, params, image)['tokens'] - before)
    np.testing.assert_array_equal(
      change.max(axis=-1) > 0, [expected + [False] * 3, [False] * 6]
    )


def test_tokens_are_ordered_row_by_row():
  # One patch of one image differs; before attention only its token does.
  model, params = _tiny()
  params = jax.tree.map(np.array, params)
  for block in ('block_00', 'block_01'):
    params['encoder'][block]['attention']['out']['kernel'][:] = 0
  image = IMAGE.copy()
  image[0, 16:, 16:32] += 1  # row 1, column 1 of 2 rows and 3 columns
  change = (
    _apply(model, params, image)['tokens'] - _apply(model, params)['tokens']
  )
  changed = np.abs(np.asarray(change)).max(axis=-1) > 0
  np.testing.assert_array_equal(
    changed, [[False] * 4 + [True, False], [False] * 6]
  )


def test_dropout_acts_in_training_only_and_follows_its_key():
  model, params = _tiny(
    dropout_rate=0.5, stochastic_depth_rate=0.5, attention_dropout_rate=0.5
  )
  plain = Model('mu/16', 5, depth=2)
  evaluated = _apply(model, params)['logits']
  np.testing.assert_array_equal(evaluated, _apply(plain, params)['logits'])
  logits = [
    _apply(model, params, train=True, rngs={'dropout': jax.random.key(i)})
    for i in (0, 0, 1)
  ]
  a, b, c = (outputs['logits'] for outputs in logits)
  np.testing.assert_array_equal(a, b)
  assert np.abs(a - c).min() > 0
  assert np.abs(a - evaluated).min() > 0


def test_attention_weights_are_sown_for_blocks_and_pool():
  model, params = _tiny(pooling='map', num_registers=1)
  _, sown = model.apply({'params': params}, IMAGE, mutable=['intermediates'])
  sown = trees.flatten(sown['intermediates'])
  assert {name: leaf.shape for name, leaf in sown.items()} == {
    'encoder/block_00/attention/attention_weights/0': (2, 2, 7, 7),
    'encoder/block_01/attention/attention_weights/0': (2, 2, 7, 7),
    'pooling/attention/attention_weights/0': (2, 2, 1, 6),
  }
  for weights in sown.values():
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize(
  'args, overrides, words',
  [
    (('X/16',), {}, ["'X/16'", 'mu, Ti, S, M, B', 'g-opt', "'B/16'"]),
    (('B/x',), {}, ["unknown ViT variant 'B/x'"]),
    (('B/0',), {}, ["unknown ViT variant 'B/0'"]),
    (('B/' + '9' * 5000,), {}, ["unknown ViT variant 'B/99", '9...; exp']),
    ((16,), {}, ['unknown ViT variant 16; expected']),
    (('B',), {}, ["'B' names no patch size", "'B/16'", 'patch_size']),
    (('B/16',), dict(widht=3), ['no widht (did you mean width?)', 'qk_norm']),
    (('B/16',), dict(parent=None), ['no parent']),
    (('B/16',), dict(patch_size=(1, 2, 3)), ['patch_size=(1, 2, 3)']),
    (('B/16',), dict(stem='cnn'), ["stem='cnn'", "'patch', 'conv'"]),
    (('B/14',), dict(stem='conv'), ['patch_size=(14, 14)', '2, 4, 8']),
    (('B',), dict(stem='conv', patch_size=(8, 4)), ['patch_size=(8, 4)']),
    (('B/1',), dict(stem='conv'), ['patch_size=(1, 1)']),
    (
      ('B/16',),
      dict(stem='conv', width=780, num_heads=2),
      ['width=780', 'a multiple of 8'],
    ),
    (('B/16',), dict(pooling='gap'), ["pooling='gap'", "'mean', 'map'"]),
    (('B/16',), dict(final_norm='none'), ["final_norm='none'", "'features'"]),
    (('B/16',), dict(position='rope'), ["position='rope'", "'sincos2d_moco'"]),
    (('B/16',), dict(activation='relu'), ["activation='relu'", "'gelu_quick'"]),
    (('B/16',), dict(attention='flash'), ["attention='flash'", "'cudnn'"]),
    (('B/16',), dict(dtype='int8'), ["dtype='int8'", "'bfloat16'"]),
    (
      ('B/16',),
      dict(remat='dots'),
      ["remat='dots'", "'full'", "'dots_with_no_batch_dims_saveable'"],
    ),
    (('B/16',), dict(dropout_rate=1.0), ['dropout_rate=1.0', '0 <= rate < 1']),
    (('B/16',), dict(num_heads=7), ['width=768', 'num_heads=7', '763']),
    (
      ('mu/16',),
      dict(width=30, position='sincos2d', pooling='gap'),
      ['divisible by 4; got 30', "pooling='gap'"],
    ),
  ],
)
def test_options_that_do_not_fit_are_all_named(args, overrides, words):
  with pytest.raises(UserError) as error:
    Model(*args, **overrides)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  'shape, dtype, words',
  [
    ((1, 33, 48, 3), 'float32', ['33x48', '16x16', 'to 32x48']),
    ((1, 32, 8, 3), 'float32', ['32x8', 'to 32x16']),
    ((32, 48, 3), 'float32', ['(32, 48, 3)', '[batch, height']),
    ((1, 32, 48, 3), 'uint8', ['floating-point', 'uint8']),
  ],
)
def test_images_that_do_not_fit_are_named(shape, dtype, words):
  with pytest.raises(UserError) as error:
    Model('mu/16').init(jax.random.key(0), np.zeros(shape, dtype))
  for word in words:
    assert word in str(error.value)


def test_images_of_another_size_than_the_position_table_are_named():
  model, params = _tiny()
  with pytest.raises(UserError, match=r'for 2x3 patches.*images have 4x4'):
    _apply(model, params, np.zeros((1, 64, 64, 3), np.float32))


def test_the_final_norm_can_be_one_of_features():
  model, params = _tiny(pooling='mean', final_norm='features')
  outputs = _apply(model, params)
  x = np.asarray(outputs['tokens']).mean(axis=1)
  centred = x - x.mean(axis=-1, keepdims=True)
  x = centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-6)
  norm = params['norm']
  x = x * norm['scale'][None] + norm['bias'][None]
  np.testing.assert_allclose(outputs['features'], x, atol=1e-5)
  assert 'norm' not in params['encoder']
