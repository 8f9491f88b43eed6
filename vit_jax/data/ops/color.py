"""Changes of colour and sharpness: jitter, greyscale, solarize, blur."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import is_int, is_range, range_of
from vit_jax.data.ops_language import Op
from vit_jax.errors import UserError

_FUNCTIONS = {
  'brightness': _pillow.brightness,
  'contrast': _pillow.contrast,
  'saturation': _pillow.color,
  'hue': _pillow.hue,
}


def color_jitter(
  brightness: float | Sequence[float] = 0.0,
  contrast: float | Sequence[float] = 0.0,
  saturation: float | Sequence[float] = 0.0,
  hue: float | Sequence[float] = 0.0,
  *,
  rate: float = 1.0,
) -> Op:
  """Changes the colours by random amounts, in random order.

  As torchvision's ColorJitter on Pillow images, with the same arguments:
  `color_jitter(0.4, 0.4, 0.2, 0.1, rate=0.8)` is DINO's.

  Args:
    brightness: v draws the factor uniformly from max(0, 1 - v) .. 1 + v; a pair
      is the range itself. 0 leaves it as it is.
    contrast: likewise.
    saturation: likewise.
    hue: v, at most 0.5, turns the hue by -v .. v of the colour circle; a pair
      is the range itself.
    rate: probability with which the image is changed at all.
  """
  given = dict(
    brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
  )
  ranges = {
    name: _range(name, value) for name, value in given.items() if value != 0
  }

  def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    factors = {name: rng.uniform(*pair) for name, pair in ranges.items()}
    for name in rng.permutation(list(factors)):
      image = _FUNCTIONS[name](image, factors[name])
    return image

  return _pillow.as_op(change, rate)


def grayscale(rate: float = 1.0) -> Op:
  """Removes the colour with probability `rate`; the channels remain.

  The grey is ITU-R 601's luma (299 R + 587 G + 114 B) / 1000, as in Pillow and
  torchvision's RandomGrayscale. A greyscale image does not change.
  """
  return _pillow.as_op(lambda image, rng: _pillow.grayscale(image), rate)


def solarize(rate: float = 1.0, *, threshold: int = 128) -> Op:
  """Inverts the values from `threshold` on, with probability `rate`.

  Args:
    rate: a probability.
    threshold: 0 inverts everything, 256 nothing.
  """
  if not is_int(threshold, 0, 256):
    raise UserError(f'threshold is an integer of 0 .. 256; got {threshold!r}')
  return _pillow.as_op(
    lambda image, rng: _pillow.solarize(image, threshold), rate
  )


def gaussian_blur(
  rate: float = 1.0, *, radius: tuple[float, float] = (0.1, 2.0)
) -> Op:
  """Blurs with probability `rate`, as DINO and DeiT III do by Pillow.

  Args:
    rate: a probability.
    radius: smallest and largest radius (a standard deviation) in pixels, drawn
      uniformly between.
  """
  low, high = range_of('radius', radius)
  return _pillow.as_op(
    lambda image, rng: _pillow.blur(image, rng.uniform(low, high)), rate
  )


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


def _range(name: str, value: float | Sequence[float]) -> tuple[float, float]:
  """Returns the range of a factor or, for the hue, of the turn."""
  least, most, middle = (-0.5, 0.5, 0.0) if name == 'hue' else (0, np.inf, 1.0)
  pair = value
  if isinstance(value, int | float):
    pair = (max(least, middle - value), middle + value)
  if not is_range(pair, least, most):
    raise UserError(
      f'{name} is a number of at least 0 or a pair (low, high) within '
      f'{least:g} .. {most:g}; got {value!r}'
    )
  return tuple(pair)
