"""LayerNorm with float32 statistics, for all our models."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.parallel import activations


def layer_norm(epsilon: float, dtype: Any, name: str, use_bias: bool = True):
  """Returns a LayerNorm with float32 statistics.

  The variance is the mean of squared deviations: flax's default, the mean of
  squares minus the square of the mean, loses 1e-3 on inputs of mean 50. On a
  TPU it is `FusedLayerNorm`, which uses that mean for inputs in bfloat16 alone:
  they round by 0.1 there.
  """
  if activations.platform() == 'tpu':
    return FusedLayerNorm(epsilon, dtype, use_bias, name=name)
  return nn.LayerNorm(
    epsilon=epsilon,
    dtype=dtype,
    use_bias=use_bias,
    use_fast_variance=False,
    name=name,
  )


@jax.custom_jvp
def materialize_gradient(x):
  """Returns `x`; on CPUs, its gradient is computed once for all its readers.

  Measured on a CPU: XLA otherwise merges the gradient of a norm, and with it
  the sum over all later blocks that is the gradient of the residual stream,
  into each of the matrix products that read it. That is half of a training
  step. Elsewhere a barrier would only prevent fusion.
  """
  return x


@materialize_gradient.defjvp
def _materialize_gradient_jvp(primals, tangents):
  if not activations.is_on_cpu():
    return primals[0], tangents[0]
  return primals[0], jax.lax.optimization_barrier(tangents[0])


class FusedLayerNorm(nn.Module):
  """`nn.LayerNorm` whose sums XLA for TPUs can fuse into matrix products.

  All sums of a direction are over one array, so that the product that makes
  this array can return them as well: forward the mean and the mean of squares,
  backward those of the gradient and of its product with the output. The
  derivative that XLA would make reads both arrays once more.

  Attributes:
    epsilon: added to the variance.
    dtype: of the output.
    use_bias: whether a bias is added.
  """

  epsilon: float
  dtype: Any
  use_bias: bool = True

  @nn.compact
  def __call__(self, x):
    shape = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = jnp.zeros(shape)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, shape)
    return normalize(x, scale, bias, self.epsilon, jnp.dtype(self.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(x, scale_D, bias_D, epsilon: float, dtype: Any):
  """Returns `(x - mean) / sqrt(variance + epsilon) * scale + bias`.

  Args:
    x: `[..., D]`; mean and variance are over D.
    scale_D: float32.
    bias_D: float32.
    epsilon: positive.
    dtype: of the result; all else is float32.
  """
  return _normalize(x, scale_D, bias_D, epsilon, dtype)[0]


def _normalize(x, scale_D, bias_D, epsilon, dtype):
  x32 = x.astype(jnp.float32)
  mean = x32.mean(axis=-1, keepdims=True)
  if x.dtype == jnp.bfloat16:
    squares = (x32 * x32).mean(axis=-1, keepdims=True)
    variance = jnp.maximum(squares - mean * mean, 0)
  else:
    variance = ((x32 - mean) ** 2).mean(axis=-1, keepdims=True)
  factor = jax.lax.rsqrt(variance + epsilon)
  whole = (None,) * (x.ndim - 1)
  y = (x32 - mean) * factor * scale_D[whole] + bias_D[whole]
  return y.astype(dtype), (x, mean, factor, scale_D)


def _normalize_backward(epsilon, dtype, saved, d_y):
  x, mean, factor, scale_D = saved
  whole, rows = (None,) * (x.ndim - 1), tuple(range(x.ndim - 1))
  d_y = d_y.astype(jnp.float32)
  normal = (x.astype(jnp.float32) - mean) * factor
  d_normal = d_y * scale_D[whole]
  d_mean = d_normal.mean(axis=-1, keepdims=True)
  d_factor = (d_normal * normal).mean(axis=-1, keepdims=True)
  d_x = factor * (d_normal - d_mean - normal * d_factor)
  d_scale_D, d_bias_D = (d_y * normal).sum(rows), d_y.sum(rows)
  return d_x.astype(x.dtype), d_scale_D, d_bias_D


normalize.defvjp(_normalize, _normalize_backward)
