"""The Transformer encoder: MLP, block, and the stack of blocks.

Shapes: B batch, L tokens (S where attention reads them), D width, N heads, F
MLP width. Parameters are float32. `dtype` is that of the computation, except
for the statistics of norms and the softmax, which are float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import _dropout, _init
from vit_jax.models._activations import ACTIVATIONS
from vit_jax.models._attention import KERNEL_OUTPUT, Attention
from vit_jax.models._dropout import Dropout
from vit_jax.models._norm import layer_norm, materialize_gradient
from vit_jax.parallel.activations import constrain


def _and_kernels(policy):
  """Returns the policy that also keeps the output of the attention kernel.

  Checkpoint policies do not see a Pallas kernel as a matrix product, but
  recomputing it costs two.
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


class Mlp(nn.Module):
  """Two dense layers with an activation between them, D -> F -> D."""

  dim: int
  dropout_rate: float = 0.0
  activation: str = 'gelu_tanh'
  weight_init: str = 'google'
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, x_BLD, *, train: bool = False):
    x_BLF = constrain(self._dense(self.dim, 'up')(x_BLD), 'BLF')
    x_BLF = ACTIVATIONS[self.activation](x_BLF)
    x_BLF = Dropout(self.dropout_rate)(x_BLF, train=train)
    return self._dense(x_BLD.shape[-1], 'down')(x_BLF)

  def _dense(self, features: int, name: str):
    scheme = _init.SCHEMES[self.weight_init]
    return nn.Dense(
      features,
      kernel_init=scheme.kernel,
      bias_init=scheme.mlp_bias,
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
    layer_scale: initial value of the learned factors per channel of both
      branches (CaiT, https://arxiv.org/abs/2103.17239); None for no factors.
    qk_norm, qkv_bias, attention, activation, norm_epsilon, weight_init, dtype:
      as in `Attention` and `Mlp`.
    residual_dtype: of the sum of branches, and of their products with factors;
      None is that of the tokens, and `dtype` for these products.
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
  weight_init: str = 'google'
  dtype: Any = 'float32'
  residual_dtype: Any = None

  @nn.compact
  def __call__(
    self, x_BLD, drop_rate=None, train: bool = False, mask=None, bias=None
  ):
    """Returns the tokens after the block.

    Args:
      x_BLD: the tokens.
      drop_rate: the probability that an example skips a branch; may be traced.
        None for never.
      train: whether anything is dropped.
      mask: of attention, see `Attention`.
      bias: likewise.
    """
    norm = layer_norm(self.norm_epsilon, self.dtype, 'norm_attention')
    y_BLD = Attention(
      num_heads=self.num_heads,
      dropout_rate=self.attention_dropout_rate,
      qkv_bias=self.qkv_bias,
      qk_norm=self.qk_norm,
      norm_epsilon=self.norm_epsilon,
      implementation=self.attention,
      weight_init=self.weight_init,
      dtype=self.dtype,
      name='attention',
    )(norm(materialize_gradient(x_BLD)), mask=mask, bias=bias, train=train)
    x_BLD = x_BLD + self._branch(y_BLD, 'scale_attention', drop_rate, train)
    x_BLD = constrain(x_BLD, 'BLD')

    norm = layer_norm(self.norm_epsilon, self.dtype, 'norm_mlp')
    y_BLD = Mlp(
      dim=self.mlp_dim,
      dropout_rate=self.dropout_rate,
      activation=self.activation,
      weight_init=self.weight_init,
      dtype=self.dtype,
      name='mlp',
    )(norm(materialize_gradient(x_BLD)), train=train)
    x_BLD = x_BLD + self._branch(y_BLD, 'scale_mlp', drop_rate, train)
    return constrain(x_BLD, 'BLD')

  def _branch(self, y_BLD, scale_name: str, drop_rate, train: bool):
    y_BLD = Dropout(self.dropout_rate)(y_BLD, train=train)
    dtype = self.residual_dtype or self.dtype
    y_BLD = y_BLD.astype(dtype)
    if self.layer_scale is not None:
      init = nn.initializers.constant(self.layer_scale)
      scale_D = self.param(scale_name, init, y_BLD.shape[-1:])
      y_BLD = y_BLD * scale_D.astype(dtype)[None, None]
    if train and drop_rate is not None:
      rng = self.make_rng('dropout')
      y_BLD = _dropout.drop_examples(rng, y_BLD, drop_rate)
    return y_BLD


class Encoder(nn.Module):
  """Blocks and a final norm.

  Attributes:
    depth: number of blocks.
    block: the block that is repeated, each time with parameters of its own: a
      module that is called like `Block`.
    norm_epsilon: of the final norm.
    stochastic_depth_rate: of the last block.
    stochastic_depth_schedule: 'linear' from 0 in the first block (timm, DeiT),
      or 'constant' (DeiT-III).
    scan: one block with stacked parameters `[depth, ...]`, so that the compile
      time does not grow with the depth. The numbers stay the same.
    remat: a key of REMAT_POLICIES, which says what is stored for the backward
      pass; None stores everything that it uses.
    final_norm: whether the last block is followed by a norm.
    residual_dtype: of the tokens between blocks; None is theirs.
  """

  depth: int
  block: nn.Module
  norm_epsilon: float = 1e-6
  stochastic_depth_rate: float = 0.0
  stochastic_depth_schedule: str = 'linear'
  scan: bool = False
  remat: str | None = None
  final_norm: bool = True
  residual_dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x_BLD,
    *,
    mask=None,
    bias=None,
    blocks: Sequence[int] = (),
    train: bool = False,
  ):
    """Returns the tokens, float32, and outputs of chosen blocks.

    Args:
      x_BLD: the tokens.
      mask: of attention in every block, see `Attention`.
      bias: likewise.
      blocks: numbers of blocks from 0, or from the end if negative.
      train: whether anything is dropped.

    Returns:
      Tokens `[B, L, D]` after the final norm, and the K chosen outputs
      `[B, K, L, D]` before it, both float32; None if no blocks are chosen. A
      scan holds the outputs of all blocks until it ends.
    """
    blocks = self._numbers(blocks)
    if self.residual_dtype is not None:
      x_BLD = x_BLD.astype(self.residual_dtype)

    def run(block, x_BLD, rate, mask, bias):
      return block(x_BLD, rate, train, mask, bias)

    if self.remat is not None:
      run = nn.remat(
        run,
        policy=REMAT_POLICIES[self.remat],
        # A scan's loop already keeps XLA from merging the two computations.
        prevent_cse=not self.scan,
      )
    rates = None
    if train and self.stochastic_depth_rate > 0:
      last = self.stochastic_depth_rate
      first = 0 if self.stochastic_depth_schedule == 'linear' else last
      rates = np.linspace(first, last, self.depth, dtype=np.float32)

    outputs = {}
    if self.scan:

      def step(block, x_BLD, rate):
        x_BLD = run(block, x_BLD, rate, mask, bias)
        return x_BLD, x_BLD if blocks else None

      x_BLD, outputs = nn.scan(
        step,
        variable_axes={'params': 0, 'intermediates': 0},
        split_rngs={'params': True, 'dropout': True},
        length=self.depth,
      )(self.block.copy(name='blocks'), x_BLD, rates)
    else:
      for i in range(self.depth):
        block = self.block.copy(name=f'block_{i:02d}')
        rate = None if rates is None else rates[i]
        x_BLD = run(block, x_BLD, rate, mask, bias)
        if i in blocks:
          outputs[i] = x_BLD
    chosen = None
    if blocks:
      chosen = jnp.stack([outputs[i] for i in blocks], axis=1)
      chosen = chosen.astype(jnp.float32)
    if not self.final_norm:
      return x_BLD.astype(jnp.float32), chosen
    norm = layer_norm(self.norm_epsilon, 'float32', 'norm')
    return norm(materialize_gradient(x_BLD)), chosen

  def _numbers(self, blocks: Sequence[int]) -> list[int]:
    """Returns the numbers of blocks, counted from 0."""
    for i in blocks:
      if not -self.depth <= i < self.depth:
        raise UserError(
          f'blocks={tuple(blocks)}: the encoder has no block {i}. Give numbers'
          f' from 0 to {self.depth - 1}, or from -{self.depth} to -1'
        )
    return [i % self.depth for i in blocks]
