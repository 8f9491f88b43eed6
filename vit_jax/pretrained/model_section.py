"""The `config.model` section that parameters belong to, and if they fit it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained.weights import check_model_name
from vit_jax.printable import printable

# Shapes of a model of larger sizes are not computed, unless an array has them.
_MAX_TRIED = 2**16
_SIZES = tuple(vit.VARIANTS['B'])


def infer(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the fields of `models/vit.ViT` that show in the arrays.

  Args:
    named: arrays by our names, blocks apart; the patches' kernel and block 0
      must be among them.

  Raises:
    UserError: one of the arrays has too few dimensions.
  """

  def size(name, axis):
    shape = named[name].shape
    if len(shape) <= max(axis, 0):
      raise UserError(f'{name} {shape} has too few dimensions')
    return shape[axis]

  kernel = named['patch_embedding/kernel']
  size('patch_embedding/kernel', 3)
  fields = dict(
    patch_size=tuple(kernel.shape[:2]),
    width=kernel.shape[-1],
    depth=depth(named),
    mlp_dim=size('encoder/block_00/mlp/up/kernel', 1),
    num_heads=size('encoder/block_00/attention/query/kernel', 1),
    num_classes=None,
    pooling='mean',
  )
  if 'head/kernel' in named:
    fields['num_classes'] = size('head/kernel', -1)
  if 'class_token' in named:
    fields['pooling'] = 'token'
  elif 'pooling/probe' in named:
    fields['pooling'] = 'map'
  if 'registers' in named:
    fields['num_registers'] = size('registers', 1)
  if 'position_embedding' not in named:
    fields['position'] = 'none'
  if 'norm/scale' in named:
    fields['final_norm'] = 'features'
  if 'representation/kernel' in named:
    fields['representation_size'] = size('representation/kernel', -1)
  if 'encoder/block_00/scale_mlp' in named:
    fields['layer_scale'] = 1e-5  # The initial value shows nowhere.
  if 'encoder/block_00/attention/query_norm/scale' in named:
    fields['qk_norm'] = True
  if 'encoder/block_00/attention/query/bias' not in named:
    fields['qkv_bias'] = False
  return fields


def patch_size(named: Mapping[str, Any]) -> tuple[int, int] | None:
  """Returns height and width of a patch, or None if no kernel tells."""
  kernel = named.get('patch_embedding/kernel')
  if np.ndim(kernel) == 4:
    return kernel.shape[:2]
  convolution = re.compile(r'patch_embedding/convolution_\d+/kernel')
  halvings = sum(bool(convolution.fullmatch(name)) for name in named)
  return (2**halvings, 2**halvings) if halvings else None


def num_channels(named: Mapping[str, Any]) -> int | None:
  """Returns how many channels the images have, or None if no kernel tells."""
  for name in ('', 'convolution_0/'):
    kernel = named.get(f'patch_embedding/{name}kernel')
    if np.ndim(kernel) == 4:
      return kernel.shape[2]
  return None


def depth(named: Mapping[str, Any]) -> int:
  """Returns the number of blocks, counting any that are left out."""
  numbers = [re.match(r'encoder/block_(\d{1,3})/', name) for name in named]
  return max((int(match[1]) for match in numbers if match), default=-1) + 1


