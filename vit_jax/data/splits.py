"""Splits, slices of them such as `'train[:90%]'`, and the files of a split.

The grammar of slices is that of TFDS: percentages or counts, either of them
negative to count from the end; percentages round to the closest record, so
`[:90%]` and `[90%:]` share nothing and miss nothing. The parts that
`tfds.even_splits` returns are written `'train[part 1 of 3]'` to
`'train[part 3 of 3]'`.
"""

import dataclasses
import glob
import itertools
import os
import re

import numpy as np

from vit_jax.errors import UserError
from vit_jax.printable import printable

# A split that a pattern without {split} has: there is nothing to choose.
ALL = 'all'
# Digits are limited: int() refuses thousands of them.
_NUMBER = r'\d{1,18}'
_BOUND = rf'-?{_NUMBER}%?'
_SLICE = rf'({_BOUND})?:({_BOUND})?'
_PART = rf'part ({_NUMBER}) of ({_NUMBER})'
_GRAMMAR = re.compile(rf'([^\[\]]+)(?:\[(?:{_SLICE}|{_PART})\])?')
_BRACES = re.compile(r'\{([^{}]*)\}')
_RANGE = re.compile(r'(\d+)\.\.(\d+)')


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


def files(pattern: str, split: str) -> list[str]:
  """Returns the files of a split by a pattern, all of which exist.

  Args:
    pattern: such as `'/data/{split}-{000..099}.tar'`. `{split}` is the name of
      the split, `{00..12}` and `{a,b}` are expanded as in a shell, then `*`,
      `?` and `[...]` are looked up. Expanded names keep their order, those that
      are looked up are sorted.
    split: name of a split. A pattern without `{split}` has one, `'all'`, so
      that no two splits can be the same files unnoticed.

  Raises:
    UserError: another split of a pattern without `{split}`, or files that are
      missing.
  """
  if '{split}' not in pattern and split != ALL:
    raise UserError(
      f'{pattern} has no {{split}} in it: its split is {ALL!r} (or a slice '
      f"such as '{ALL}[:90%]'); got {split!r}"
    )
  # Text and the inside of braces take turns.
  parts = _BRACES.split(os.path.expanduser(pattern.replace('{split}', split)))
  choices = [
    _choices(part, pattern) if i % 2 else [part] for i, part in enumerate(parts)
  ]
  names = [''.join(words) for words in itertools.product(*choices)]
  found, missing = [], []
  for name in names:
    matches = [name] if os.path.exists(name) else sorted(glob.glob(name))
    found += matches
    if not matches:
      missing.append(name)
  if missing:
    some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
    raise UserError(
      f'{pattern}: {len(missing)} of {len(names)} are missing: {some}'
    )
  return found


def _choices(inside: str, pattern: str) -> list[str]:
  if match := _RANGE.fullmatch(inside):
    first, last = match.groups()
    width = len(first) if first.startswith('0') else 0
    numbers = range(int(first), int(last) + 1)
    if not numbers:
      raise UserError(f'{pattern}: {{{inside}}} counts downwards')
    return [str(n).zfill(width) for n in numbers]
  if ',' in inside:
    return inside.split(',')
  raise UserError(
    f'{pattern}: {{{inside}}} is not understood; expected {{split}}, '
    '{000..123} or {a,b}'
  )
