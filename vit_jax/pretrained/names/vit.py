"""ViT: fields, sizes and shapes of the model that parameters belong to.

Its names in the dialects of others are in `_vit_google.py` and `_vit_torch.py`,
their configs in `_vit_timm.py` and `_vit_huggingface.py`. A file of this folder
exports what this one does; it is chosen by the class of a model, `Model`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import model_section
from vit_jax.pretrained.evaluation import Facts
from vit_jax.pretrained.formats.state_dict import Stored
from vit_jax.pretrained.names import (
  _vit_google as google,  # noqa: F401
  _vit_huggingface as huggingface,
  _vit_timm as timm,
  _vit_torch as torch,
)
from vit_jax.pretrained.names._dialect import Dialect

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
# Arguments that only the training scripts of these code bases have, and how
# those resize positions: DINO and iBOT; DeiT and its descendants; MAE.
_ARGUMENTS = {
  'local_crops_number': 'dino',
  'distillation_type': 'torch',
  'blr': 'torch',
}


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
  for key, name, axis in (
    ('num_classes', 'head/kernel', -1),
    ('num_registers', 'registers', 1),
    ('representation_size', 'representation/kernel', -1),
    ('head_hidden_dim', 'head/hidden/kernel', -1),
  ):
    if name in named:
      fields[key] = size(name, axis)
  if 'class_token' in named:
    fields['pooling'] = 'token'
  elif 'pooling/probe' in named:
    fields['pooling'] = 'map'
  if 'position_embedding' not in named:
    fields['position'] = 'none'
  if 'norm/scale' in named:
    fields['final_norm'] = 'features'
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
  sides = patch if isinstance(patch, list | tuple) else (patch, patch)
  if len(sides) == 2 and sides[0] == sides[1]:
    fields['patch_size'] = sides[0]
  sizes = {key: fields[key] for key in _SIZES}
  variant = next((k for k, v in vit.VARIANTS.items() if v == sizes), None)
  if variant and isinstance(fields['patch_size'], int):
    section['variant'] = f'{variant}/{fields["patch_size"]}'
    for key in (*_SIZES, 'patch_size'):
      del fields[key]
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
  keys += ('head_hidden_dim',)
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


def facts(
  stored: Stored,
  dialect: Dialect,
  theirs: Mapping[str, np.ndarray],
  unused: list[str],
  model: Mapping[str, Any],
) -> Facts:
  """Returns what the configs say or, without one, what the dialect implies.

  The number of heads, which no array of torch's shows, is among the fields.

  Args:
    stored: of a file.
    dialect: of its names.
    theirs: the arrays of the model, by names without prefix.
    unused: names in the file that are not part of the encoder.
    model: fields that the user gave.

  Raises:
    UserError: a model that models/vit.py is not, or whose number of heads is
      unknown, and neither a variant nor heads of 64 channels fit.
  """
  name = dialect.name
  if 'architecture' in stored.config:
    found = timm.read(stored.config)
  elif stored.config:
    found = huggingface.read(stored.config, stored.preprocessor)
  elif name.startswith('huggingface'):
    kind = {'huggingface_siglip': 'siglip_vision_model'}
    kind = kind.get(name, name.removeprefix('huggingface_'))
    found = Facts(model=huggingface.DEFAULTS[kind])
  else:
    # All of Meta's models take images as torchvision normalizes them.
    known = name in ('deit3', 'dinov2') or unused or _script(stored)
    preprocess = dict(device_ops="normalize('imagenet')") if known else {}
    found = Facts(model=timm.DEFAULTS, preprocess=preprocess)
  heads = model.get('num_heads') or found.model.get('num_heads')
  heads = heads or _num_heads(theirs, dialect, str(model.get('variant')))
  return dataclasses.replace(found, model=found.model | {'num_heads': heads})


def resize_method(
  stored: Stored, dialect: Dialect, unused: list[str], *, registers: bool
) -> str:
  """Returns how the code base of the weights resizes positions.

  DINO, MAE and DeiT have timm's names and methods of their own. Their content
  shows in DINO's heads, MAE's decoder, or the arguments of their training
  scripts; with none of these (as in their published encoders), or with a config
  of timm, the method is timm's.
  """
  if 'dinov2' in dialect.name and registers:
    return 'timm'  # Antialiased, and without DINO's offset.
  if dialect.name == 'dinov2':
    return 'dino'
  if dialect.name != 'timm':
    return 'torch'
  if 'architecture' in stored.config:
    return 'timm'
  for pattern, method in (
    (torch.DINO_HEAD, 'dino'),
    (torch.MAE_DECODER, 'torch'),
  ):
    if any(re.fullmatch(pattern, name) for name in unused):
      return method
  return _ARGUMENTS.get(_script(stored), 'timm')


def _script(stored: Stored) -> str | None:
  """Returns the first of `_ARGUMENTS` that the training script had."""
  return next((name for name in _ARGUMENTS if name in stored.arguments), None)


def _num_heads(theirs, dialect: Dialect, variant: str) -> int:
  width = theirs[dialect.anchor].shape[0]
  names = {ours[0]: name for name, ours in dialect.table(1).items()}
  up = theirs.get(names['encoder/block_00/mlp/up/kernel'], 0)
  for name, sizes in vit.VARIANTS.items():
    same = (sizes['width'], sizes['mlp_dim']) == (width, *np.shape(up)[:1])
    if same or name == variant.partition('/')[0]:
      return sizes['num_heads']
  if width % 64:
    raise UserError(
      f'the number of heads of this model of width {width} is not known: set '
      "model={'num_heads': ...}"
    )
  return width // 64