def compact(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a section with a variant's name for its sizes, where one fits."""
  fields = dict(fields)
  section = {'name': fields.pop('name', 'vit')}
  height, width = patch = fields['patch_size']
  sizes = {key: fields[key] for key in _SIZES}
  variant = next((k for k, v in vit.VARIANTS.items() if v == sizes), None)
  if variant and height == width:
    section['variant'] = f'{variant}/{height}'
    for key in (*_SIZES, 'patch_size'):
      del fields[key]
  else:
    fields['patch_size'] = height if height == width else patch
  return section | fields


def problems(
  named: Mapping[str, np.ndarray],
  section: Mapping[str, Any],
  *,
  labels: Mapping[str, str] | None = None,
  trusted: bool = False,
) -> list[str]:
  """Returns how arrays differ from the model of a section: a line for each.

  A section may come from a file: sizes that no array has are told before
  anything is built from them.

  Args:
    named: arrays by our names, blocks apart.
    section: a `config.model` section of a ViT. Its parameters are those for the
      grid of the position table in `named`.
    labels: the file's names of our names, to be named in the lines.
    trusted: whether the user named the model, and no file.

  Raises:
    UserError: a section that no ViT can be built from, or that names code
      outside this package and is not trusted.
  """
  labels = labels or {}
  check_model_name(section, trusted=trusted)
  model = _build(section, trusted)
  if lines := _too_large(named, model):
    return lines
  held = depth(named)
  expected = _expected(named, model, min(model.depth, max(held, 1)))

  def name(ours):
    found = printable(ours, max_length=200)
    return f'{labels[ours]} (our {found})' if ours in labels else found

  lines = [f'missing: {name(n)}' for n in expected if n not in named]
  if model.depth > held:
    lines.append(
      f'missing: blocks {held} to {model.depth - 1}: the model has'
      f' depth={model.depth}, and {held} blocks are there'
    )
  for ours, array in named.items():
    if ours not in expected:
      lines.append(f'unexpected: {name(ours)} {array.shape}')
    elif array.shape != expected[ours]:
      lines.append(
        f'{name(ours)}: expected {expected[ours]} in our layout, got'
        f' {array.shape}'
      )
    elif not jnp.issubdtype(array.dtype, jnp.floating):
      lines.append(f'{name(ours)}: expected floats, got {array.dtype}')
  return lines


def listed(lines: Sequence[str], *, max_lines: int = 50) -> str:
  """Returns problems as the indented lines of a message, if many the first."""
  more = len(lines) - max_lines
  shown = [printable(line, max_length=500) for line in lines[:max_lines]]
  shown += [f'and {more:,} more'] * (more > 0)
  return ''.join(f'\n  {line}' for line in shown)


def _build(section: Mapping[str, Any], trusted: bool) -> vit.ViT:
  """Returns the model, with blocks stacked: traced once for all of them."""
  try:
    model = lookup.build(
      'models', {**section, 'scan': True}, 'Model', trusted=trusted
    )
  except (TypeError, ArithmeticError) as e:
    raise _unbuildable(section, e) from e
  if not isinstance(model, vit.ViT):
    raise UserError(f'the model must be one of models/vit.py; got {section}')
  return model


def _too_large(named, model: vit.ViT) -> list[str]:
  """Returns a line for each size that is not even tried against the arrays."""
  longest = max((n for array in named.values() for n in array.shape), default=0)
  keys = ('width', 'mlp_dim', 'num_heads', 'num_classes', 'num_registers')
  sizes = {key: getattr(model, key) or 0 for key in keys}
  sizes['patch_size'] = max(model.patch_size)
  sizes['representation_size'] = int(model.representation_size or 0)
  return [
    f'{key}={size}: no array is that long, the longest has {longest}'
    for key, size in sizes.items()
    if size > max(longest, _MAX_TRIED)
  ]


def _expected(named, model: vit.ViT, depth: int) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the parameters of a model of `depth` blocks."""
  rows, columns = 1, 1
  table = named.get('position_embedding')
  if table is not None and table.ndim == 3:
    rows, columns = table.shape[:2]
  height, width = model.patch_size
  channels = num_channels(named) or 3
  image = jax.ShapeDtypeStruct(
    (1, rows * height, columns * width, channels), jnp.float32
  )
  model = model.clone(depth=depth)
  try:
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  except (TypeError, ArithmeticError) as e:
    raise _unbuildable(model, e) from e
  shapes = {name: leaf.shape for name, leaf in trees.flatten(shapes).items()}
  out = {}
  for name, shape in shapes.items():
    folder, is_stacked, rest = name.rpartition('/blocks/')
    if not is_stacked:
      out[name] = shape
      continue
    for i in range(depth):
      out[f'{folder}/block_{i:02d}/{rest}'] = shape[1:]
  return out


def _unbuildable(section: Any, e: Exception) -> UserError:
  reason = printable(e, max_length=200)
  return UserError(f'no ViT can be built from {section}: {reason}')
