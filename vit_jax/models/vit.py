"""The Vision Transformer (https://arxiv.org/abs/2010.11929): image to outputs.

`Model('B/16', num_classes=1000)` is the way in. Shapes: B batch, H W image
height and width, C channels, L patches, R registers, D width, Y classes.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import suggestions
from vit_jax.errors import UserError
from vit_jax.models import _layers, _pooling, _vit_options
from vit_jax.models._dropout import Dropout
from vit_jax.models._norm import layer_norm
from vit_jax.printable import printable

# As in big_vision, which has them from: Ti, S (DeiT), B, L, H (ViT), g, G
# (Scaling ViT, https://arxiv.org/abs/2106.04560), So400m (SoViT,
# https://arxiv.org/abs/2305.13035), e (PaLI, https://arxiv.org/abs/2209.06794).
VARIANTS: dict[str, dict[str, int]] = {
  name: dict(width=width, depth=depth, mlp_dim=mlp_dim, num_heads=num_heads)
  for name, width, depth, mlp_dim, num_heads in (
    ('mu', 32, 1, 128, 2),
    ('Ti', 192, 12, 768, 3),
    ('S', 384, 12, 1536, 6),
    ('M', 512, 12, 2048, 8),
    ('B', 768, 12, 3072, 12),
    ('L', 1024, 24, 4096, 16),
    ('So400m', 1152, 27, 4304, 16),
    ('H', 1280, 32, 5120, 16),
    ('g', 1408, 40, 6144, 16),
    ('g-opt', 1536, 40, 6144, 16),
    ('G', 1664, 48, 8192, 16),
    ('G-opt', 1536, 48, 8192, 16),
    ('e', 1792, 56, 15360, 16),
  )
}


def Model(  # noqa: N802, it makes a model.
  variant: str = 'B/16', num_classes: int | None = None, **overrides
) -> 'ViT':
  """Returns the ViT of a name such as 'B/16', 'So400m/14' or 'g-opt/16'.

  Args:
    variant: a key of VARIANTS, a slash, and the side of a square patch. The
      patch may be left out where `patch_size` is among the overrides.
    num_classes: outputs of the head; None for a model without a head.
    **overrides: any other attribute of `ViT`; they win over the variant.

  Raises:
    UserError: an unknown variant or override, or values that do not fit.
  """
  name, slash, patch = str(variant).partition('/')
  # Nine digits at most: more are no size, and int() refuses thousands of them.
  size = re.fullmatch('[1-9][0-9]{0,8}', patch)
  if name not in VARIANTS or (slash and not size):
    shown = printable(repr(variant), max_length=80)
    raise UserError(
      f'unknown ViT variant {shown}; expected <name>/<patch size>, as in'
      f" 'B/16', with one of the names {', '.join(VARIANTS)}"
    )
  fields = [f for f in ViT.__dataclass_fields__ if f not in ('parent', 'name')]
  unknown = []
  for key in sorted(set(overrides) - set(fields)):
    close = suggestions.close(key, fields)
    unknown.append(key + (f' (did you mean {close}?)' if close else ''))
  if unknown:
    raise UserError(
      f'ViT has no {", ".join(unknown)}; it takes: {", ".join(fields)}'
    )
  if not slash and 'patch_size' not in overrides:
    raise UserError(
      f"the ViT variant {variant!r} names no patch size: write '{variant}/16',"
      ' or give patch_size'
    )
  options = dict(VARIANTS[name], num_classes=num_classes)
  if slash:
    options['patch_size'] = int(patch)
  return ViT(**options | overrides)


class ViT(nn.Module):
  """A Vision Transformer.

  Parameters are float32 whatever `dtype` is. Initial values are those of
  Google's ViT: the head starts at zero, so that the first loss is known.

  Attributes:
    patch_size: the side of a square patch, or (height, width).
    width: D.
    depth: number of blocks.
    mlp_dim: hidden width of the blocks' MLPs.
    num_heads: of attention; divides the width.
    num_classes: Y, outputs of the head; None for no head.
    stem: how patches become tokens. 'patch': one linear map of their pixels;
      'conv': 3x3 convolutions of stride 2 (`layers.ConvStem`), for square
      patches whose side is a power of two.
    pooling: what the head reads. 'token': a learned class token, which only
      these models have; 'mean': the mean of the patches' tokens; 'map':
      attention of a learned query to them (`pooling.MapPooling`); 'none': every
      patch's token, so that there are logits for each.
    num_registers: R, learned tokens that take part in attention and are not
      read (https://arxiv.org/abs/2309.16588).
    position: what patches get added. 'learned': a table; 'sincos2d' and
      'sincos2d_moco': the fixed ones of `position`; or 'none'.
    final_norm: what the last LayerNorm normalises. 'tokens': all of them,
      before pooling; 'features': what pooling returns, as MAE's fine-tuned
      models and timm's average-pooled ones do (`fc_norm`).
    representation_size: outputs of a tanh layer before the head; True for D.
    layer_scale: initial factor of every branch (CaiT), or None.
    stochastic_depth_rate: probability that an example skips a branch of the
      last block in training.
    stochastic_depth_schedule: 'linear' from 0 in the first block, or
      'constant': all blocks have that rate (DeiT-III).
    dropout_rate: after position, attention, and in and after the MLP.
    attention_dropout_rate: of attention weights.
    qk_norm: LayerNorm of queries and keys (ViT-22B).
    activation: of layers.ACTIVATIONS.
    norm_epsilon: of every LayerNorm.
    qkv_bias: whether query, key and value have one.
    dtype: 'float32', 'bfloat16' or 'float16': what blocks compute in. Norm
      statistics, softmax, the final norm, the head and outputs are float32.
    scan: stack the blocks' parameters and loop over them, which compiles
      faster and at the same numbers.
    remat: of layers.REMAT_POLICIES: what a block's backward pass need not
      compute again; None keeps all that it uses.
    attention: of attention.ATTENTIONS.
    head_bias_init: initial bias of the head; -10 suits sigmoid losses.
    head_zero_init: whether the head's kernel starts at zero.
  """

  patch_size: int | tuple[int, int]
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_classes: int | None = None
  stem: str = 'patch'
  pooling: str = 'token'
  num_registers: int = 0
  position: str = 'learned'
  final_norm: str = 'tokens'
  representation_size: int | bool | None = None
  layer_scale: float | None = None
  stochastic_depth_rate: float = 0.0
  stochastic_depth_schedule: str = 'linear'
  dropout_rate: float = 0.0
  attention_dropout_rate: float = 0.0
  qk_norm: bool = False
  activation: str = 'gelu_tanh'
  norm_epsilon: float = 1e-6
  qkv_bias: bool = True
  dtype: str = 'float32'
  scan: bool = False
  remat: str | None = None
  attention: str = 'auto'
  head_bias_init: float = 0.0
  head_zero_init: bool = True

  def __post_init__(self):
    _vit_options.check_types(self)
    if isinstance(self.patch_size, int):
      self.patch_size = (self.patch_size, self.patch_size)
    self.patch_size = tuple(self.patch_size)
    _vit_options.check_values(self)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, image_BHWC, *, train: bool = False
  ) -> dict[str, jax.Array]:
    """Returns a dict of float32 arrays, whatever `dtype` is.

    logits: [B, Y], or [B, L, Y] for pooling 'none'; absent without a head.
    features: [B, D] what the head reads, or [B, L, D] for pooling 'none'.
    tokens: [B, L, D] the patches after the final norm, row by row; after the
      last block where the final norm is one of features.
    prefix: [B, 1 + R, D] class token and registers likewise, those of them that
      the model has; absent if it has none.

    Args:
      image_BHWC: floating-point images, of any size that the patch divides.
      train: whether to drop; needs an rng named 'dropout' if any rate is set.

    Raises:
      UserError: images that the model cannot take.
    """
    _check_image(self, image_BHWC)
    x_BLD, num_prefix = self._embed(image_BHWC, train)
    x_BLD = _layers.Encoder(
      depth=self.depth,
      block=dict(
        num_heads=self.num_heads,
        mlp_dim=self.mlp_dim,
        dropout_rate=self.dropout_rate,
        attention_dropout_rate=self.attention_dropout_rate,
        layer_scale=self.layer_scale,
        qk_norm=self.qk_norm,
        qkv_bias=self.qkv_bias,
        attention=self.attention,
        activation=self.activation,
        norm_epsilon=self.norm_epsilon,
        dtype=self.dtype,
      ),
      stochastic_depth_rate=self.stochastic_depth_rate,
      stochastic_depth_schedule=self.stochastic_depth_schedule,
      scan=self.scan,
      remat=self.remat,
      final_norm=self.final_norm == 'tokens',
      name='encoder',
    )(x_BLD, train=train)

    prefix, tokens = x_BLD[:, :num_prefix], x_BLD[:, num_prefix:]
    outputs = dict(tokens=tokens)
    if num_prefix:
      outputs['prefix'] = prefix
    features = self._pool(prefix, tokens)
    if self.final_norm == 'features':
      norm = layer_norm(self.norm_epsilon, 'float32', 'norm')
      features = norm(features)
    if self.representation_size:
      size = self.width
      if self.representation_size is not True:
        size = self.representation_size
      features = nn.tanh(nn.Dense(size, name='representation')(features))
    outputs['features'] = features
    if self.num_classes:
      outputs['logits'] = self._head(features)
    return outputs

  def _embed(self, image_BHWC, train: bool):
    """Returns prefix tokens and patches [B, prefix + L, D], and how many."""
    x_BHWD = self._patch_embedding()(image_BHWC)
    B, H, W, D = x_BHWD.shape
    if self.position != 'none':
      x_BHWD += self._position_table(H, W).astype(self.dtype)[None]
    tokens = [x_BHWD.reshape(B, H * W, D)]

    def prepend(name, init, number):
      token_1RD = self.param(name, init, (1, number, D)).astype(self.dtype)
      tokens.insert(0, jnp.broadcast_to(token_1RD, (B, number, D)))

    num_prefix = self.num_registers + (self.pooling == 'token')
    if self.num_registers:
      # Not zeros: registers that start equal would stay equal.
      prepend('registers', nn.initializers.normal(0.02), self.num_registers)
    if self.pooling == 'token':
      prepend('class_token', nn.initializers.zeros, 1)
    x_BLD = jnp.concatenate(tokens, axis=1)
    x_BLD = Dropout(self.dropout_rate)(x_BLD, train=train)
    return x_BLD, num_prefix

  def _patch_embedding(self):
    if self.stem == 'patch':
      return _layers.PatchEmbedding(
        self.patch_size, self.width, dtype=self.dtype, name='patch_embedding'
      )
    return _layers.ConvStem(
      num_convolutions=self.patch_size[0].bit_length() - 1,
      width=self.width,
      activation=self.activation,
      norm_epsilon=self.norm_epsilon,
      dtype=self.dtype,
      name='patch_embedding',
    )

  def _position_table(self, height: int, width: int):
    """Returns the table [height, width, D] for a grid of patches."""
    name, shape = 'position_embedding', (height, width, self.width)
    if self.position != 'learned':
      return jnp.asarray(_vit_options.POSITIONS[self.position](*shape))
    if self.has_variable('params', name):
      found = self.get_variable('params', name).shape
      if found != shape:
        raise UserError(
          f'the position table is for {found[0]}x{found[1]} patches, but these'
          f' images have {height}x{width}; resample the table when loading the'
          ' weights, or give images of the size that it was made for'
        )
    return self.param(name, nn.initializers.normal(0.02), shape)

  def _pool(self, prefix_BPD, tokens_BLD):
    if self.pooling == 'token':
      return prefix_BPD[:, 0]
    if self.pooling == 'mean':
      return tokens_BLD.mean(axis=1)
    if self.pooling == 'none':
      return tokens_BLD
    return _pooling.MapPooling(
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      qkv_bias=self.qkv_bias,
      activation=self.activation,
      norm_epsilon=self.norm_epsilon,
      dtype=self.dtype,
      name='pooling',
    )(tokens_BLD).astype(jnp.float32)

  def _head(self, features):
    kernel_init = nn.initializers.lecun_normal()
    if self.head_zero_init:
      kernel_init = nn.initializers.zeros
    return nn.Dense(
      self.num_classes,
      kernel_init=kernel_init,
      bias_init=nn.initializers.constant(self.head_bias_init),
      name='head',
    )(features)


def _check_image(vit: ViT, image) -> None:
  if image.ndim != 4 or not jnp.issubdtype(image.dtype, jnp.floating):
    raise UserError(
      'ViT takes normalised floating-point images [batch, height, width,'
      f' channels]; got {image.dtype} of shape {image.shape}'
    )
  height, width = image.shape[1:3]
  rows, columns = vit.patch_size
  if height % rows or width % columns or not height * width:
    fit = [
      max(1, round(side / patch)) * patch
      for side, patch in ((height, rows), (width, columns))
    ]
    raise UserError(
      f'images of {height}x{width} do not divide into patches of'
      f' {rows}x{columns}; resize or crop them to {fit[0]}x{fit[1]}, or choose'
      ' another patch size'
    )
