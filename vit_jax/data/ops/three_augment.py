"""three_augment: one of greyscale, solarize and blur (DeiT III)."""

import numpy as np
from PIL import Image

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import range_of
from vit_jax.data.ops_language import Op


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

  def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    choice = rng.integers(3)
    if choice == 0:
      return _pillow.grayscale(image)
    if choice == 1:
      return _pillow.solarize(image, threshold)
    return _pillow.blur(image, rng.uniform(low, high))

  return _pillow.as_op(change)
