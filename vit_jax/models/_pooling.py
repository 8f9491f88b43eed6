"""From the tokens of an image to features and logits.

Shapes: B batch, L patches, P prefix tokens, D width, Y classes.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vit_jax.models import _activations, _init
from vit_jax.models._attention import Attention
from vit_jax.models._dropout import Dropout
from vit_jax.models._encoder import Mlp
from vit_jax.models._norm import layer_norm


class MapPooling(nn.Module):
  """Multi-head attention pooling: one learned query reads all the tokens.

  As big_vision's MAPHead (https://arxiv.org/abs/2106.04560, section 3.2):
  `y = attention(probe, tokens)`, then `y + mlp(norm(y))`. The probe itself is
  not added.

  Attributes:
    num_heads: heads of attention.
    mlp_dim: hidden width of the MLP.
    qkv_bias, activation, norm_epsilon, weight_init, dtype: as in `Block`.
    residual_dtype: of the tokens, the query and the sum; None is `dtype`.
  """

  num_heads: int
  mlp_dim: int
  qkv_bias: bool = True
  activation: str = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  weight_init: str = 'google'
  dtype: Any = 'float32'
  residual_dtype: Any = None

  @nn.compact
  def __call__(self, x_BLD, patch_mask=None):
    """Returns the pooled features [B, D] in `residual_dtype`.

    Args:
      x_BLD: the tokens.
      patch_mask: bool [B, L], False for tokens that are not read; or None.
    """
    B, _, D = x_BLD.shape
    dtype = self.residual_dtype or self.dtype
    x_BLD = x_BLD.astype(dtype)
    probe_11D = self.param(
      'probe', nn.initializers.xavier_uniform(), (1, 1, D)
    ).astype(dtype)
    mask = None if patch_mask is None else patch_mask[:, None, None]
    y_B1D = Attention(
      num_heads=self.num_heads,
      qkv_bias=self.qkv_bias,
      weight_init=self.weight_init,
      dtype=self.dtype,
      name='attention',
    )(jnp.broadcast_to(probe_11D, (B, 1, D)), x_BLD, mask=mask)
    y_B1D = y_B1D.astype(dtype)
    norm = layer_norm(self.norm_epsilon, self.dtype, 'norm')
    mlp = Mlp(
      dim=self.mlp_dim,
      activation=self.activation,
      weight_init=self.weight_init,
      dtype=self.dtype,
      name='mlp',
    )
    y_B1D = y_B1D + mlp(norm(y_B1D))
    return y_B1D[:, 0]


class Head(nn.Module):
  """Maps features to logits: a linear layer, or an MLP; in float32.

  The parameters of the last layer are `kernel` and `bias`, whether or not there
  is a hidden layer, and those of the hidden one are in `hidden`.

  Attributes:
    num_classes, head_hidden_dim, head_dropout_rate, activation, weight_init,
      head_bias_init, head_zero_init: as in `ViT`.
  """

  num_classes: int
  head_hidden_dim: int | None
  head_dropout_rate: float
  activation: str
  weight_init: str
  head_bias_init: float
  head_zero_init: bool | None

  def setup(self):
    scheme = _init.SCHEMES[self.weight_init]
    zero = self.head_zero_init
    if zero is None:
      zero = scheme.zero_head
    if self.head_hidden_dim:
      self.hidden = nn.Dense(
        self.head_hidden_dim, kernel_init=scheme.representation
      )
    self.dropout = Dropout(self.head_dropout_rate)
    self.out = nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.zeros if zero else scheme.head,
      bias_init=nn.initializers.constant(self.head_bias_init),
    )
    # Its parameters are the head's own: `head/kernel`, not `head/out/kernel`.
    nn.share_scope(self, self.out)

  def __call__(self, features, *, train: bool):
    """Returns logits [..., Y] for features [..., D]."""
    if self.head_hidden_dim:
      activation = _activations.ACTIVATIONS[self.activation]
      features = activation(self.hidden(features))
    if self.head_dropout_rate:
      features = self.dropout(features, train=train)
    return self.out(features)


class Readout(nn.Module):
  """Pools tokens and maps them to logits; all in float32.

  Attributes:
    map_pooling: the module for pooling 'map'.
    classifier: the module that maps features to logits; None for no head.
    width, pooling, final_norm, norm_epsilon, representation_size, weight_init:
      as in `ViT`.
  """

  map_pooling: nn.Module
  classifier: nn.Module | None
  width: int
  pooling: str
  final_norm: str
  norm_epsilon: float
  representation_size: int | bool | None
  weight_init: str

  @nn.compact
  def __call__(
    self, x_BLD, num_prefix: int, patch_mask=None, *, train: bool = False
  ):
    """Returns a dict of outputs; see `ViT.read_out`."""
    prefix_BPD, tokens_BLD = x_BLD[:, :num_prefix], x_BLD[:, num_prefix:]
    outputs = dict(tokens=tokens_BLD)
    if num_prefix:
      outputs['prefix_tokens'] = prefix_BPD
    features = self._pool(prefix_BPD, tokens_BLD, patch_mask)
    if self.final_norm == 'features':
      norm = layer_norm(self.norm_epsilon, 'float32', 'norm')
      features = norm(features)
    if self.representation_size:
      size = self.width
      if self.representation_size is not True:
        size = self.representation_size
      layer = nn.Dense(
        size,
        kernel_init=_init.SCHEMES[self.weight_init].representation,
        name='representation',
      )
      features = nn.tanh(layer(features))
    outputs['features'] = features
    if self.classifier is not None:
      head = self.classifier.copy(name='head')
      outputs['logits'] = head(features, train=train)
    return outputs

  def _pool(self, prefix_BPD, tokens_BLD, patch_mask):
    if self.pooling == 'token':
      return prefix_BPD[:, 0]
    if self.pooling == 'mean':
      return masked_mean(tokens_BLD, patch_mask)
    if self.pooling == 'none':
      return tokens_BLD
    pool = self.map_pooling.copy(name='pooling')
    return pool(tokens_BLD, patch_mask).astype(jnp.float32)


def masked_mean(x_BLD, mask_BL=None):
  """Returns the mean [B, D] of the tokens whose mask is True; None is all."""
  if mask_BL is None:
    return x_BLD.mean(axis=1)
  total_BD = jnp.where(mask_BL[:, :, None], x_BLD, 0).sum(axis=1)
  return total_BD / jnp.maximum(mask_BL.sum(axis=1), 1)[:, None]
