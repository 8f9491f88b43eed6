"""The Vision Transformer (https://arxiv.org/abs/2010.11929): image to outputs.

`Model('B/16', num_classes=1000)` makes one by name. Shapes: B batch, H W image
height and width, C channels, L patches, P prefix tokens, R registers, N heads,
D width, Y classes.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import suggestions
from vit_jax.errors import UserError
from vit_jax.models import _stems, _vit_options
from vit_jax.models._embedding import Embedding
from vit_jax.models._encoder import Block, Encoder
from vit_jax.models._pooling import Head, MapPooling, Readout
from vit_jax.models._vit_roles import ROLES
from vit_jax.models._vit_tables import FIELDS as FIELDS, VARIANTS
from vit_jax.printable import printable


def Model(  # noqa: N802, it makes a model.
  variant: str = 'B/16',
  num_classes: int | None = None,
  *,
  trusted: bool = False,
  **overrides,
) -> 'ViT':
  """Returns the ViT of a name such as 'B/16', 'So400m/14' or 'g-opt/16'.

  Args:
    variant: a key of VARIANTS, a slash, and the side of a square patch. The
      patch may be left out where `patch_size` is among the overrides.
    num_classes: outputs of the head; None for a model without a head.
    trusted: whether the user gave the overrides, and no file.
    **overrides: any other attribute of `ViT`; they win over the variant. `stem`
      may be a name, see `_stems.find`.

  Raises:
    UserError: an unknown variant or override, or values that do not fit.
  """
  name, slash, patch = str(variant).partition('/')
  # At most nine digits: int() refuses thousands of them.
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
  options |= overrides
  stem = options.pop('stem', None)
  if not isinstance(stem, str):
    return ViT(**options, stem=stem)
  make_stem = _stems.find(stem, trusted=trusted)
  vit = ViT(**options)
  if make_stem is _stems.PatchEmbedding:
    return vit
  return vit.clone(stem=make_stem(**_shared_fields(vit, make_stem)))


class ViT(nn.Module):
  """A Vision Transformer.

  Parameters are float32 whatever `dtype` is.

  A call is `embed`, `encode` and `read_out`. Objectives that change the tokens
  in between call these through `apply(..., method='embed')`.

  Attributes:
    patch_size: the side of a square patch, or (height, width).
    width: D.
    depth: number of blocks.
    mlp_dim: hidden width of the blocks' MLPs.
    num_heads: of attention; divides the width.
    num_classes: Y, outputs of the head; None for no head.
    stem: a module that maps images to a grid of tokens, such as
      `_stems.ConvStem`; None for one linear map of each patch's pixels.
    pooling: what the head reads. 'token': a learned class token, which only
      these models have; 'mean': the mean of the patches' tokens; 'map':
      attention of a learned query to them (`_pooling.MapPooling`); 'none':
      every patch's token, so that each has logits.
    num_registers: R, learned tokens that take part in attention and are not
      read (https://arxiv.org/abs/2309.16588).
    position: added to patches. 'learned': a table; 'sincos2d' and
      'sincos2d_moco': the fixed ones of `_position`; or 'none'.
    position_resize: how a learned table is resized for images of another grid
      than its own: a key of `_position.RESIZE`. None: such images are an error.
    position_init: standard deviation of a learned table: a number; 'google' is
      0.02, as in DeiT too; 'big_vision' is 1 / sqrt(D).
    final_norm: the input of the last LayerNorm. 'tokens': all of them, before
      pooling; 'features': what pooling returns, as in MAE's fine-tuned models
      and timm's average-pooled ones (`fc_norm`).
    representation_size: outputs of a tanh layer before the head; True for D.
    head_hidden_dim: width of a hidden layer of the head, with `activation`
      after it: an MLP head. None: the head is linear.
    head_dropout_rate: of the input of the head's last layer, in training.
    layer_scale: initial factor of every branch (CaiT), or None.
    stochastic_depth_rate: probability that an example skips a branch of the
      last block in training.
    stochastic_depth_schedule: 'linear' from 0 in the first block, or
      'constant': all blocks have that rate (DeiT-III).
    dropout_rate: after position, attention, and in and after the MLP.
    attention_dropout_rate: of attention weights.
    qk_norm: LayerNorm of queries and keys (ViT-22B).
    activation: a key of `_activations.ACTIVATIONS`.
    norm_epsilon: of every LayerNorm.
    qkv_bias: whether query, key and value have one.
    dtype: 'float32', 'bfloat16' or 'float16': of the computation in blocks.
      Norm statistics, softmax, the final norm, the head and outputs are
      float32.
    residual_dtype: of the residual stream, which is the tokens that blocks add
      to: patches plus positions, branches times LayerScale, and what norms and
      map pooling read. None: `dtype`. 'float32' beside dtype='bfloat16'
      multiplies in bfloat16 and adds in float32, as torch's autocast does:
      small branches are not rounded away.
    scan: stack the blocks' parameters and loop over them, which compiles
      faster and at the same numbers.
    remat: a key of `_encoder.REMAT_POLICIES`: what is stored for the backward
      pass; None stores all that it uses.
    attention: one of `_attention.ATTENTIONS`.
    weight_init: all other initial values, a key of `_init.SCHEMES`. 'google':
      Xavier uniform kernels and a head of zeros, so that the first loss is
      known; 'torch': normal kernels of standard deviation 0.02, the head
      included, and torch's default for convolutions (DeiT, timm); 'moco':
      MoCo v3's, Xavier uniform with zero biases.
    head_bias_init: initial bias of the head; -10 suits sigmoid losses.
    head_zero_init: whether the head's kernel starts at zero. None: with
      'google' it does. False with 'google' is LeCun normal. LAMB can hardly
      train a head that starts at zero.
  """

  FIELDS = FIELDS
  ROLES = ROLES

  patch_size: int | tuple[int, int]
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  num_classes: int | None = None
  stem: nn.Module | None = None
  pooling: str = 'token'
  num_registers: int = 0
  position: str = 'learned'
  position_resize: str | None = None
  position_init: float | str = 'google'
  final_norm: str = 'tokens'
  representation_size: int | bool | None = None
  head_hidden_dim: int | None = None
  head_dropout_rate: float = 0.0
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
  residual_dtype: str | None = None
  scan: bool = False
  remat: str | None = None
  attention: str = 'auto'
  weight_init: str = 'google'
  head_bias_init: float = 0.0
  head_zero_init: bool | None = None

  def __post_init__(self):
    _vit_options.check_types(self)
    if isinstance(self.patch_size, int):
      self.patch_size = (self.patch_size, self.patch_size)
    self.patch_size = tuple(self.patch_size)
    _vit_options.check_values(self)
    super().__post_init__()

  @property
  def num_prefix_tokens(self) -> int:
    """P: the class token, if the model has one, and registers."""
    return self.num_registers + (self.pooling == 'token')

  def setup(self):
    stem = self.stem
    if stem is None:
      stem = _stems.PatchEmbedding(
        **_shared_fields(self, _stems.PatchEmbedding)
      )
    self.embedding = Embedding(
      **_shared_fields(self, Embedding) | dict(stem=stem),
      class_token=self.pooling == 'token',
    )
    self.encoder = Encoder(
      **_shared_fields(self, Encoder)
      | dict(final_norm=self.final_norm == 'tokens'),
      block=Block(**_shared_fields(self, Block)),
    )
    classifier = None
    if self.num_classes:
      classifier = Head(**_shared_fields(self, Head))
    self.readout = Readout(
      **_shared_fields(self, Readout),
      map_pooling=MapPooling(**_shared_fields(self, MapPooling)),
      classifier=classifier,
    )
    # Their parameters are the model's own: `head`, not `readout/head`.
    nn.share_scope(self, self.embedding)
    nn.share_scope(self, self.readout)

  def __call__(
    self,
    image_BHWC,
    *,
    patch_mask=None,
    bias=None,
    blocks: Sequence[int] = (),
    train: bool = False,
    **embed_options,
  ) -> dict[str, jax.Array]:
    """Returns a dict of float32 arrays, whatever `dtype` is.

    logits: [B, Y], or [B, L, Y] for pooling 'none'; absent without a head.
    features: [B, D] what the head reads, or [B, L, D] for pooling 'none'.
    tokens: [B, L, D] the patches after the final norm, row by row; after the
      last block where the final norm is one of features.
    prefix_tokens: [B, P, D] class token and registers likewise, those of them
      that the model has; absent if it has none.
    block_outputs: [B, number of `blocks`, P + L, D] all tokens after each of
      `blocks`, in their order and before the final norm; absent without.

    Args:
      image_BHWC: floating-point images, of any size that the patch divides.
      patch_mask: bool [B, L], False for patches that are padding: no token
        reads them, and no pooling. None: all are read.
      bias: of attention, see `encode`.
      blocks: numbers of blocks whose outputs are wanted.
      train: whether to drop; needs an rng named 'dropout' if any rate is set.
      **embed_options: of `embed`: `keep`, `masked`, `mask_token`.

    Raises:
      UserError: images that the model cannot take.
    """
    x_BLD = self.embed(image_BHWC, train=train, **embed_options)
    mask = None
    if patch_mask is not None:
      keep = embed_options.get('keep')
      if keep is not None:
        patch_mask = jnp.take_along_axis(patch_mask, keep, axis=1)
      mask = jnp.pad(
        patch_mask, ((0, 0), (self.num_prefix_tokens, 0)), constant_values=True
      )[:, None, None]
    x_BLD, block_outputs = self.encode(
      x_BLD, mask=mask, bias=bias, blocks=blocks, train=train
    )
    outputs = self.read_out(x_BLD, patch_mask=patch_mask, train=train)
    if block_outputs is not None:
      outputs['block_outputs'] = block_outputs
    return outputs

  def embed(self, image_BHWC, *, train: bool = False, **options) -> jax.Array:
    """Returns tokens [B, P + L, D] in `residual_dtype`: prefix, then patches.

    Args:
      image_BHWC: as in a call.
      train: likewise.
      **options: `keep`, integers [B, K]: numbers of the patches, row by row,
        that remain, in this order; P + K tokens are returned. They are from 0
        to L - 1, which is checked in NumPy arrays; in an array of jax, numbers
        from L up give NaN, and negative ones count from the end. `masked`, bool
        [B, L], with `mask_token`, D numbers: where it is True, the mask token
        replaces the patch, before positions are added.
    """
    _vit_options.check_image(self, image_BHWC)
    return self.embedding(image_BHWC, train=train, **options)

  def encode(
    self,
    x_BLD,
    *,
    mask=None,
    bias=None,
    blocks: Sequence[int] = (),
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Returns tokens after all blocks, and `block_outputs`, both float32.

    Args:
      x_BLD: tokens, of any number.
      mask: bool that broadcasts to [B, N, L, L], of rank 4: whether a token
        (second to last dimension) reads another (last).
      bias: floats of such a shape, added to the logits of attention.
      blocks: as in a call; without any, `block_outputs` is None.
      train: as in a call.
    """
    return self.encoder(x_BLD, mask=mask, bias=bias, blocks=blocks, train=train)

  def read_out(
    self, x_BLD, *, patch_mask=None, train: bool = False
  ) -> dict[str, jax.Array]:
    """Returns the outputs of a call for tokens after the encoder.

    Args:
      x_BLD: float32; the first P are the prefix tokens.
      patch_mask: as in a call, for the other tokens.
      train: as in a call.
    """
    return self.readout(x_BLD, self.num_prefix_tokens, patch_mask, train=train)


def _shared_fields(vit: ViT, module: type[nn.Module]) -> dict[str, Any]:
  """Returns the values of the fields that a part of the model has as well."""
  names = {field.name for field in dataclasses.fields(module)}
  names &= ViT.__dataclass_fields__.keys() - {'parent', 'name'}
  return {name: getattr(vit, name) for name in names}
