"""From the tokens of an image to the one vector that the head reads."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import _attention, _layers
from vit_jax.models._norm import layer_norm


class MapPooling(nn.Module):
  """Multi-head attention pooling: one learned query reads all the tokens.

  As big_vision's MAPHead (https://arxiv.org/abs/2106.04560, section 3.2):
  `y = attention(probe, tokens)`, then `y + mlp(norm(y))`. The probe itself is
  not added.

  Attributes:
    num_heads: heads of attention.
    mlp_dim: hidden width of the MLP.
    qkv_bias, activation, norm_epsilon, dtype: as in `layers.Block`.
  """

  num_heads: int
  mlp_dim: int
  qkv_bias: bool = True
  activation: str = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  dtype: Any = 'float32'

  @nn.compact
  def __call__(self, x_BLD):
    """Returns the pooled features [B, D] in `dtype`."""
    B, _, D = x_BLD.shape
    x_BLD = x_BLD.astype(self.dtype)
    probe_11D = self.param(
      'probe', nn.initializers.xavier_uniform(), (1, 1, D)
    ).astype(self.dtype)
    y_B1D = _attention.Attention(
      num_heads=self.num_heads,
      qkv_bias=self.qkv_bias,
      dtype=self.dtype,
      name='attention',
    )(jnp.broadcast_to(probe_11D, (B, 1, D)), x_BLD)
    norm = layer_norm(self.norm_epsilon, self.dtype, 'norm')
    mlp = _layers.Mlp(
      dim=self.mlp_dim,
      activation=self.activation,
      dtype=self.dtype,
      name='mlp',
    )
    y_B1D = y_B1D + mlp(norm(y_B1D))
    return y_B1D[:, 0]
