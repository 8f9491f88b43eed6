"""Attention: implementations, masks and biases, dropout, sowing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import draws
from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import _attention


def test_every_attention_with_a_cpu_implementation_gives_the_same():
  x = draws.normal(2, 9, 16)
  outputs = {}
  for name in set(_attention.ATTENTIONS) - {'cudnn'}:
    module = _attention.Attention(num_heads=2, implementation=name)
    params = draws.params(module, x)

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

  def attend(query, key, value, *, implementation, mask, bias):
    assert mask is None and bias is None
    seen.append(implementation)
    return query

  monkeypatch.setattr(jax.nn, 'dot_product_attention', attend)
  module = _attention.Attention(num_heads=2, implementation=name)
  jax.eval_shape(module.init, jax.random.key(0), draws.normal(2, 9, 16))
  assert seen == [name]


def test_softmax_of_bfloat16_attention_is_in_float32():
  # In bfloat16 the logits 100 and 100.625 are 100 and 100.5.
  query = np.full((1, 1, 1, 1), 10, jnp.bfloat16)
  key = np.array([10, 10.0625], jnp.bfloat16).reshape(1, 2, 1, 1)
  weights = _attention.attention_weights(query, key)
  assert weights.dtype == jnp.bfloat16
  second = float(weights[0, 0, 0, 1])
  np.testing.assert_allclose(second, 1 / (1 + np.exp(-0.625)), rtol=0.005)


def test_a_bias_is_added_in_float32():
  # As above: 100.625 is no number of bfloat16.
  query = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
  key = jnp.ones((1, 2, 1, 1), jnp.bfloat16)
  bias = np.array([100.0, 100.625], np.float32).reshape(1, 1, 1, 2)
  weights = _attention.attention_weights(query, key, bias=bias)
  second = float(weights[0, 0, 0, 1])
  np.testing.assert_allclose(second, 1 / (1 + np.exp(-0.625)), rtol=0.005)
  # Its cast is explicit, so that users may forbid implicit ones.
  with jax.numpy_dtype_promotion('strict'):
    low = jnp.asarray([100.0, 100.5], jnp.bfloat16).reshape(1, 1, 1, 2)
    weights = _attention.attention_weights(query, key, bias=low)
  second = float(weights[0, 0, 0, 1])
  np.testing.assert_allclose(second, 1 / (1 + np.exp(-0.5)), rtol=0.005)


@pytest.mark.parametrize('name', _attention.ATTENTIONS)
def test_sown_weights_are_distributions_and_free_unless_asked_for(name):
  x, context = draws.normal(2, 4, 16), draws.normal(2, 7, 16, seed=1)
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
  x = draws.normal(1, 6, 8)
  module = _attention.Attention(
    num_heads=2, dropout_rate=0.5, implementation='xla'
  )
  params = draws.params(module, x)
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
  x = draws.normal(2, 5, 16)
  module = _attention.Attention(num_heads=2, qk_norm=True, qkv_bias=False)
  params = draws.params(module, x)['params']
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


def _masks():
  """Returns a mask [2, 1, 1, 6] and a bias [1, 2, 6, 6] for two heads."""
  mask = np.array([[True] * 4 + [False] * 2, [True] * 6])
  return mask[:, None, None], draws.normal(1, 2, 6, 6, seed=3)


@pytest.mark.parametrize('name', ['einsum', 'xla'])
def test_mask_and_bias_change_the_softmax_and_nothing_else(name):
  x = draws.normal(2, 6, 8)
  module = _attention.Attention(num_heads=2, implementation=name)
  params = draws.params(module, x)
  mask, bias = _masks()
  out = module.apply(params, x, mask=mask, bias=bias)
  p = jax.tree.map(np.float64, params['params'])
  query, key, value = (
    np.einsum('bld,dnk->bnlk', x, p[k]['kernel']) + p[k]['bias'][:, None]
    for k in ('query', 'key', 'value')
  )
  logits = query @ key.swapaxes(2, 3) / 2 + bias
  weights = np.exp(logits) * mask
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum('bnlk,nkd->bld', weights @ value, p['out']['kernel'])
  np.testing.assert_allclose(out, expected + p['out']['bias'], atol=2e-6)


def test_masked_tokens_change_no_other_token():
  x = draws.normal(2, 6, 8)
  module = _attention.Attention(num_heads=2)
  params = draws.params(module, x)
  mask = np.array([True] * 4 + [False] * 2)[None, None, None]
  out = module.apply(params, x, mask=mask)[:, :4]
  np.testing.assert_allclose(out, module.apply(params, x[:, :4]), atol=1e-6)
  other = np.concatenate([x[:, :4], 100 * x[:, 4:]], axis=1)
  np.testing.assert_array_equal(
    out, module.apply(params, other, mask=mask)[:, :4]
  )


def test_a_token_that_may_read_nothing_is_finite():
  x = draws.normal(1, 3, 8)
  module = _attention.Attention(num_heads=2)
  params = draws.params(module, x)
  mask = np.zeros((1, 1, 3, 3), bool)

  def loss(params):
    return (module.apply(params, x, mask=mask) ** 2).sum()

  value, grads = jax.value_and_grad(loss)(params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads)))


@pytest.mark.parametrize(
  'options, words',
  [
    (dict(mask=np.ones((2, 6), bool)), ['mask', '[2, 2, 6, 6]', '(2, 6)']),
    (dict(mask=np.ones((2, 1, 6, 6))), ['booleans', 'float']),
    (dict(bias=np.ones((1, 3, 6, 6))), ['bias', '(1, 3, 6, 6)']),
  ],
)
def test_masks_and_biases_of_another_shape_are_named(options, words):
  module = _attention.Attention(num_heads=2)
  with pytest.raises(UserError) as error:
    module.init(jax.random.key(0), draws.normal(2, 6, 8), **options)
  for word in words:
    assert word in str(error.value)
