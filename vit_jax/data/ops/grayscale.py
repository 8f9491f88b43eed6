"""grayscale: the luma of the image in all its channels."""

import numpy as np

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import probability
from vit_jax.data.ops_language import Example, Op


def grayscale(rate: float = 1.0) -> Op:
  """Takes the colour out, with probability `rate`; channels stay as many.

  The grey is ITU-R 601's luma (299 R + 587 G + 114 B) / 1000, as in Pillow and
  torchvision's RandomGrayscale. A greyscale image stays as it is.
  """
  rate = probability(rate)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = _pillow.picture_of(example)
    if rng.random() >= rate:
      return example
    image = _pillow.grayscale(_pillow.to_pillow(image))
    return example | {'image': _pillow.to_array(image)}

  return op
