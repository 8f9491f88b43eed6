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

from vit_jax.models._attention import KERNEL_OUTPUT, Attention
from vit_jax.models._dropout import Dropout
from vit_jax.models._norm import layer_norm
from vit_jax.parallel import activations
from vit_jax.parallel.activations import constrain


def _recomputed(activation):
  """Returns the activation, computed again in the backward pass.

  That is cheaper than to read the two or three arrays [B, L, F] that it would
  be given otherwise. On a TPU the compiler does so by itself, in the matrix
  products before and after, which `jax.checkpoint` would keep it from.
  """
  held = jax.checkpoint(activation)

  def apply(x):
    on_tpu = activations.platform() == 'tpu'
    return activation(x) if on_tpu else held(x)

  return apply


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  # Google's ViT and big_vision.
  'gelu_tanh': _recomputed(lambda x: nn.gelu(x, approximate=True)),
  # The exact one: timm, DeiT, DINO, MAE.
  'gelu': _recomputed(lambda x: nn.gelu(x, approximate=False)),
  # OpenAI's CLIP.
  'gelu_quick': _recomputed(lambda x: x * nn.sigmoid(1.702 * x)),
}


def _and_kernels(policy):
  """Returns the policy that also keeps what the attention kernel returns.

  To policies it is no product, but to compute it again costs two.
  """
  kernels = jax.checkpoint_policies.save_only_these_names(KERNEL_OUTPUT)
  return jax.checkpoint_policies.save_from_both_policies(policy, kernels)


# 'full' recomputes all but a block's input; the other names are those of
# jax.checkpoint_policies that are policies, not makers of policies.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
  'full': None,
  'nothing_saveable': jax.checkpoint_policies.nothing_saveable,
  'dots_saveable': _and_kernels(jax.checkpoint_policies.dots_saveable),
  'dots_with_no_batch_dims_saveable': _and_kernels(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  ),
  'everything_saveable': jax.checkpoint_policies.everything_saveable,
}


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
  if activations.platform() == 'tpu':
    return primals[0], tangents[0]
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


class ConvStem(nn.Module):
  """Maps images to tokens by 3x3 convolutions of stride 2, then a dense layer.

  The convolutional stem of "Early Convolutions Help Transformers See Better"
  (https://arxiv.org/abs/2106.14881): the channels double up to D, and each
  convolution is followed by a norm and an activation. The paper's norm is
  BatchNorm and its activation ReLU; here they are those of the blocks, so that
  the model has no state. The paper leaves out one block in exchange.

  Attributes:
    num_convolutions: each halves height and width.
    width: D, a multiple of `2 ** (num_convolutions - 1)`.
    activation, norm_epsilon, dtype: as in `Block`.
  """

  num_convolutions: int
  width: int
  activation: str = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, x_BHWC):
    """Returns a grid of tokens, `[B, rows, columns, D]`."""
    for i in range(self.num_convolutions):
      x_BHWC = nn.Conv(
        self.width >> (self.num_convolutions - 1 - i),
        kernel_size=(3, 3),
        strides=2,
        padding=1,
        use_bias=False,  # The norm has one.
        dtype=self.dtype,
        name=f'convolution_{i}',
      )(x_BHWC)
      norm = layer_norm(self.norm_epsilon, self.dtype, f'norm_{i}')
      x_BHWC = ACTIVATIONS[self.activation](norm(gradient_once(x_BHWC)))
    return nn.Dense(self.width, dtype=self.dtype, name='out')(x_BHWC)


class Mlp(nn.Module):
  """Two dense layers with an activation between them, D -> F -> D."""

  dim: int
  dropout_rate: float = 0.0
  activation: str = 'gelu_tanh'
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, x_BLD, *, train: bool = False):
    x_BLF = constrain(self._dense(self.dim, 'up')(x_BLD), 'BLF')
    x_BLF = ACTIVATIONS[self.activation](x_BLF)
    x_BLF = Dropout(self.dropout_rate)(x_BLF, train=train)
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
  attention: str = 'auto'
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
    x_BLD = constrain(x_BLD, 'BLD')

    norm = layer_norm(self.norm_epsilon, self.dtype, 'norm_mlp')
    y_BLD = Mlp(
      dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      activation=self.activation,
      dtype=self.dtype,
      name='mlp',
    )(norm(gradient_once(x_BLD)), train=train)
    x_BLD = x_BLD + self._branch(y_BLD, 'scale_mlp', drop_rate, train)
    return constrain(x_BLD, 'BLD')

  def _branch(self, y_BLD, scale_name: str, drop_rate, train: bool):
    y_BLD = Dropout(self.dropout_rate)(y_BLD, train=train)
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
    stochastic_depth_rate: of the last block.
    stochastic_depth_schedule: 'linear' from 0 in the first block (timm, DeiT),
      or 'constant' (DeiT-III).
    scan: one block with stacked parameters `[depth, ...]`, so that the time to
      compile does not grow with the depth. The numbers stay the same.
    remat: of REMAT_POLICIES: what the backward pass need not compute again.
      None keeps everything that it uses.
    final_norm: whether there is a norm after the last block.
  """

  depth: int
  block: Mapping[str, Any]
  stochastic_depth_rate: float = 0.0
  stochastic_depth_schedule: str = 'linear'
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
      last = self.stochastic_depth_rate
      first = 0 if self.stochastic_depth_schedule == 'linear' else last
      drop_rates = np.linspace(first, last, self.depth, dtype=np.float32)

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
