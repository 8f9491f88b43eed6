"""The `config.model` section that parameters belong to, and whether they fit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.models import vit

_SIZES = ('width', 'depth', 'mlp_dim', 'num_heads')


def infer(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the fields of `models/vit.ViT` that show in the arrays.

  Args:
    params: arrays by our names, blocks apart.
  """
  kernel = params['patch_embedding/kernel']
  query = params['encoder/block_00/attention/query/kernel']
  fields = dict(
    patch_size=tuple(kernel.shape[:2]),
    width=kernel.shape[-1],
    depth=len([n for n in params if n.endswith('/norm_mlp/scale')]),
    mlp_dim=params['encoder/block_00/mlp/up/kernel'].shape[1],
    num_heads=query.shape[1],
    num_classes=None,
    pooling='mean',
  )
  if 'head/kernel' in params:
    fields['num_classes'] = params['head/kernel'].shape[1]
  if 'class_token' in params:
    fields['pooling'] = 'token'
  elif 'pooling/probe' in params:
    fields['pooling'] = 'map'
  if 'registers' in params:
    fields['num_registers'] = params['registers'].shape[1]
  if 'position_embedding' not in params:
    fields['position'] = 'none'
  if 'norm/scale' in params:
    fields['final_norm'] = 'features'
  if 'representation/kernel' in params:
    fields['representation_size'] = params['representation/kernel'].shape[1]
  if 'encoder/block_00/scale_mlp' in params:
    fields['layer_scale'] = 1e-5  # The initial value shows nowhere.
  if 'encoder/block_00/attention/query_norm/scale' in params:
    fields['qk_norm'] = True
  if 'encoder/block_00/attention/query/bias' not in params:
    fields['qkv_bias'] = False
  return fields


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
  params: Mapping[str, np.ndarray],
  section: Mapping[str, Any],
  *,
  image_size: tuple[int, int] | None = None,
  labels: Mapping[str, str] | None = None,
) -> list[str]:
  """Returns how arrays differ from the model of a section: a line for each.

  Args:
    params: arrays by our names, blocks apart.
    section: a `config.model` section of models/vit.py.
    image_size: (height, width) that the position table is for; None where there
      is no table.
    labels: the file's names of our names, to be named in the lines.
  """
  labels = labels or {}
  expected = _expected(params, section, image_size)

  def name(ours):
    return f'{labels[ours]} (our {ours})' if ours in labels else ours

  lines = [f'missing: {name(n)}' for n in expected if n not in params]
  for ours, array in params.items():
    if ours not in expected:
      lines.append(f'unexpected: {name(ours)} {array.shape}')
    elif array.shape != expected[ours]:
      lines.append(
        f'{name(ours)}: expected {expected[ours]} in our layout, got'
        f' {array.shape}'
      )
  return lines


def _expected(params, section, image_size) -> dict[str, tuple[int, ...]]:
  # Traced once for all blocks: a scan has them stacked.
  model = lookup.build('models', {**section, 'scan': True}, 'Model')
  if not isinstance(model, vit.ViT):
    raise UserError(f'the model must be one of models/vit.py; got {section}')
  channels = params['patch_embedding/kernel'].shape[2]
  height, width = image_size or model.patch_size
  image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  stacked, expected = 'encoder/blocks/', {}
  for name, leaf in trees.flatten(shapes).items():
    if name.startswith(stacked):
      rest = name.removeprefix(stacked)
      for i in range(model.depth):
        expected[f'encoder/block_{i:02d}/{rest}'] = leaf.shape[1:]
    else:
      expected[name] = leaf.shape
  return expected
