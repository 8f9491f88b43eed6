"""The Transformer encoder: attention, MLP, block, and the stack of blocks.

Shapes: B batch, L tokens (S where attention reads them), D width, N heads,
K head size, F MLP width. Parameters are float32; `dtype` is what is computed
in, except for the statistics of norms and the softmax, which are float32.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  # Google's ViT and big_vision.
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
  # The exact one, by erf: timm, DeiT, DINO, MAE.
  'gelu': lambda x: nn.gelu(x, approximate=False),
  # OpenAI's CLIP.
  'gelu_quick': lambda x: x * nn.sigmoid(1.702 * x),
}

ATTENTIONS = ('xla', 'cudnn', 'einsum')

# Names in jax.checkpoint_policies that are policies themselves (the others
# there make one from arguments), and 'full': keep nothing but the inputs.
REMAT_POLICIES = {
  'full': None,
  **{
    name: getattr(jax.checkpoint_policies, name)
    for name in (
      'everything_saveable',
      'nothing_saveable',
      'dots_saveable',
      'dots_with_no_batch_dims_saveable',
      'checkpoint_dots',
      'checkpoint_dots_with_no_batch_dims',
    )
  },
}


class Attention(nn.Module):
  """Multi-head attention of `x_BLD` to `context_BSD`, or to itself.

  The weights [B, N, L, S] are sown as `attention_weights` when the collection
  'intermediates' is mutable, and cost nothing when it is not.

  Attributes:
    num_heads: N; divides the width.
    dropout_rate: of attention weights, in training.
    qkv_bias: whether query, key and value have one.
    qk_norm: LayerNorm without bias over each head's query and key, before the
      product (ViT-22B, https://arxiv.org/abs/2302.05442, section 2).
    norm_epsilon: of those two norms.
    implementation: of ATTENTIONS. Sowing and dropout of weights need 'einsum'
      and use it.
    dtype: what is computed in.
  """

  num_heads: int
  dropout_rate: float = 0.0
  qkv_bias: bool = True
  qk_norm: bool = False
  norm_epsilon: float = 1e-6
  implementation: str = 'xla'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BLD, context_BSD=None, *, train: bool = False):
    D = x_BLD.shape[-1]
    heads = (self.num_heads, D // self.num_heads)
    if context_BSD is None:
      context_BSD = x_BLD

    def project(name, inputs):
      return nn.DenseGeneral(
        heads,
        use_bias=self.qkv_bias,
        kernel_init=nn.initializers.xavier_uniform(),
        dtype=self.dtype,
        name=name,
      )(inputs)

    query_BLNK = project('query', x_BLD)
    key_BSNK = project('key', context_BSD)
    value_BSNK = project('value', context_BSD)
    if self.qk_norm:
      norm = dict(epsilon=self.norm_epsilon, dtype=self.dtype, use_bias=False)
      query_BLNK = layer_norm(**norm, name='query_norm')(query_BLNK)
      key_BSNK = layer_norm(**norm, name='key_norm')(key_BSNK)

    sow = self.is_mutable_collection('intermediates')
    drop = train and self.dropout_rate > 0
    if self.implementation == 'einsum' or sow or drop:
      weights_BNLS = attention_weights(query_BLNK, key_BSNK)
      self.sow('intermediates', 'attention_weights', weights_BNLS)
      weights_BNLS = nn.Dropout(self.dropout_rate, deterministic=not train)(
        weights_BNLS
      )
      out_BLNK = jnp.einsum('BNLS,BSNK->BLNK', weights_BNLS, value_BSNK)
    else:
      out_BLNK = jax.nn.dot_product_attention(
        query_BLNK, key_BSNK, value_BSNK, implementation=self.implementation
      )
    return nn.DenseGeneral(
      D,
      axis=(-2, -1),
      kernel_init=nn.initializers.xavier_uniform(),
      dtype=self.dtype,
      name='out',
    )(out_BLNK)
