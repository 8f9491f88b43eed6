"""ViT: fields, sizes and shapes of the model that parameters belong to.

Its names in the dialects of others are in `_vit_google.py` and `_vit_torch.py`,
their configs in `_vit_timm.py` and `_vit_huggingface.py`, what else shows in
their files in `_vit_facts.py`. A file of this folder exports what this one
does; it is chosen by the class of a model, `Model`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import model_section
from vit_jax.pretrained.names import (
  _vit_facts as facts,  # noqa: F401
  _vit_google as google,  # noqa: F401
  _vit_huggingface as huggingface,  # noqa: F401
  _vit_timm as timm,  # noqa: F401
  _vit_torch as torch,  # noqa: F401
)

Model = vit.ViT
# Without these, `infer` does not know the sizes.
NEEDED = (
  'patch_embedding/kernel',
  'encoder/block_00/attention/query/kernel',
  'encoder/block_00/mlp/up/kernel',
)
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
    depth=model_section.depth(named),
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


def pooled(
  named: Mapping[str, np.ndarray], pooling: str
) -> dict[str, np.ndarray]:
  """Returns arrays for another pooling.

  One that reads no class token drops the token, and 'token' gives a model
  without one the zeros that training would start from.
  """
  named = dict(named)
  if pooling != 'token':
    named.pop('class_token', None)
  elif 'class_token' not in named:
    scale = named.get('encoder/block_00/norm_mlp/scale')
    if scale is not None:  # Or else it is missing: an error later.
      named['class_token'] = np.zeros((1, 1, scale.shape[-1]), np.float32)
  return named


def section(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a section with a variant's name for its sizes, where one fits."""
  fields = dict(fields)
  section = {'name': fields.pop('name', 'vit')}
  patch = fields['patch_size']
  height, width = patch = (patch, patch) if isinstance(patch, int) else patch
  sizes = {key: fields[key] for key in _SIZES}
  variant = next((k for k, v in vit.VARIANTS.items() if v == sizes), None)
  if variant and height == width:
    section['variant'] = f'{variant}/{height}'
    for key in (*_SIZES, 'patch_size'):
      del fields[key]
  else:
    fields['patch_size'] = height if height == width else patch
  return section | fields


def expected(
  named: Mapping[str, np.ndarray], model: vit.ViT
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
  """Returns the shapes of parameters, and a line for what they lack.

  Nothing is built, and the shapes are empty, where the model has sizes that no
  array has. Blocks that the arrays lack share one line.

  Args:
    named: arrays with the position table and channels that the model is for.
    model: may come from a file.
  """
  longest = max((n for array in named.values() for n in array.shape), default=0)
  keys = ('width', 'mlp_dim', 'num_heads', 'num_classes', 'num_registers')
  sizes = {key: getattr(model, key) or 0 for key in keys}
  sizes['patch_size'] = max(model.patch_size)
  sizes['representation_size'] = int(model.representation_size or 0)
  lines = [
    f'{key}={size}: no array is that long, the longest has {longest}'
    for key, size in sizes.items()
    if size > max(longest, _MAX_TRIED)
  ]
  if lines:
    return {}, lines
  held = model_section.depth(named)
  if model.depth > held:
    lines.append(
      f'missing: blocks {held} to {model.depth - 1}: the model has'
      f' depth={model.depth}, and {held} blocks are there'
    )
  rows, columns = 1, 1
  table = named.get('position_embedding')
  if table is not None and table.ndim == 3:
    rows, columns = table.shape[:2]
  height, width = model.patch_size
  channels = model_section.num_channels(named) or 3
  image = jax.ShapeDtypeStruct(
    (1, rows * height, columns * width, channels), jnp.float32
  )
  # Stacked blocks are traced once for all of them.
  model = model.clone(depth=min(model.depth, max(held, 1)), scan=True)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  out = {}
  for name, leaf in trees.flatten(shapes).items():
    folder, is_stacked, rest = name.rpartition('/blocks/')
    if not is_stacked:
      out[name] = leaf.shape
      continue
    for i in range(model.depth):
      out[f'{folder}/block_{i:02d}/{rest}'] = leaf.shape[1:]
  return out, lines
