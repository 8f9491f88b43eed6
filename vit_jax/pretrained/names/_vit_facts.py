"""Metadata of a ViT in torch files: fields, preprocessing, resizing."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained.evaluation import Facts
from vit_jax.pretrained.formats._state_dict_files import Stored
from vit_jax.pretrained.names import _vit_huggingface, _vit_timm, _vit_torch
from vit_jax.pretrained.names._dialect import Dialect

_IMAGENET = {'device_ops': "normalize('imagenet')"}
# Arguments that only the training scripts of these code bases have, and how
# those resize positions: DINO and iBOT; DeiT and its descendants; MAE.
_ARGUMENTS = {
  'local_crops_number': 'dino',
  'distillation_type': 'torch',
  'blr': 'torch',
}


def facts(stored: Stored, dialect: Dialect, unused: list[str]) -> Facts:
  """Returns what the configs say or, without one, what the dialect implies.

  `unused` are names in the file that are not part of the encoder.

  Raises:
    UserError: a model that models/vit.py is not.
  """
  if 'architecture' in stored.config:
    return _vit_timm.read(stored.config)
  if stored.config:
    return _vit_huggingface.read(stored.config, stored.preprocessor)
  name = dialect.name
  if name.startswith('huggingface'):
    kind = {'huggingface_siglip': 'siglip_vision_model'}
    kind = kind.get(name, name.removeprefix('huggingface_'))
    return Facts(model=_vit_huggingface.DEFAULTS[kind])
  # All of Meta's models take images as torchvision normalizes them.
  known = name in ('deit3', 'dinov2') or unused or _script(stored)
  preprocess = _IMAGENET if known else {}
  return Facts(model=_vit_timm.DEFAULTS, preprocess=dict(preprocess))


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
    (_vit_torch.DINO_HEAD, 'dino'),
    (_vit_torch.MAE_DECODER, 'torch'),
  ):
    if any(re.fullmatch(pattern, name) for name in unused):
      return method
  return _ARGUMENTS.get(_script(stored), 'timm')


def _script(stored: Stored) -> str | None:
  """Returns the first of `_ARGUMENTS` that the training script had."""
  return next((name for name in _ARGUMENTS if name in stored.arguments), None)


def num_heads(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  facts: Facts,
  model: Mapping[str, Any],
) -> int:
  """Returns the number of heads, which no array of torch's shows.

  Raises:
    UserError: it is unknown, and no variant nor heads of 64 channels fit.
  """
  for known in (model, facts.model):
    if 'num_heads' in known:
      return known['num_heads']
  variant = str(model.get('variant', '')).partition('/')[0]
  if variant in vit.VARIANTS:
    return vit.VARIANTS[variant]['num_heads']
  names = {v[0]: k for k, v in dialect.table(1).items()}
  width = theirs[dialect.anchor].shape[0]
  mlp = np.shape(theirs.get(names['encoder/block_00/mlp/up/kernel'], 0))
  for sizes in vit.VARIANTS.values():
    if (sizes['width'], sizes['mlp_dim']) == (width, *mlp[:1]):
      return sizes['num_heads']
  if width % 64:
    raise UserError(
      f'the number of heads of this model of width {width} is not known: set '
      "model={'num_heads': ...}"
    )
  return width // 64
