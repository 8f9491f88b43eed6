"""Multi-head attention by einsum, by `jax.nn`, or by a TPU kernel.

Shapes: B batch, L tokens (S where attention reads them), D width, N heads, K
head size, E = 3 D. Parameters are float32, `dtype` is that of the computation,
the softmax is float32.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError
from vit_jax.models import _attention_kernel, _init
from vit_jax.models._dropout import Dropout
from vit_jax.models._norm import layer_norm
from vit_jax.parallel.activations import constrain

# The name of the result of `_attention_kernel` in checkpoint policies.
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
    implementation: 'einsum' is written out here; 'auto' is the same, except on
      a TPU, where it is `_attention_kernel` if that fits; 'xla' and 'cudnn' are
      those of `jax.nn.dot_product_attention`. Sowing and dropout always use
      'einsum'; a mask or bias never uses the kernel.
    weight_init: a key of `_init.SCHEMES`.
    dtype: of the computation.
  """

  num_heads: int
  dropout_rate: float = 0.0
  qkv_bias: bool = True
  qk_norm: bool = False
  norm_epsilon: float = 1e-6
  implementation: str = 'auto'
  weight_init: str = 'google'
  dtype: Any = 'float32'

  @nn.compact
  def __call__(
    self, x_BLD, context_BSD=None, *, mask=None, bias=None, train: bool = False
  ):
    """Returns the tokens [B, L, D] after the output projection.

    Args:
      x_BLD: makes the queries.
      context_BSD: makes keys and values; None is `x_BLD`.
      mask: bool that broadcasts to [B, N, L, S], of rank 4: where it is False,
        the weight is 0. A token that may read nothing reads all equally.
      bias: floats of such a shape, added to the logits.
      train: whether weights are dropped.
    """
    plain = not (
      self.is_mutable_collection('intermediates')
      or (train and self.dropout_rate > 0)
    )
    if (
      self.implementation == 'auto'
      and plain
      and context_BSD is None
      and mask is None
      and bias is None
      and not self.qk_norm
      and _attention_kernel.fits(x_BLD.shape, self.dtype, self.num_heads)
    ):
      return self._by_kernel(x_BLD.astype(self.dtype))
    context_BSD = x_BLD if context_BSD is None else context_BSD
    _check(mask, bias, x_BLD, context_BSD, self.num_heads)
    query_BLNK = self._project(x_BLD, 'query')
    key_BSNK = self._project(context_BSD, 'key')
    value_BSNK = self._project(context_BSD, 'value')
    if self.qk_norm:
      norm = dict(epsilon=self.norm_epsilon, dtype=self.dtype, use_bias=False)
      query_BLNK = layer_norm(name='query_norm', **norm)(query_BLNK)
      key_BSNK = layer_norm(name='key_norm', **norm)(key_BSNK)

    if self.implementation in ('auto', 'einsum') or not plain:
      weights_BNLS = attention_weights(
        query_BLNK, key_BSNK, mask=mask, bias=bias
      )
      self.sow('intermediates', 'attention_weights', weights_BNLS)
      weights_BNLS = Dropout(self.dropout_rate)(weights_BNLS, train=train)
      out_BLNK = weighted_values(weights_BNLS, value_BSNK)
    else:
      out_BLNK = jax.nn.dot_product_attention(
        query_BLNK,
        key_BSNK,
        value_BSNK,
        bias=None if bias is None else bias.astype(self.dtype),
        mask=mask,
        implementation=self.implementation,
      )
    return nn.DenseGeneral(
      x_BLD.shape[-1],
      axis=(-2, -1),
      kernel_init=self._kernel_init,
      dtype=self.dtype,
      name='out',
    )(out_BLNK)

  def _by_kernel(self, x_BLD):
    """Returns the same by the TPU kernel, from one product for all heads."""
    D = x_BLD.shape[-1]
    heads = (self.num_heads, D // self.num_heads)
    parts = [
      Projection(
        heads, self.qkv_bias, self._kernel_init, dtype=self.dtype, name=name
      )(D)
      for name in ('query', 'key', 'value')
    ]
    kernels, biases = zip(*parts, strict=True)
    qkv_BLE = jnp.einsum('BLD,ED->BLE', x_BLD, jnp.concatenate(kernels))
    out_BLD = _attention_kernel.attention(qkv_BLE, biases[0], self.num_heads)
    out_BLD = checkpoint_name(out_BLD, KERNEL_OUTPUT)
    # As a matrix: with separate heads, [N, K], the compiler would transpose the
    # array before and after the kernel.
    kernel_NKD, bias_D = OutProjection(heads, self._kernel_init, name='out')(D)
    kernel_DD = kernel_NKD.reshape(D, D).astype(self.dtype)
    # A bias of keys changes nothing. That of values reaches every token as it
    # is, since weights add up to one.
    bias_D = bias_D.astype(self.dtype) + biases[2] @ kernel_DD
    return out_BLD @ kernel_DD + bias_D[None, None]

  def _project(self, x_BLD, name: str):
    x_BLNK = nn.DenseGeneral(
      (self.num_heads, x_BLD.shape[-1] // self.num_heads),
      use_bias=self.qkv_bias,
      kernel_init=self._kernel_init,
      dtype=self.dtype,
      name=name,
    )(x_BLD)
    return constrain(x_BLNK, 'BLNK')

  @property
  def _kernel_init(self):
    return _init.SCHEMES[self.weight_init].kernel


class Projection(nn.Module):
  """The parameters of a `DenseGeneral` to heads, as a matrix and a vector."""

  heads: tuple[int, int]
  use_bias: bool
  matrix_init: _init.Initializer
  dtype: Any

  @nn.compact
  def __call__(self, width: int):
    """Returns the kernel [N K, D] and the bias [N K], zeros without.

    The kernel is transposed, as a TPU stores [D, N, K] where K is small.
    """
    size = math.prod(self.heads)

    def kernel_init(rng):
      drawn = self.matrix_init(rng, (width, size))
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
  matrix_init: _init.Initializer

  @nn.compact
  def __call__(self, width: int):
    """Returns the kernel [N, K, D] and the bias [D]."""

    def kernel_init(rng):
      drawn = self.matrix_init(rng, (math.prod(self.heads), width))
      return drawn.reshape(*self.heads, width)

    kernel = self.param('kernel', kernel_init)
    return kernel, self.param('bias', nn.initializers.zeros, (width,))


def attention_weights(query_BLNK, key_BSNK, *, mask=None, bias=None):
  """Returns softmax(query key / sqrt(K) + bias), `[B, N, L, S]`.

  In the dtype of the query; the softmax is float32. Weights are 0 where `mask`
  is False.
  """
  # Heads before tokens: products of contiguous matrices take half the time on
  # a CPU; on a TPU it makes no difference.
  query_BNLK = query_BLNK.swapaxes(1, 2) * query_BLNK.shape[-1] ** -0.5
  logits_BNLS = jnp.einsum(
    'BNLK,BNSK->BNLS',
    query_BNLK,
    key_BSNK.swapaxes(1, 2),
    preferred_element_type=jnp.float32,
  )
  if bias is not None:
    logits_BNLS += bias.astype(jnp.float32)
  if mask is not None:
    # Not -inf: a token that may read nothing would become NaN.
    lowest = jnp.finfo(jnp.float32).min
    logits_BNLS = jnp.where(mask, logits_BNLS, lowest)
  return nn.softmax(logits_BNLS).astype(query_BLNK.dtype)


def weighted_values(weights_BNLS, value_BSNK):
  """Returns the sums of values by weight, `[B, L, N, K]`."""
  value_BNSK = value_BSNK.swapaxes(1, 2)
  out_BNLK = jnp.einsum('BNLS,BNSK->BNLK', weights_BNLS, value_BNSK)
  return out_BNLK.swapaxes(1, 2)


def _check(mask, bias, x_BLD, context_BSD, num_heads: int) -> None:
  shape = (x_BLD.shape[0], num_heads, x_BLD.shape[1], context_BSD.shape[1])
  for name, array, kind in (
    ('mask', mask, jnp.bool_),
    ('bias', bias, jnp.floating),
  ):
    if array is None:
      continue
    fits = array.ndim == 4 and all(
      size in (1, full) for size, full in zip(array.shape, shape, strict=True)
    )
    if not fits or not jnp.issubdtype(array.dtype, kind):
      words = 'booleans' if name == 'mask' else 'floats'
      raise UserError(
        f'{name} of attention: expected {words} that broadcast to'
        f' {list(shape)} (examples, heads, tokens, tokens that they read), of'
        f' rank 4; got {array.dtype} of shape {array.shape}'
      )
