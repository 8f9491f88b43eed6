"""Multi-head attention: written out, of a library, or in one kernel.

Shapes: B batch, L tokens (S where attention reads them), D width, N heads, K
head size, E = 3 D. Parameters are float32, `dtype` is what is computed in, the
softmax is float32.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vit_jax.models import _attention_kernel
from vit_jax.models._dropout import Dropout
from vit_jax.models._norm import layer_norm
from vit_jax.parallel.activations import constrain

# What a remat policy calls the result of `attention_kernel`.
KERNEL_OUTPUT = 'attention_kernel'

ATTENTIONS = ('auto', 'einsum', 'xla', 'cudnn')


class Attention(nn.Module):
  """Multi-head attention of `x_BLD` to `context_BSD`, or to itself.

  The weights [B, N, L, S] are sown as 'attention_weights' where the collection
  'intermediates' is mutable; where it is not, asking for them costs nothing.

  Attributes:
    num_heads: N, which divides D.
    dropout_rate: of the weights, in training.
    qkv_bias: whether query, key and value have one.
    qk_norm: a LayerNorm without bias over each head of query and key (ViT-22B,
      https://arxiv.org/abs/2302.05442, section 2.1).
    norm_epsilon: of these two norms.
    implementation: 'einsum' is written out here; 'auto' is the same, but on a
      TPU `attention_kernel` where that fits; 'xla' and 'cudnn' are those of
      `jax.nn.dot_product_attention`. Sowing and dropout always use 'einsum'.
    dtype: what is computed in.
  """

  num_heads: int
  dropout_rate: float = 0.0
  qkv_bias: bool = True
  qk_norm: bool = False
  norm_epsilon: float = 1e-6
  implementation: str = 'auto'
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, x_BLD, context_BSD=None, *, train: bool = False):
    plain = not (
      self.is_mutable_collection('intermediates')
      or (train and self.dropout_rate > 0)
    )
    if (
      self.implementation == 'auto'
      and plain
      and context_BSD is None
      and not self.qk_norm
      and _attention_kernel.fits(x_BLD.shape, self.dtype, self.num_heads)
    ):
      return self._in_one_kernel(x_BLD.astype(self.dtype))
    context_BSD = x_BLD if context_BSD is None else context_BSD
    query_BLNK = self._project(x_BLD, 'query')
    key_BSNK = self._project(context_BSD, 'key')
    value_BSNK = self._project(context_BSD, 'value')
    if self.qk_norm:
      norm = dict(epsilon=self.norm_epsilon, dtype=self.dtype, use_bias=False)
      query_BLNK = layer_norm(name='query_norm', **norm)(query_BLNK)
      key_BSNK = layer_norm(name='key_norm', **norm)(key_BSNK)

    if self.implementation in ('auto', 'einsum') or not plain:
      weights_BNLS = attention_weights(query_BLNK, key_BSNK)
      self.sow('intermediates', 'attention_weights', weights_BNLS)
      weights_BNLS = Dropout(self.dropout_rate)(weights_BNLS, train=train)
      out_BLNK = weighted_values(weights_BNLS, value_BSNK)
    else:
      out_BLNK = jax.nn.dot_product_attention(
        query_BLNK, key_BSNK, value_BSNK, implementation=self.implementation
      )
    return nn.DenseGeneral(
      x_BLD.shape[-1],
      axis=(-2, -1),
      kernel_init=nn.initializers.xavier_uniform(),
      dtype=self.dtype,
      name='out',
    )(out_BLNK)

  def _in_one_kernel(self, x_BLD):
    """Returns the same; query, key and value are one product."""
    D = x_BLD.shape[-1]
    heads = (self.num_heads, D // self.num_heads)
    parts = [
      Projection(heads, self.qkv_bias, dtype=self.dtype, name=name)(D)
      for name in ('query', 'key', 'value')
    ]
    kernels, biases = zip(*parts, strict=True)
    qkv_BLE = jnp.einsum('BLD,ED->BLE', x_BLD, jnp.concatenate(kernels))
    out_BLD = _attention_kernel.attention(qkv_BLE, biases[0], self.num_heads)
    out_BLD = checkpoint_name(out_BLD, KERNEL_OUTPUT)
    # One column of weights after the other: as heads, [N, K], the compiler
    # would turn the array around before and after the kernel.
    kernel_NKD, bias_D = OutProjection(heads, name='out')(D)
    kernel_DD = kernel_NKD.reshape(D, D).astype(self.dtype)
    # A bias of keys changes nothing. That of values reaches every token as it
    # is, since weights add up to one.
    bias_D = bias_D.astype(self.dtype) + biases[2] @ kernel_DD
    return out_BLD @ kernel_DD + bias_D[None, None]

  def _project(self, x_BLD, name: str):
    x_BLNK = nn.DenseGeneral(
      (self.num_heads, x_BLD.shape[-1] // self.num_heads),
      use_bias=self.qkv_bias,
      kernel_init=nn.initializers.xavier_uniform(),
      dtype=self.dtype,
      name=name,
    )(x_BLD)
    return constrain(x_BLNK, 'BLNK')


class Projection(nn.Module):
  """The parameters of a `DenseGeneral` to heads, as a matrix and a vector."""

  heads: tuple[int, int]
  use_bias: bool
  dtype: Any

  @nn.compact
  def __call__(self, width: int):
    """Returns the kernel [N K, D] and the bias [N K], zeros without.

    The kernel is turned around, as a TPU stores [D, N, K] where K is small.
    """
    size = math.prod(self.heads)

    def kernel_init(rng):
      drawn = nn.initializers.xavier_uniform()(rng, (width, size))
      return drawn.reshape(width, *self.heads)

    kernel_DNK = self.param('kernel', kernel_init)
    kernel = kernel_DNK.transpose(1, 2, 0).reshape(size, width)
    kernel = kernel.astype(self.dtype)
    if not self.use_bias:
      return kernel, jnp.zeros(size, self.dtype)
    bias = self.param('bias', nn.initializers.zeros, self.heads)
    return kernel, bias.reshape(-1).astype(self.dtype)


class OutProjection(nn.Module):
  """The parameters of a `DenseGeneral` from heads."""

  heads: tuple[int, int]

  @nn.compact
  def __call__(self, width: int):
    """Returns the kernel [N, K, D] and the bias [D]."""

    def kernel_init(rng):
      matrix = (math.prod(self.heads), width)
      drawn = nn.initializers.xavier_uniform()(rng, matrix)
      return drawn.reshape(*self.heads, width)

    kernel = self.param('kernel', kernel_init)
    return kernel, self.param('bias', nn.initializers.zeros, (width,))


def attention_weights(query_BLNK, key_BSNK):
  """Returns softmax(query key / sqrt(K)), `[B, N, L, S]`, in their dtype."""
  # Heads before tokens: products of matrices that lie in one piece take half
  # the time on a CPU, and a TPU does not care.
  query_BNLK = query_BLNK.swapaxes(1, 2) * query_BLNK.shape[-1] ** -0.5
  logits_BNLS = jnp.einsum(
    'BNLK,BNSK->BNLS',
    query_BNLK,
    key_BSNK.swapaxes(1, 2),
    preferred_element_type=jnp.float32,
  )
  return nn.softmax(logits_BNLS).astype(query_BLNK.dtype)


def weighted_values(weights_BNLS, value_BSNK):
  """Returns the sums of values by weight, `[B, L, N, K]`."""
  value_BNSK = value_BSNK.swapaxes(1, 2)
  out_BNLK = jnp.einsum('BNLS,BNSK->BNLK', weights_BNLS, value_BNSK)
  return out_BNLK.swapaxes(1, 2)
