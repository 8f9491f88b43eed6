"""The Transformer encoder: attention, MLP, block, and the stack of blocks.

Shapes: B batch, L tokens (S where attention reads them), D width, N heads,
K head size, F MLP width. Parameters are float32. `dtype` is what is computed
in, except for the statistics of norms and the softmax: those are float32.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# The backward pass computes them again from their input, which is cheaper than
# reading the two or three arrays [B, L, F] that it would be given otherwise.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  # Google's ViT and big_vision.
  'gelu_tanh': jax.checkpoint(lambda x: nn.gelu(x, approximate=True)),
  # The exact one: timm, DeiT, DINO, MAE.
  'gelu': jax.checkpoint(lambda x: nn.gelu(x, approximate=False)),
  # OpenAI's CLIP.
  'gelu_quick': jax.checkpoint(lambda x: x * nn.sigmoid(1.702 * x)),
}

ATTENTIONS = ('einsum', 'xla', 'cudnn')

# 'full' recomputes all but a block's input; the other names are those of
# jax.checkpoint_policies that are policies, not makers of policies.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {'full': None} | {
  name: getattr(jax.checkpoint_policies, name)
  for name in (
    'nothing_saveable',
    'dots_saveable',
    'dots_with_no_batch_dims_saveable',
    'everything_saveable',
  )
}


def layer_norm(epsilon: float, dtype: Any, name: str, use_bias: bool = True):
  """Returns a LayerNorm with float32 statistics.

  The variance is the mean of squared deviations: flax's default, the mean of
  squares minus the square of the mean, loses 1e-3 on inputs of mean 50.
  """
  return nn.LayerNorm(
    epsilon=epsilon,
    dtype=dtype,
    use_bias=use_bias,
    use_fast_variance=False,
    name=name,
  )


@jax.custom_jvp
def gradient_once(x):
  """Returns `x`, whose gradient is computed once however many read it.

  Left to itself, XLA for a CPU merges the gradient of a norm, and with it the
  sum over all later blocks that is the gradient of the residual stream, into
  each of the matrix products that read it. That is half of a training step.
  """
  return x


@gradient_once.defjvp
def _gradient_once_jvp(primals, tangents):
  return primals[0], jax.lax.optimization_barrier(tangents[0])


class PatchEmbedding(nn.Module):
  """Cuts images into patches and maps each to a token.

  A convolution whose stride is its window, written as the matrix product that
  it is. The kernel has the convolution's shape, `[height, width, C, D]`.

  Attributes:
    patch_size: (height, width), which divide the image's.
    width: D.
    dtype: what is computed in.
  """

  patch_size: tuple[int, int]
  width: int
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, image_BHWC):
    """Returns a grid of tokens, `[B, rows, columns, D]`."""
    B, H, W, C = image_BHWC.shape
    P, Q = self.patch_size
    shape = (P, Q, C, self.width)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    patches = image_BHWC.astype(self.dtype).reshape(B, H // P, P, W // Q, Q, C)
    patches = patches.swapaxes(2, 3).reshape(B, H // P, W // Q, P * Q * C)
    kernel = kernel.astype(self.dtype).reshape(P * Q * C, self.width)
    return patches @ kernel + bias.astype(self.dtype)[None, None, None]


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
    implementation: 'einsum' is written out here; 'xla' and 'cudnn' are those of
      `jax.nn.dot_product_attention`. Sowing and dropout always use 'einsum'.
    dtype: what is computed in.
  """

  num_heads: int
  dropout_rate: float = 0.0
  qkv_bias: bool = True
  qk_norm: bool = False
  norm_epsilon: float = 1e-6
  implementation: str = 'einsum'
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, x_BLD, context_BSD=None, *, train: bool = False):
    context_BSD = x_BLD if context_BSD is None else context_BSD
    query_BLNK = self._project(x_BLD, 'query')
    key_BSNK = self._project(context_BSD, 'key')
    value_BSNK = self._project(context_BSD, 'value')
    if self.qk_norm:
      norm = dict(epsilon=self.norm_epsilon, dtype=self.dtype, use_bias=False)
      query_BLNK = layer_norm(name='query_norm', **norm)(query_BLNK)
      key_BSNK = layer_norm(name='key_norm', **norm)(key_BSNK)

    explicit = (
      self.implementation == 'einsum'
      or self.is_mutable_collection('intermediates')
      or (train and self.dropout_rate > 0)
    )
    if explicit:
      weights_BNLS = attention_weights(query_BLNK, key_BSNK)
      self.sow('intermediates', 'attention_weights', weights_BNLS)
      dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
      out_BLNK = weighted_values(dropout(weights_BNLS), value_BSNK)
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

  def _project(self, x_BLD, name: str):
    return nn.DenseGeneral(
      (self.num_heads, x_BLD.shape[-1] // self.num_heads),
      use_bias=self.qkv_bias,
      kernel_init=nn.initializers.xavier_uniform(),
      dtype=self.dtype,
      name=name,
    )(x_BLD)


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


class Mlp(nn.Module):
  """Two dense layers with an activation between them, D -> F -> D."""

  dim: int
  dropout_rate: float = 0.0
  activation: str = 'gelu_tanh'
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, x_BLD, *, train: bool = False):
    x_BLF = self._dense(self.dim, 'up')(x_BLD)
    x_BLF = ACTIVATIONS[self.activation](x_BLF)
    x_BLF = nn.Dropout(self.dropout_rate, deterministic=not train)(x_BLF)
    return self._dense(x_BLD.shape[-1], 'down')(x_BLF)

  def _dense(self, features: int, name: str):
    return nn.Dense(
      features,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(1e-6),
      dtype=self.dtype,
      name=name,
    )


