"""solarize: the bright values inverted."""

import numpy as np

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import probability
from vit_jax.data.ops_language import Example, Op
from vit_jax.errors import UserError


def solarize(rate: float = 1.0, *, threshold: int = 128) -> Op:
  """Inverts the values from `threshold` on, with probability `rate`.

  Args:
    rate: a probability.
    threshold: 0 inverts everything, 256 nothing.
  """
  rate = probability(rate)
  if not isinstance(threshold, int) or not 0 <= threshold <= 256:
    raise UserError(f'threshold is an integer of 0 .. 256; got {threshold!r}')

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = _pillow.picture_of(example)
    if rng.random() >= rate:
      return example
    image = _pillow.solarize(_pillow.to_pillow(image), threshold)
    return example | {'image': _pillow.to_array(image)}

  return op
