"""three_augment: one of greyscale, solarize and blur (DeiT III)."""

import numpy as np

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import range_of
from vit_jax.data.ops_language import Example, Op


def three_augment(
  *, threshold: int = 128, radius: tuple[float, float] = (0.1, 2.0)
) -> Op:
  """Makes each image greyscale, solarized or blurred, each with chance 1/3.

  DeiT III (Touvron et al. 2022, arXiv:2204.07118) has `color_jitter(0.3, 0.3,
  0.3)` after it, and before it a crop and a flip.

  Args:
    threshold: from which value on solarize inverts.
    radius: smallest and largest radius of the blur, in pixels.
  """
  low, high = range_of('radius', radius)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = _pillow.to_pillow(_pillow.picture_of(example))
    choice = rng.integers(3)
    if choice == 0:
      image = _pillow.grayscale(image)
    elif choice == 1:
      image = _pillow.solarize(image, threshold)
    else:
      image = _pillow.blur(image, rng.uniform(low, high))
    return example | {'image': _pillow.to_array(image)}

  return op
