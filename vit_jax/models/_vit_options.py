"""Checks of the options and of the images of a ViT."""

import flax.linen as nn
import jax.numpy as jnp

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.models import _activations, _attention, _encoder, _init, _position

POOLINGS = ('token', 'mean', 'map', 'none')
FINAL_NORMS = ('tokens', 'features')
DTYPES = ('float32', 'bfloat16', 'float16')


def check_types(vit: nn.Module) -> None:
  """Raises UserError for fields of another type than they are declared with."""
  problems = []
  for key, field in vit.__dataclass_fields__.items():
    if key in ('parent', 'name'):  # They are flax's.
      continue
    value = getattr(vit, key)
    if words := lookup.expected(field.type, value):
      problems.append(f'{key}={value!r}: expected {words}')
  if problems:
    raise UserError('ViT: ' + '; '.join(problems))


def check_values(vit: nn.Module) -> None:
  """Raises UserError for values out of range or that do not fit together."""
  problems = []
  sizes = vit.patch_size
  if len(sizes) != 2 or not all(isinstance(s, int) and s > 0 for s in sizes):
    problems.append(f'patch_size={sizes}: expected a side, or (height, width)')
  for key, choices in (
    ('pooling', POOLINGS),
    ('position', tuple(_position.TABLES)),
    ('position_resize', (None, *_position.RESIZE)),
    ('final_norm', FINAL_NORMS),
    ('weight_init', tuple(_init.SCHEMES)),
    ('activation', tuple(_activations.ACTIVATIONS)),
    ('attention', _attention.ATTENTIONS),
    ('remat', (None, *_encoder.REMAT_POLICIES)),
    ('dtype', DTYPES),
    ('residual_dtype', (None, *DTYPES)),
    ('stochastic_depth_schedule', ('linear', 'constant')),
  ):
    value = getattr(vit, key)
    if value not in choices:
      listed = ', '.join(repr(c) for c in choices)
      problems.append(f'{key}={value!r}: expected one of {listed}')
  for key in (
    'stochastic_depth_rate',
    'dropout_rate',
    'attention_dropout_rate',
    'head_dropout_rate',
  ):
    if not 0 <= getattr(vit, key) < 1:
      problems.append(f'{key}={getattr(vit, key)}: expected 0 <= rate < 1')
  for key, least in (
    ('width', 1),
    ('depth', 1),
    ('mlp_dim', 1),
    ('num_heads', 1),
    ('num_classes', 0),
    ('num_registers', 0),
    ('representation_size', 0),
    ('head_hidden_dim', 1),
    ('layer_scale', 0),
    ('norm_epsilon', 0),
  ):
    value = getattr(vit, key)
    if value is not None and value < least:
      problems.append(f'{key}={value}: expected {least} or more')
  if vit.width < 1 or vit.num_heads < 1:
    raise UserError('ViT: ' + '; '.join(problems))
  if vit.stem is not None and not isinstance(vit.stem, nn.Module):
    problems.append(
      f'stem={vit.stem!r}: expected a module; names are for vit.Model'
    )
  if vit.width % vit.num_heads:
    problems.append(
      f'width={vit.width} is not divisible by num_heads={vit.num_heads}; for'
      f' example {vit.width // vit.num_heads * vit.num_heads} would be'
    )
  if vit.position.startswith('sincos2d') and vit.width % 4:
    problems.append(
      f'position={vit.position!r} needs a width divisible by 4; got {vit.width}'
    )
  if vit.position_resize is not None and vit.position != 'learned':
    problems.append(
      f"position_resize={vit.position_resize!r} needs position='learned'; a"
      f' table of position={vit.position!r} is made for every grid'
    )
  problems += _position_init_problems(vit.position_init, vit.position)
  if problems:
    raise UserError('ViT: ' + '; '.join(problems))


def _position_init_problems(std: float | str, position: str) -> list[str]:
  named = isinstance(std, str)
  if std not in _init.POSITION_STD if named else not std > 0:
    listed = ', '.join(map(repr, _init.POSITION_STD))
    return [
      f'position_init={std!r}: expected a standard deviation above 0, or one of'
      f' {listed}'
    ]
  if position != 'learned' and std != 'google':
    return [
      f"position_init={std!r} needs position='learned'; the table of"
      f' position={position!r} is not learned'
    ]
  return []


def check_image(vit: nn.Module, image) -> None:
  """Raises UserError for images that the patch does not divide."""
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
