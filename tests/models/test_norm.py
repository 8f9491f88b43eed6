"""The LayerNorm for TPUs is the one of other devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.models import vit
from vit_jax.models._norm import (
  FusedLayerNorm,
  layer_norm,
  materialize_gradient,
)


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


# Sums in another order; bfloat16 keeps 8 bits of numbers up to 4.
@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 2e-6), ('bfloat16', 0.02)]
)
@pytest.mark.parametrize('use_bias', [True, False])
def test_output_and_gradients_are_those_of_flax(dtype, tolerance, use_bias):
  x = (_normal(0, 2, 5, 32) * 3 + 1).astype(dtype)
  d_y = _normal(1, 2, 5, 32).astype(dtype)
  flax = layer_norm(1e-6, dtype, None, use_bias)
  ours = FusedLayerNorm(1e-6, dtype, use_bias)
  params = flax.init(jax.random.key(0), x)
  jax.tree.map(
    np.testing.assert_array_equal, params, ours.init(jax.random.key(0), x)
  )
  params = jax.tree.map(lambda p: p + 0.3 * _normal(2, *p.shape), params)
  expected, backward = jax.vjp(flax.apply, params, x)
  found, ours_backward = jax.vjp(ours.apply, params, x)
  assert found.dtype == expected.dtype

  def close(one, other):
    one, other = (np.asarray(z, np.float32) for z in (one, other))
    np.testing.assert_allclose(one, other, atol=tolerance, rtol=tolerance)

  close(found, expected)
  jax.tree.map(close, ours_backward(d_y), backward(d_y))


@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 3e-5), ('bfloat16', 0.02)]
)
def test_it_is_exact_far_from_zero(dtype, tolerance):
  x = jnp.asarray(50 + _normal(0, 4, 64), dtype)
  module = FusedLayerNorm(1e-6, dtype)
  y = module.apply(module.init(jax.random.key(0), x), x)
  x = np.asarray(x, np.float64)
  expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  np.testing.assert_allclose(
    np.asarray(y, np.float64), expected, atol=tolerance
  )


def test_a_constant_input_has_no_variance_below_zero():
  x = jnp.full((1, 7), 1e4 / 3, jnp.bfloat16)
  module = FusedLayerNorm(1e-6, 'float32')
  y = module.apply(module.init(jax.random.key(0), x), x)
  assert np.isfinite(y).all()


@pytest.mark.parametrize('final_norm', ['tokens', 'features'])
def test_the_final_norm_adds_the_epsilon_of_the_model(final_norm):
  """Against NumPy, with an epsilon as large as the variance."""
  model = vit.Model(
    'mu/8', pooling='mean', norm_epsilon=1.0, final_norm=final_norm
  )
  image = np.asarray(_normal(0, 2, 16, 16, 3))
  params = trees.flatten(model.init(jax.random.key(1), image)['params'])
  params = {
    k: np.asarray(0.3 * _normal(2, *x.shape)) for k, x in params.items()
  }
  for name in params:
    if '/attention/out/' in name or '/mlp/down/' in name:
      params[name] = np.zeros_like(params[name])  # The block adds nothing.
  found = model.apply({'params': trees.unflatten(params)}, image)

  patches = image.reshape(2, 2, 8, 2, 8, 3)
  x = np.einsum('bhpwqc,pqcd->bhwd', patches, params['patch_embedding/kernel'])
  x += params['patch_embedding/bias'] + params['position_embedding']
  x = x.reshape(2, 4, 32)
  if final_norm == 'features':
    x = x.mean(axis=1)
  name = {'tokens': 'encoder/norm', 'features': 'norm'}[final_norm]
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1.0)
  x = x * params[f'{name}/scale'] + params[f'{name}/bias']
  if final_norm == 'tokens':
    x = x.mean(axis=1)
  np.testing.assert_allclose(found['features'], x, atol=2e-6)


@pytest.mark.parametrize(
  'dtype, tolerance', [('float32', 3e-5), ('bfloat16', 0.02)]
)
def test_layer_norm_is_exact_far_from_zero(dtype, tolerance):
  # One pass over squares would be wrong by 1e-3, bfloat16 statistics by 0.1.
  x = jnp.asarray(50 + _normal(0, 4, 64), dtype)
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


def test_materialize_gradient_is_the_identity_in_every_derivative():
  def f(x):
    return (materialize_gradient(x) ** 3).sum()

  x = _normal(0, 4, 3)
  np.testing.assert_array_equal(materialize_gradient(x), x)
  gradient = jax.vmap(jax.grad(f))(x)
  np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-6)
  _, change = jax.jvp(f, (x,), (np.ones_like(x),))
  np.testing.assert_allclose(change, (3 * x**2).sum(), rtol=1e-6)
  # Forward over reverse, as in a Hessian-vector product.
  _, product = jax.jvp(jax.grad(f), (x,), (np.ones_like(x),))
  np.testing.assert_allclose(product, 6 * x, rtol=1e-6)
