"""Checks of arguments that several ops take."""

import math
from typing import Any

from vit_jax.errors import UserError


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
