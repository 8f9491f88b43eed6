"""color_jitter: random brightness, contrast, saturation and hue."""

from collections.abc import Sequence

import numpy as np

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import probability
from vit_jax.data.ops_language import Example, Op
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
  rate = probability(rate)
  given = dict(
    brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
  )
  ranges = {
    name: _range(name, value) for name, value in given.items() if value != 0
  }

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = _pillow.picture_of(example)
    if rng.random() >= rate or not ranges:
      return example
    image = _pillow.to_pillow(image)
    factors = {name: rng.uniform(*pair) for name, pair in ranges.items()}
    for name in rng.permutation(list(factors)):
      image = _FUNCTIONS[name](image, factors[name])
    return example | {'image': _pillow.to_array(image)}

  return op


def _range(name: str, value: float | Sequence[float]) -> tuple[float, float]:
  """Returns the range of a factor or, of the hue, of the turn."""
  least, most = (-0.5, 0.5) if name == 'hue' else (0.0, np.inf)
  pair = value
  if isinstance(value, int | float):
    middle = 0.0 if name == 'hue' else 1.0
    pair = (middle - value, middle + value)
    if name != 'hue':
      pair = (max(0.0, pair[0]), pair[1])
  if (
    not isinstance(pair, list | tuple)
    or len(pair) != 2
    or not all(isinstance(v, int | float) for v in pair)
    or not least <= pair[0] <= pair[1] <= most
  ):
    raise UserError(
      f'{name} is a number of at least 0 or a pair (low, high) within '
      f'{least:g} .. {most:g}; got {value!r}'
    )
  return tuple(pair)
