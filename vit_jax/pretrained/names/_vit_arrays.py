"""Arrays of a ViT for files of other libraries, with its position table."""

from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import _position, vit
from vit_jax.pretrained import model_section
from vit_jax.pretrained.weights import Weights

Arrays = dict[str, np.ndarray]


def for_torch(
  weights: Weights, model: vit.ViT, their_model: str, *, positions: bool
) -> tuple[Arrays, tuple[int, int]]:
  """Returns our arrays with blocks apart, and (height, width) of images.

  `positions` is whether a fixed position table is to be among them.

  Raises:
    UserError: a convolutional stem, or the size of images is unknown.
  """
  if model.stem is not None:
    raise UserError(
      f"{their_model} has no convolutional stem (stem='conv'); write"
      ' .safetensors, or train with a stem of patches'
    )
  named = {name: np.asarray(x) for name, x in weights.params.items()}
  if 'position_embedding' not in named and positions:
    named['position_embedding'] = fixed_table(
      model.position,
      weights.preprocess.get('image_size'),
      named['patch_embedding/kernel'],
    )
  size = model_section.image_size(named) or weights.preprocess.get('image_size')
  if size is None:
    raise UserError(
      "the size of images is unknown: set preprocess['image_size']"
    )
  return named, tuple(size)


def fixed_table(
  position: str, image_size: Any, kernel: np.ndarray
) -> np.ndarray:
  """Returns the table that a model without a learned one adds to its patches.

  Raises:
    UserError: the image size is unknown.
  """
  if image_size is None:
    raise UserError(
      'the format needs a position table, the model has none, and the image'
      " size is unknown: set preprocess['image_size']"
    )
  sides = [image_size[i] // kernel.shape[i] for i in range(2)]
  make = _position.TABLES[position]
  if make is None:
    return np.zeros((*sides, kernel.shape[-1]), np.float32)
  return make(*sides, kernel.shape[-1])
