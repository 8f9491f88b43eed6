"""The options of a ViT that have a few values, and checks of all of them."""

import flax.linen as nn

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.models import _attention, _layers, _position

STEMS = ('patch', 'conv')
POOLINGS = ('token', 'mean', 'map', 'none')
FINAL_NORMS = ('tokens', 'features')
POSITIONS = {
  'learned': None,
  'sincos2d': _position.sincos2d,
  'sincos2d_moco': _position.sincos2d_moco,
  'none': None,
}
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
    ('stem', STEMS),
    ('pooling', POOLINGS),
    ('position', tuple(POSITIONS)),
    ('final_norm', FINAL_NORMS),
    ('activation', tuple(_layers.ACTIVATIONS)),
    ('attention', _attention.ATTENTIONS),
    ('remat', (None, *_layers.REMAT_POLICIES)),
    ('dtype', DTYPES),
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
    ('layer_scale', 0),
    ('norm_epsilon', 0),
  ):
    value = getattr(vit, key)
    if value is not None and value < least:
      problems.append(f'{key}={value}: expected {least} or more')
  if vit.width < 1 or vit.num_heads < 1:
    raise UserError('ViT: ' + '; '.join(problems))
  if vit.stem == 'conv':
    problems += _stem_problems(vit)
  if vit.width % vit.num_heads:
    problems.append(
      f'width={vit.width} is not divisible by num_heads={vit.num_heads}; for'
      f' example {vit.width // vit.num_heads * vit.num_heads} would be'
    )
  if vit.position.startswith('sincos2d') and vit.width % 4:
    problems.append(
      f'position={vit.position!r} needs a width divisible by 4; got {vit.width}'
    )
  if problems:
    raise UserError('ViT: ' + '; '.join(problems))


def _stem_problems(vit: nn.Module) -> list[str]:
  rows, columns = vit.patch_size
  if rows != columns or rows < 2 or rows.bit_count() > 1:
    return [
      f"patch_size={vit.patch_size}: stem='conv' halves the image again and"
      ' again, which takes a square whose side is 2, 4, 8, 16, ...'
    ]
  if vit.width % (rows // 2):
    return [
      f"width={vit.width}: stem='conv' with a patch of {rows} starts with"
      f' width / {rows // 2} channels and needs a multiple of {rows // 2}'
    ]
  return []
