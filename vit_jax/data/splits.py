"""Splits and slices of splits: `'train'`, `'train[:90%]'`.

The grammar is that of TFDS: one slice of percentages or counts, either of them
negative to count from the end; percentages round to the closest record, so
`[:90%]` and `[90%:]` share nothing and miss nothing. The parts that
`tfds.even_splits` returns are written `'train[part 1 of 3]'` to
`'train[part 3 of 3]'`.
"""

import dataclasses
import re

import numpy as np

from vit_jax.errors import UserError
from vit_jax.printable import printable

# Digits are limited: int() refuses thousands of them.
_NUMBER = r'\d{1,18}'
_BOUND = rf'-?{_NUMBER}%?'
_SLICE = rf'({_BOUND})?:({_BOUND})?'
_PART = rf'part ({_NUMBER}) of ({_NUMBER})'
_GRAMMAR = re.compile(rf'([^\[\]]+)(?:\[(?:{_SLICE}|{_PART})\])?')


@dataclasses.dataclass(frozen=True)
class Split:
  """A split and the requested part of it, as spelled in the config."""

  text: str
  name: str
  start: str | None
  stop: str | None
  # (k, n): the k-th of n parts of equal size, k from 1.
  part: tuple[int, int] | None = None

  def records(self, num_records: int) -> range | np.ndarray:
    """Returns the numbers of the records in this part, ascending.

    The whole split is a range. A slice is an array, int32 where that suffices,
    and takes at most four bytes per record of the whole split, six while it is
    made.

    TFDS shuffles records when it writes them, so that any slice is a fair
    sample. Our sources are stored class by class, so a slice is taken from a
    fixed permutation: `train[90%:]` holds all classes, not the last few. The
    permutation depends on `num_records` alone.

    Raises:
      UserError: a bound outside the split, or nothing left.
    """
    if self.start is None and self.stop is None and self.part is None:
      return range(num_records)
    if self.part is None:
      start = self._position(self.start, 0, num_records)
      stop = self._position(self.stop, num_records, num_records)
    else:
      k, n = self.part
      start, stop = (num_records * i // n for i in (k - 1, k))
    if start >= stop:
      raise UserError(
        f'split {self.text!r} is empty: records {start} to {stop} of '
        f'{num_records}'
      )
    dtype = np.int32 if num_records <= np.iinfo(np.int32).max else np.int64
    order = np.arange(num_records, dtype=dtype)
    # RandomState, unlike Generator, is frozen: the same in every numpy.
    np.random.RandomState(0).shuffle(order)
    part = order[start:stop]
    part.sort()
    # A copy frees the rest of the permutation.
    return part if 2 * len(part) > num_records else part.copy()

  def _position(self, bound: str | None, default: int, num: int) -> int:
    if bound is None:
      return default
    if bound.endswith('%'):
      position = round(int(bound[:-1]) * num / 100)
    else:
      position = int(bound)
    if abs(position) > num:
      raise UserError(
        f'split {self.text!r}: {bound} is outside the {num} records of '
        f'{self.name!r}'
      )
    return position + num if bound.startswith('-') else position


def parse(split: str) -> Split:
  """Returns the parts of a split such as `'train[5%:-100]'`.

  Raises:
    UserError: the text is not `name`, `name[from:to]` or `name[part k of n]`.
  """
  match = _GRAMMAR.fullmatch(split) if isinstance(split, str) else None
  if match is None:
    shown = printable(repr(split), max_length=80)
    raise UserError(
      f'split {shown} is not understood; expected a name such as "train" or '
      'one slice of it such as "train[:90%]", "train[-1000:]", "train[10:20]", '
      '"train[part 1 of 3]"'
    )
  name, start, stop, k, n = match.groups()
  part = None if k is None else (int(k), int(n))
  if part is not None and not 1 <= part[0] <= part[1]:
    raise UserError(f'split {split!r}: parts count from 1 to {n}')
  return Split(split, name, start, stop, part)
