"""Ops on the image of an example, and checks that the image ops share.

A value that does not pass is a UserError.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_jax.data.ops_language import Example, Op
from vit_jax.errors import UserError

# 8192 x 8192. Nobody trains on larger images; a mistyped size makes them.
MAX_PIXELS = 2**26


def check_growth(
  old: tuple[int, int], new: tuple[int, int], *, max_pixels: int = MAX_PIXELS
) -> None:
  """Raises UserError where an op would make an image that is far too large.

  Args:
    old: (height, width) of the image. Large images may be made smaller.
    new: (height, width) that it would have.
    max_pixels: of an image that is larger than it was.
  """
  # Pillow resizes across before it resizes down.
  most = max(old[0], new[0]) * new[1]
  if most > max(max_pixels, old[0] * old[1]):
    raise UserError(
      f'an image of {old[0]} x {old[1]} (height x width) would become'
      f' {new[0]} x {new[1]}, and an op makes none over max_pixels='
      f'{max_pixels:,}: is the size right?'
    )


def image_op(
  change: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> Op:
  """Returns the op that makes the image, `[H, W, C]`, `change(image, rng)`."""
  return lambda example, rng: (
    example | {'image': change(image_of(example), rng)}
  )


def image_of(example: Example) -> np.ndarray:
  """Returns the image, `[H, W, C]`, of an example that has one, decoded."""
  image = example.get('image')
  if image is None:
    raise UserError(f"the example has no 'image'; it has {sorted(example)}")
  if not isinstance(image, np.ndarray):
    raise UserError(
      f"'image' is {type(image).__name__}, not an array; put decode before"
    )
  if image.ndim != 3:
    raise UserError(
      f"'image' has shape {image.shape}, not [H, W, C]; put decode before"
    )
  return image


def size_of(size: Any) -> tuple[int, int]:
  """Returns `(height, width)` of a size given as one int (square) or a pair."""
  pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
  if len(pair) != 2 or not all(is_int(n, 1) for n in pair):
    raise UserError(
      f'a size is a positive int or a pair (height, width); got {size!r}'
    )
  return pair


def probability(rate: Any) -> float:
  """Returns `rate`, which is a number in 0 .. 1."""
  if not isinstance(rate, int | float) or not 0 <= rate <= 1:
    raise UserError(f'rate is a probability, 0 to 1; got {rate!r}')
  return rate


def range_of(
  name: str, value: Any, *, positive: bool = False
) -> tuple[float, float]:
  """Returns the pair (smallest, largest) of at least 0, or `positive`."""
  if not is_range(value, math.ulp(0.0) if positive else 0, math.inf):
    kind = 'positive numbers' if positive else 'at least 0'
    raise UserError(
      f'{name} is a pair (smallest, largest) of {kind}; got {value!r}'
    )
  return tuple(value)


def is_int(value: Any, least: int, most: float = math.inf) -> bool:
  """Whether `value` is an int, and no bool, within `least .. most`."""
  is_bool = isinstance(value, bool)
  return isinstance(value, int) and not is_bool and least <= value <= most


def is_range(value: Any, least: float, most: float) -> bool:
  """Whether `value` is a pair of ordered numbers within `least .. most`."""
  return (
    isinstance(value, tuple | list)
    and len(value) == 2
    and all(isinstance(v, int | float) for v in value)
    and least <= value[0] <= value[1] <= most
  )
