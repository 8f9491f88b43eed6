"""Attention pooling against its definition, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.models import _pooling

B, L, D, N, F = 2, 5, 8, 2, 12


def _pool(**options):
  module = _pooling.MapPooling(num_heads=N, mlp_dim=F, **options)
  tokens = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)
  params = module.init(jax.random.key(0), tokens)['params']
  noise = np.random.default_rng(1)
  params = jax.tree.map(
    lambda p: (p + 0.3 * noise.normal(size=p.shape)).astype(np.float32), params
  )
  return module, params, tokens


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _oracle(params, tokens):
  """Returns big_vision's MAPHead, in float64, one image and head at a time."""
  p = {k: np.asarray(v, np.float64) for k, v in trees.flatten(params).items()}
  pooled = []
  for x in tokens.astype(np.float64):
    heads = []
    for n in range(N):
      query, key, value = (
        inputs @ p[f'attention/{k}/kernel'][:, n] + p[f'attention/{k}/bias'][n]
        for k, inputs in (
          ('query', p['probe'][0]),
          ('key', x),
          ('value', x),
        )
      )
      weights = _softmax(query @ key.T / np.sqrt(D // N))
      heads.append(weights @ value @ p['attention/out/kernel'][n])
    y = sum(heads)[0] + p['attention/out/bias']
    z = (y - y.mean()) / np.sqrt(y.var() + 1e-6)
    z = z * p['norm/scale'] + p['norm/bias']
    z = z @ p['mlp/up/kernel'] + p['mlp/up/bias']
    cubic = np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)
    z = 0.5 * z * (1 + np.tanh(cubic))
    pooled.append(y + z @ p['mlp/down/kernel'] + p['mlp/down/bias'])
  return np.stack(pooled)


def test_the_mean_of_no_token_is_zero_and_not_nan():
  mask = np.array([[False] * L, [True, True, False, False, False]])
  tokens = np.random.default_rng(0).normal(size=(B, L, D)).astype(np.float32)
  mean = _pooling.masked_mean(jnp.asarray(tokens), jnp.asarray(mask))
  np.testing.assert_array_equal(mean[0], np.zeros(D))
  np.testing.assert_allclose(mean[1], tokens[1, :2].mean(axis=0), rtol=1e-5)


def test_map_pooling_is_attention_of_a_probe_plus_an_mlp():
  module, params, tokens = _pool()
  features = module.apply({'params': params}, tokens)
  assert features.shape == (B, D) and features.dtype == jnp.float32
  np.testing.assert_allclose(features, _oracle(params, tokens), atol=2e-6)


def test_map_pooling_does_not_depend_on_the_order_of_tokens():
  module, params, tokens = _pool()
  features = module.apply({'params': params}, tokens)
  shuffled = module.apply({'params': params}, tokens[:, ::-1])
  np.testing.assert_allclose(features, shuffled, atol=1e-6)


def test_map_pooling_in_bfloat16_keeps_float32_parameters():
  module, params, tokens = _pool(dtype='bfloat16')
  dtypes = {p.dtype for p in jax.tree.leaves(params)}
  assert dtypes == {np.dtype('float32')}
  features = module.apply({'params': params}, tokens)
  assert features.dtype == jnp.bfloat16
  # Eight bits of mantissa, through four matrix products.
  error = np.abs(features.astype(np.float32) - _oracle(params, tokens))
  assert 0 < error.max() < 0.1


@pytest.mark.parametrize('bias', [True, False])
def test_qkv_bias_is_an_option_of_the_pool_too(bias):
  _, params, _ = _pool(qkv_bias=bias)
  assert ('bias' in params['attention']['query']) == bias
  assert 'bias' in params['attention']['out']
