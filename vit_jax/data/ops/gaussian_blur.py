"""gaussian_blur: blur by a random radius."""

import numpy as np

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import probability, range_of
from vit_jax.data.ops_language import Example, Op


def gaussian_blur(
  rate: float = 1.0, *, radius: tuple[float, float] = (0.1, 2.0)
) -> Op:
  """Blurs with probability `rate`, as DINO and DeiT III do by Pillow.

  Args:
    rate: a probability.
    radius: smallest and largest radius (a standard deviation) in pixels, drawn
      uniformly between.
  """
  rate, (low, high) = probability(rate), range_of('radius', radius)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = _pillow.picture_of(example)
    if rng.random() >= rate:
      return example
    image = _pillow.to_pillow(image)
    image = _pillow.blur(image, rng.uniform(low, high))
    return example | {'image': _pillow.to_array(image)}

  return op
