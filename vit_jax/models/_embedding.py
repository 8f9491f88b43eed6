"""The input of the encoder: patches with positions, after prefix tokens.

Shapes: B batch, H W rows and columns of patches, L = H W patches, K of them
that are kept, P prefix tokens, D width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import _init, _position
from vit_jax.models._dropout import Dropout


class Embedding(nn.Module):
  """Maps images to tokens: class token, registers, then patches row by row.

  Attributes:
    width: D.
    stem: maps images to a grid of tokens, see `_stems`.
    class_token: whether the tokens begin with a learned class token.
    num_registers: learned tokens between the class token and the patches.
    position: a key of `_position.TABLES`.
    position_resize: a key of `_position.RESIZE`, or None: how a learned table
      is resized for images of another grid than its own.
    position_init: of a learned table, see `_init.position_table`.
    dropout_rate: of the tokens, in training.
    weight_init: a key of `_init.SCHEMES`.
    dtype: of the stem.
    residual_dtype: of the tokens; None is `dtype`.
  """

  width: int
  stem: nn.Module
  class_token: bool = True
  num_registers: int = 0
  position: str = 'learned'
  position_resize: str | None = None
  position_init: float | str = 'google'
  dropout_rate: float = 0.0
  weight_init: str = 'google'
  dtype: Any = 'float32'
  residual_dtype: Any = None

  @nn.compact
  def __call__(
    self,
    image_BHWC,
    *,
    keep=None,
    masked=None,
    mask_token=None,
    train: bool = False,
  ):
    """Returns tokens `[B, P + L, D]`, or `[B, P + K, D]`; see `ViT.embed`."""
    dtype = self.residual_dtype or self.dtype
    x_BHWD = self.stem.copy(name='patch_embedding')(image_BHWC)
    if self.residual_dtype is not None:
      x_BHWD = x_BHWD.astype(dtype)
    B, H, W, D = x_BHWD.shape
    _check(keep, masked, mask_token, (B, H * W, D))
    if masked is not None:
      token_D = mask_token.reshape(D).astype(dtype)
      x_BHWD = jnp.where(
        masked.reshape(B, H, W, 1), token_D[None, None, None], x_BHWD
      )
    if self.position != 'none':
      x_BHWD += self._position_table(H, W).astype(dtype)[None]
    tokens = [x_BHWD.reshape(B, H * W, D)]
    if keep is not None:
      tokens = [jnp.take_along_axis(tokens[0], keep[:, :, None], axis=1)]

    def prepend(name, init, number):
      token_1PD = self.param(name, init, (1, number, D)).astype(dtype)
      tokens.insert(0, jnp.broadcast_to(token_1PD, (B, number, D)))

    scheme = _init.SCHEMES[self.weight_init]
    if self.num_registers:
      prepend('registers', scheme.registers, self.num_registers)
    if self.class_token:
      prepend('class_token', scheme.class_token, 1)
    x_BLD = jnp.concatenate(tokens, axis=1)
    return Dropout(self.dropout_rate)(x_BLD, train=train)

  def _position_table(self, height: int, width: int) -> jax.Array:
    """Returns the table [height, width, D] for a grid of patches."""
    name, shape = 'position_embedding', (height, width, self.width)
    if self.position != 'learned':
      return jnp.asarray(_position.TABLES[self.position](*shape))
    own = shape
    if self.has_variable('params', name):
      own = self.get_variable('params', name).shape
    if own != shape and self.position_resize is None:
      raise UserError(
        f'the position table is for {own[0]}x{own[1]} patches, but these'
        f' images have {height}x{width}. Resize the table when loading the'
        ' weights, give images of the size that it was made for, or set'
        " position_resize='timm' in the model section"
      )
    init = _init.position_table(self.position_init, self.width)
    table_HWD = self.param(name, init, own)
    if own == shape:
      return table_HWD
    return _position.resize(
      table_HWD, (height, width), method=self.position_resize
    )


def _check(keep, masked, mask_token, shape) -> None:
  B, L, D = shape
  if keep is not None and (
    keep.ndim != 2
    or keep.shape[0] != B
    or not jnp.issubdtype(keep.dtype, jnp.integer)
  ):
    raise UserError(
      f'keep: expected the numbers of patches, integers [{B}, K]; got'
      f' {keep.dtype} of shape {keep.shape}'
    )
  # Values of other arrays are unknown where a function is traced.
  if isinstance(keep, np.ndarray) and ((keep < 0) | (keep >= L)).any():
    raise UserError(
      f'keep: expected numbers of patches from 0 to {L - 1}; got'
      f' {keep.min()} to {keep.max()}'
    )
  if (masked is None) != (mask_token is None):
    raise UserError('masked and mask_token go together; got one of them')
  if masked is not None and (masked.shape != (B, L) or masked.dtype != bool):
    raise UserError(
      f'masked: expected booleans [{B}, {L}], one per patch; got'
      f' {masked.dtype} of shape {masked.shape}'
    )
  if mask_token is not None and mask_token.size != D:
    raise UserError(
      f'mask_token: expected {D} numbers, the width of the model; got shape'
      f' {mask_token.shape}'
    )
