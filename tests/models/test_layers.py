"""Layers: numeric traps, attention, dropping, and what gradients keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.models import _attention, _layers
from vit_jax.models._norm import layer_norm

BLOCK = dict(num_heads=2, mlp_dim=24, norm_epsilon=1e-6)


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
  module = _layers.PatchEmbedding((3, 10), width=7)
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
  module = _layers.ConvStem(num_convolutions=2, width=6)
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


@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 3e-5), ('bfloat16', 0.02)]
)
def test_layer_norm_is_exact_far_from_zero(dtype, tolerance):
  # One pass over squares would be wrong by 1e-3, bfloat16 statistics by 0.1.
  x = jnp.asarray(50 + _normal(4, 64), dtype)
  module = layer_norm(1e-6, dtype, name=None)
  y = module.apply(module.init(jax.random.key(0), x), x)
  assert y.dtype == dtype
  x = np.asarray(x, np.float64)
  expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  np.testing.assert_allclose(
    np.asarray(y, np.float64), expected, atol=tolerance
  )


def test_layer_norm_epsilon_is_added_to_the_variance():
  x = np.array([[-1e-3, 1e-3]], np.float32)  # variance 1e-6
  module = layer_norm(3e-6, 'float32', name=None)
  y = module.apply(module.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(y, [[-0.5, 0.5]], rtol=1e-5)


@pytest.mark.parametrize(
  'name, at_one',
  [
    # 0.5 (1 + erf(1/sqrt 2)); its tanh approximation; 1 / (1 + e^-1.702).
    ('gelu', 0.8413447),
    ('gelu_tanh', 0.8411920),
    ('gelu_quick', 0.8457957),
  ],
)
def test_activations_have_their_values_at_one(name, at_one):
  np.testing.assert_allclose(_layers.ACTIVATIONS[name](1.0), at_one, rtol=1e-6)
  assert _layers.ACTIVATIONS[name](0.0) == 0


@pytest.mark.parametrize('name', _layers.ACTIVATIONS)
def test_activations_keep_only_their_input_for_the_backward_pass(name):
  x = _normal(3, 5)
  _, backward = jax.vjp(_layers.ACTIVATIONS[name], x)
  kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape == x.shape]
  assert len(kept) == 1
  np.testing.assert_array_equal(kept[0], x)
  step = np.float32(1e-2)
  f = _layers.ACTIVATIONS[name]
  slope = (f(x + step) - f(x - step)) / (2 * step)
  np.testing.assert_allclose(backward(np.ones_like(x))[0], slope, atol=1e-4)


def test_every_attention_with_a_cpu_implementation_gives_the_same():
  x = _normal(2, 9, 16)
  outputs = {}
  for name in set(_attention.ATTENTIONS) - {'cudnn'}:
    module = _attention.Attention(num_heads=2, implementation=name)
    params = _noisy(module.init(jax.random.key(0), x))

    def loss(params, x, module=module):
      return (module.apply(params, x) ** 2).sum()

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    outputs[name] = grad(params, x)
  reference = outputs.pop('xla')
  for other in outputs.values():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      reference,
      other,
    )


@pytest.mark.parametrize('name', ['xla', 'cudnn'])
def test_a_named_implementation_is_handed_to_jax(name, monkeypatch):
  seen = []

  def attend(query, key, value, *, implementation):
    seen.append(implementation)
    return query

  monkeypatch.setattr(jax.nn, 'dot_product_attention', attend)
  module = _attention.Attention(num_heads=2, implementation=name)
  jax.eval_shape(module.init, jax.random.key(0), _normal(2, 9, 16))
  assert seen == [name]


def test_softmax_of_bfloat16_attention_is_in_float32():
  # In bfloat16 the logits 100 and 100.625 are 100 and 100.5.
  query = np.full((1, 1, 1, 1), 10, jnp.bfloat16)
  key = np.array([10, 10.0625], jnp.bfloat16).reshape(1, 2, 1, 1)
  weights = _attention.attention_weights(query, key)
  assert weights.dtype == jnp.bfloat16
  second = float(weights[0, 0, 0, 1])
  np.testing.assert_allclose(second, 1 / (1 + np.exp(-0.625)), rtol=0.005)


@pytest.mark.parametrize('name', _attention.ATTENTIONS)
def test_sown_weights_are_distributions_and_free_unless_asked_for(name):
  x, context = _normal(2, 4, 16), _normal(2, 7, 16, seed=1)
  module = _attention.Attention(num_heads=2, implementation=name)
  params = _attention.Attention(num_heads=2).init(jax.random.key(0), x, context)
  assert set(params) == {'params'}
  out, sown = module.apply(params, x, context, mutable=['intermediates'])
  (weights,) = sown['intermediates']['attention_weights']
  assert weights.shape == (2, 2, 4, 7)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
  assert weights.min() > 0
  if name != 'cudnn':
    plain = module.apply(params, x, context)
    np.testing.assert_allclose(out, plain, atol=1e-6)


def test_attention_dropout_keeps_the_expected_output():
  x = _normal(1, 6, 8)
  module = _attention.Attention(
    num_heads=2, dropout_rate=0.5, implementation='xla'
  )
  params = module.init(jax.random.key(0), x)
  plain = module.apply(params, x)
  np.testing.assert_array_equal(plain, module.apply(params, x, train=False))

  def dropped(key):
    return module.apply(params, x, train=True, rngs={'dropout': key})

  outs = jax.jit(jax.vmap(dropped))(jax.random.split(jax.random.key(1), 4000))
  assert outs.std(axis=0).min() > 0.01
  # The mean of 4000 has an error of 1/63 of a standard deviation.
  error = np.abs(outs.mean(axis=0) - plain) / outs.std(axis=0)
  assert error.max() < 5 / 63


def test_qk_norm_makes_logits_independent_of_the_size_of_queries():
  x = _normal(2, 5, 16)
  module = _attention.Attention(num_heads=2, qk_norm=True, qkv_bias=False)
  params = module.init(jax.random.key(0), x)['params']
  assert set(trees.flatten(params)) == {
    'query/kernel',
    'query_norm/scale',
    'key/kernel',
    'key_norm/scale',
    'value/kernel',
    'out/kernel',
    'out/bias',
  }
  assert params['query_norm']['scale'].shape == (8,)
  larger = params | {'query': {'kernel': 100 * params['query']['kernel']}}
  outs = [module.apply({'params': p}, x) for p in (params, larger)]
  np.testing.assert_allclose(outs[0], outs[1], atol=1e-5)


def test_dropped_examples_are_all_zero_and_the_others_make_up_for_them():
  x = 1 + np.abs(_normal(2000, 3, 2))
  y = _layers.drop_examples(jax.random.key(0), x, 0.25)
  ratio = np.asarray(y / x)
  kept = ratio[:, 0, 0] > 0
  np.testing.assert_array_equal(ratio[~kept], 0)
  np.testing.assert_allclose(ratio[kept], 1 / 0.75, rtol=1e-6)
  # 2000 draws of probability 3/4: a standard deviation of 1 %.
  assert abs(kept.mean() - 0.75) < 0.04


def test_a_block_that_always_drops_is_the_identity_in_training_only():
  x = _normal(2, 5, 16)
  block = _layers.Block(**BLOCK)
  params = block.init(jax.random.key(0), x)
  rngs = {'dropout': jax.random.key(1)}
  almost_one = np.float32(1 - 1e-6)
  out = block.apply(params, x, almost_one, True, rngs=rngs)
  np.testing.assert_array_equal(out, x)
  out = block.apply(params, x, almost_one, False)
  np.testing.assert_array_equal(out, block.apply(params, x))
  assert np.abs(out - x).min() > 0


def test_layer_scale_multiplies_each_branch():
  x = _normal(2, 5, 16)
  plain = _layers.Block(**BLOCK)
  params = _noisy(plain.init(jax.random.key(0), x))['params']
  scaled = _layers.Block(**BLOCK, layer_scale=0.5)
  init = scaled.init(jax.random.key(0), x)['params']
  np.testing.assert_array_equal(init['scale_attention'], np.full(16, 0.5))
  np.testing.assert_array_equal(init['scale_mlp'], np.full(16, 0.5))
  zero, one = np.zeros(16, np.float32), np.ones(16, np.float32)

  def apply(_attention, mlp):
    scales = dict(scale_attention=_attention, scale_mlp=mlp)
    return scaled.apply({'params': params | scales}, x)

  expected = plain.apply({'params': params}, x)
  np.testing.assert_allclose(apply(one, one), expected, atol=1e-6)
  np.testing.assert_array_equal(apply(zero, zero), x)
  attention, both = apply(one, zero), apply(one, one)
  np.testing.assert_allclose(
    apply(one, one / 2), (attention + both) / 2, atol=1e-6
  )


def test_gradient_once_is_the_identity_in_both_modes_of_differentiation():
  def f(x):
    return (_layers.gradient_once(x) ** 3).sum()

  x = _normal(4, 3)
  np.testing.assert_array_equal(_layers.gradient_once(x), x)
  gradient = jax.vmap(jax.grad(f))(x)
  np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-6)
  _, change = jax.jvp(f, (x,), (np.ones_like(x),))
  np.testing.assert_allclose(change, (3 * x**2).sum(), rtol=1e-6)
  # Forward over reverse, as in a Hessian-vector product.
  _, product = jax.jvp(jax.grad(f), (x,), (np.ones_like(x),))
  np.testing.assert_allclose(product, 6 * x, rtol=1e-6)