class Block(nn.Module):
  """A pre-norm block: `x + f(norm(x))` for attention, then for the MLP.

  Attributes:
    num_heads: heads of attention.
    mlp_dim: F.
    dropout_rate: after attention, and inside and after the MLP.
    attention_dropout_rate: of attention weights.
    layer_scale: what the learned factors per channel of both branches start
      from (CaiT, https://arxiv.org/abs/2103.17239), or None for no factors.
    qk_norm, qkv_bias, attention, activation, norm_epsilon, dtype: as in
      `Attention` and `Mlp`.
  """

  num_heads: int
  mlp_dim: int
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  layer_scale: float | None = None
  qk_norm: bool = False
  qkv_bias: bool = True
  attention: str = 'einsum'
  activation: str = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, x_BLD, drop_rate=None, train: bool = False):
    """Returns the tokens after the block.

    Args:
      x_BLD: the tokens.
      drop_rate: the probability that an example skips a branch; may be traced.
        None for never.
      train: whether anything is dropped.
    """
    norm = layer_norm(self.norm_epsilon, self.dtype, 'norm_attention')
    y_BLD = Attention(
      num_heads=self.num_heads,
      dropout_rate=self.attention_dropout_rate,
      qkv_bias=self.qkv_bias,
      qk_norm=self.qk_norm,
      norm_epsilon=self.norm_epsilon,
      implementation=self.attention,
      dtype=self.dtype,
      name='attention',
    )(norm(gradient_once(x_BLD)), train=train)
    x_BLD = x_BLD + self._branch(y_BLD, 'scale_attention', drop_rate, train)

    norm = layer_norm(self.norm_epsilon, self.dtype, 'norm_mlp')
    y_BLD = Mlp(
      dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      activation=self.activation,
      dtype=self.dtype,
      name='mlp',
    )(norm(gradient_once(x_BLD)), train=train)
    return x_BLD + self._branch(y_BLD, 'scale_mlp', drop_rate, train)

  def _branch(self, y_BLD, scale_name: str, drop_rate, train: bool):
    y_BLD = nn.Dropout(self.dropout_rate, deterministic=not train)(y_BLD)
    if self.layer_scale is not None:
      init = nn.initializers.constant(self.layer_scale)
      scale_D = self.param(scale_name, init, y_BLD.shape[-1:])
      y_BLD = y_BLD * scale_D.astype(self.dtype)[None, None]
    if train and drop_rate is not None:
      y_BLD = drop_examples(self.make_rng('dropout'), y_BLD, drop_rate)
    return y_BLD


def drop_examples(rng, x, rate):
  """Returns `x` with whole examples zeroed and the rest scaled to compensate.

  Stochastic depth (https://arxiv.org/abs/1603.09382) in its inverted form: the
  expected value is `x`, so that nothing changes in evaluation.

  Args:
    rng: a key.
    x: `[B, ...]`.
    rate: the probability of being zeroed, in [0, 1); may be traced.
  """
  shape = x.shape[:1] + (1,) * (x.ndim - 1)
  kept = jax.random.bernoulli(rng, 1 - rate, shape)
  return x * (kept / (1 - rate)).astype(x.dtype)


class Encoder(nn.Module):
  """Blocks and a final norm; the output is float32.

  Attributes:
    depth: number of blocks.
    block: keyword arguments of `Block`.
    stochastic_depth_rate: of the last block; linear from 0 in the first.
    scan: one block with stacked parameters `[depth, ...]`, so that the time to
      compile does not grow with the depth. The numbers stay the same.
    remat: of REMAT_POLICIES: what the backward pass need not compute again.
      None keeps everything that it uses.
    final_norm: whether there is a norm after the last block.
  """

  depth: int
  block: Mapping[str, Any]
  stochastic_depth_rate: float = 0.0
  scan: bool = False
  remat: str | None = None
  final_norm: bool = True

  @nn.compact
  def __call__(self, x_BLD, *, train: bool = False):
    make_block = Block
    if self.remat is not None:
      make_block = nn.remat(
        Block,
        policy=REMAT_POLICIES[self.remat],
        # A scan's loop already keeps XLA from merging the two computations.
        prevent_cse=not self.scan,
        static_argnums=(3,),  # train; self is 0.
      )
    drop_rates = None
    if train and self.stochastic_depth_rate > 0:
      drop_rates = np.linspace(
        0, self.stochastic_depth_rate, self.depth, dtype=np.float32
      )

    if self.scan:
      x_BLD, _ = nn.scan(
        lambda block, x_BLD, rate: (block(x_BLD, rate, train), None),
        variable_axes={'params': 0, 'intermediates': 0},
        split_rngs={'params': True, 'dropout': True},
        length=self.depth,
      )(make_block(**self.block, name='blocks'), x_BLD, drop_rates)
    else:
      for i in range(self.depth):
        block = make_block(**self.block, name=f'block_{i:02d}')
        rate = None if drop_rates is None else drop_rates[i]
        x_BLD = block(x_BLD, rate, train)
    if not self.final_norm:
      return x_BLD.astype(jnp.float32)
    norm = layer_norm(self.block['norm_epsilon'], 'float32', 'norm')
    return norm(gradient_once(x_BLD))
