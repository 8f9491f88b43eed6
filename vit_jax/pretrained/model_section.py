"""The `config.model` section that parameters belong to, and if they fit it."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import blocks

_SIZES = ('width', 'depth', 'mlp_dim', 'num_heads')


def infer(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the fields of `models/vit.ViT` that show in the arrays.

  Args:
    named: arrays by our names, blocks apart; the patches' kernel and block 0
      must be among them.
  """
  kernel = named['patch_embedding/kernel']
  fields = dict(
    patch_size=tuple(kernel.shape[:2]),
    width=kernel.shape[-1],
    depth=depth(named),
    mlp_dim=named['encoder/block_00/mlp/up/kernel'].shape[1],
    num_heads=named['encoder/block_00/attention/query/kernel'].shape[1],
    num_classes=None,
    pooling='mean',
  )
  if 'head/kernel' in named:
    fields['num_classes'] = named['head/kernel'].shape[-1]
  if 'class_token' in named:
    fields['pooling'] = 'token'
  elif 'pooling/probe' in named:
    fields['pooling'] = 'map'
  if 'registers' in named:
    fields['num_registers'] = named['registers'].shape[1]
  if 'position_embedding' not in named:
    fields['position'] = 'none'
  if 'norm/scale' in named:
    fields['final_norm'] = 'features'
  if 'representation/kernel' in named:
    fields['representation_size'] = named['representation/kernel'].shape[-1]
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
  numbers = [re.match(r'encoder/block_(\d+)/', name) for name in named]
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
) -> list[str]:
  """Returns how arrays differ from the model of a section: a line for each.

  Args:
    named: arrays by our names, blocks apart.
    section: a `config.model` section of a ViT. Its parameters are those for the
      grid of the position table in `named`.
    labels: the file's names of our names, to be named in the lines.
  """
  labels = labels or {}
  expected = _expected(named, section)

  def name(ours):
    return f'{labels[ours]} (our {ours})' if ours in labels else ours

  lines = [f'missing: {name(n)}' for n in expected if n not in named]
  for ours, array in named.items():
    if ours not in expected:
      lines.append(f'unexpected: {name(ours)} {array.shape}')
    elif array.shape != expected[ours]:
      lines.append(
        f'{name(ours)}: expected {expected[ours]} in our layout, got'
        f' {array.shape}'
      )
  return lines


def _expected(named, section) -> dict[str, tuple[int, ...]]:
  # Traced once for all blocks: a scan has them stacked.
  model = lookup.build('models', {**section, 'scan': True}, 'Model')
  if not isinstance(model, vit.ViT):
    raise UserError(f'the model must be one of models/vit.py; got {section}')
  rows, columns = 1, 1
  table = named.get('position_embedding')
  if table is not None and table.ndim == 3:
    rows, columns = table.shape[:2]
  height, width = model.patch_size
  channels = num_channels(named) or 3
  image = jnp.zeros((1, rows * height, columns * width, channels))
  shapes = jax.eval_shape(
    lambda: blocks.unstack(
      trees.flatten(model.init(jax.random.key(0), image)['params'])
    )
  )
  return {name: leaf.shape for name, leaf in shapes.items()}
