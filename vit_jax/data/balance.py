"""Class-balanced sampling: the record of every row of an endless stream.

An epoch of N records keeps its N rows, and each class gets a fixed number of
them. The rows of a class go through all of its records in random order before
one comes again, also across epochs. All of it is computed from (seed, position)
and nothing is stored, so that a stream can start anywhere.
"""

import collections
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from vit_jax import lookup
from vit_jax.errors import UserError

MODES = ('class', 'sqrt')


class Balanced(grain.MapDataset):
  """The records of a source, with classes as often as `balance` says.

  Attributes:
    counts: rows of each class in an epoch, int `[Y]`.
  """

  def __init__(self, source: Any, balance: str | Sequence[float], *, seed: int):
    """Reads the label of every record.

    Args:
      source: with int labels and `num_classes`; see `labels_of`.
      balance: 'class': every class equally often. 'sqrt': in proportion to the
        square root of its number of records. Or the relative frequency of each
        class. Classes without records are left out.
      seed: of the order.

    Raises:
      UserError: another `balance`, or labels that are not classes.
    """
    label_N = labels_of(source)
    num_records = np.bincount(label_N, minlength=source.num_classes or 0)
    self.counts = rows(balance, num_records)
    self._ends = np.cumsum(self.counts)
    self._records = np.argsort(label_N, kind='stable')
    self._first = np.cumsum(num_records) - num_records
    self._num_records, self._seed = num_records, seed
    self._orders: dict[int, grain.MapDataset] = {}
    slots = grain.MapDataset.range(len(label_N)).seed(seed).shuffle().repeat()
    super().__init__(slots)

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    epoch, slot = index // len(self._records), self._parent[index]
    label = int(np.searchsorted(self._ends, slot, side='right'))
    count = int(self.counts[label])
    draw = epoch * count + slot - int(self._ends[label] - count)
    place = self._first[label] + self._order(label)[draw]
    return int(self._records[place])

  def _order(self, label: int) -> grain.MapDataset:
    """Returns the endless order of the records of a class."""
    if label not in self._orders:
      # Classes of one size would otherwise have one order.
      state = np.random.SeedSequence([self._seed, label]).generate_state(1)
      order = grain.MapDataset.range(int(self._num_records[label]))
      self._orders[label] = order.seed(int(state[0])).shuffle().repeat()
    return self._orders[label]


def rows(balance: str | Sequence[float], num_records: np.ndarray) -> np.ndarray:
  """Returns the rows of each class in an epoch, int `[Y]`.

  They are as many as records, in the proportions wanted, rounded so that the
  largest remainders are rounded up.

  Args:
    balance: see `Balanced`.
    num_records: of each class, int `[Y]`.

  Raises:
    UserError: another `balance`.
  """
  num_classes, total = len(num_records), int(num_records.sum())
  if isinstance(balance, str):
    if balance not in MODES:
      raise UserError(
        f'balance={balance!r}: expected one of {list(MODES)}, or a list of the '
        f'relative frequencies of the {num_classes} classes'
      )
    weights = np.sqrt(num_records) if balance == 'sqrt' else num_records > 0
  else:
    weights = balance
    wrong = [x for x in weights if lookup.expected(float, x) or x < 0]
    if wrong or len(weights) != num_classes:
      raise UserError(
        f'balance has {len(weights)} numbers, for {num_classes} classes'
        + (f', and {wrong[0]!r} among them' if wrong else '')
        + '; expected the relative frequency of each class, 0 or more'
      )
  weights = np.asarray(weights, np.float64) * (num_records > 0)
  if not weights.any():
    raise UserError(f'balance={balance!r} leaves no class with records')
  shares = weights / weights.sum() * total
  counts = np.floor(shares).astype(np.int64)
  largest = np.argsort(counts - shares, kind='stable')
  counts[largest[: total - counts.sum()]] += 1
  return counts


def labels_of(source: Any) -> np.ndarray:
  """Returns the class id of every record of a source, int `[N]`.

  They are those of its method `labels()` or, without one, of all its examples,
  which are read but not decoded.

  Raises:
    UserError: a record without a label, or with several.
  """
  if callable(getattr(source, 'labels', None)):
    found = source.labels()
  else:
    found = [source[i].get('label') for i in range(len(source))]
  kinds = collections.Counter(type(x).__name__ for x in found)
  try:
    label_N = np.asarray(found)
  except ValueError:  # Of several lengths.
    label_N = np.zeros([0])
  if label_N.ndim != 1 or label_N.dtype.kind not in 'iu' or label_N.min() < 0:
    raise UserError(
      f'balance needs one class id for each record; the labels are '
      f'{", ".join(kinds)} of shape {list(label_N.shape)}'
    )
  return label_N
