"""Arrays of a ViT for files of other libraries, with its position table."""

import numpy as np

from vit_jax.data import ops_language
from vit_jax.errors import UserError
from vit_jax.models import _position, vit
from vit_jax.pretrained import json_fields, model_section
from vit_jax.pretrained.names._dialect import Arrays
from vit_jax.pretrained.weights import Weights


def for_torch(
  weights: Weights, model: vit.ViT, their_model: str, *, positions: bool
) -> tuple[Arrays, tuple[int, int]]:
  """Returns our arrays with blocks apart, and (height, width) of images.

  `positions` is whether a fixed position table is to be among them.
  """
  if model.stem is not None:
    raise UserError(
      f"{their_model} has no convolutional stem (stem='conv'); write"
      ' .safetensors, or train with a stem of patches'
    )
  named = with_positions(weights, model) if positions else weights.params
  return named, model_section.image_size(named) or _image_size(weights)


def with_positions(weights: Weights, model: vit.ViT) -> Arrays:
  """Returns our arrays with the table of a model that learned none."""
  named = dict(weights.params)
  if 'position_embedding' not in named:
    rows, columns, _, width = named['patch_embedding/kernel'].shape
    image_height, image_width = _image_size(weights)
    grid = (image_height // rows, image_width // columns)
    make = _position.TABLES[model.position]
    zeros = np.zeros((*grid, width), np.float32)
    named['position_embedding'] = make(*grid, width) if make else zeros
  return named


def _image_size(weights: Weights) -> tuple[int, int]:
  """Returns the noted size of images, or else that of their last host op."""
  size = weights.preprocess.get('image_size') or _made_by(
    weights.preprocess.get('ops') or ''
  )
  if size is None:
    raise UserError(
      'the format needs the size of images, which is unknown: load the weights'
      ' with image_size, such as image_size=224'
    )
  return tuple(size)


def _made_by(ops: str) -> tuple[int, int] | None:
  last = (ops_language.segments(ops) or [None])[-1]
  if last is None or last.name not in ('resize', 'central_crop'):
    return None
  size = (*last.args, last.kwargs.get('size'))[0]
  sides = (size, size) if np.ndim(size) == 0 else tuple(size)
  valid = len(sides) == 2 and all(type(side) is int for side in sides)
  if not valid or not 1 <= min(sides) <= max(sides) <= json_fields.MAX_SIDE:
    return None
  return sides
