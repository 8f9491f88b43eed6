"""The name of a split and the part of it: `'train'`, `'train[:90%]'`.

The grammar is that of TFDS: one slice of percentages or counts, either of them
negative to count from the end; percentages round to the closest record, so
`[:90%]` and `[90%:]` share nothing and miss nothing.
"""

import dataclasses
import re

import numpy as np

from vit_jax.errors import UserError

_BOUND = r'-?\d+%?'
_GRAMMAR = re.compile(rf'([^\[\]]+)(?:\[({_BOUND})?:({_BOUND})?\])?')


@dataclasses.dataclass(frozen=True)
class Split:
  """A split and the part of it that is asked for, as the config spells it."""

  text: str
  name: str
  start: str | None
  stop: str | None

  def records(self, num_records: int) -> np.ndarray:
    """Returns the numbers of the records in this part, int64 and ascending.

    TFDS shuffles records when it writes them, so that any slice is a fair
    sample. Our sources lie on disk class by class, so a slice is taken from a
    fixed permutation: `train[90%:]` holds all classes, not the last few. The
    permutation depends on `num_records` alone.

    Raises:
      UserError: a bound outside the split, or nothing left.
    """
    if self.start is None and self.stop is None:
      return np.arange(num_records)
    start = self._position(self.start, 0, num_records)
    stop = self._position(self.stop, num_records, num_records)
    if start >= stop:
      raise UserError(
        f'split {self.text!r} is empty: records {start} to {stop} of '
        f'{num_records}'
      )
    # RandomState, unlike Generator, is frozen: the same in every numpy.
    order = np.random.RandomState(0).permutation(num_records)
    return np.sort(order[start:stop])

  def _position(self, bound: str | None, default: int, num: int) -> int:
    if bound is None:
      return default
    if bound.endswith('%'):
      position = round(int(bound[:-1]) * num / 100)
    else:
      position = int(bound)
    if abs(position) > num:
      raise UserError(
        f'split {self.text!r}: {bound} lies outside the {num} records of '
        f'{self.name!r}'
      )
    return position + num if bound.startswith('-') else position


def parse(split: str) -> Split:
  """Returns the parts of a split such as `'train[5%:-100]'`.

  Raises:
    UserError: the text is not `name` or `name[from:to]`.
  """
  match = _GRAMMAR.fullmatch(split) if isinstance(split, str) else None
  if match is None:
    raise UserError(
      f'split {split!r} is not understood; expected a name such as "train" or '
      'one slice of it such as "train[:90%]", "train[-1000:]", "train[10:20]"'
    )
  return Split(split, match[1], match[2], match[3])
