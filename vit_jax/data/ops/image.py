"""Ops on the decoded image that a few lines describe."""

import numpy as np

from vit_jax.data.ops._checks import image_of
from vit_jax.data.ops.language import Example, Op
from vit_jax.errors import UserError


def flip_lr(rate: float = 0.5) -> Op:
  """Mirrors the image left to right with probability `rate`."""
  if not 0 <= rate <= 1:
    raise UserError(f'rate is a probability, 0 to 1; got {rate!r}')

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = image_of(example)
    if rng.random() >= rate:
      return example
    return example | {'image': image[:, ::-1]}

  return op
