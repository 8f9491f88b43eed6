"""A mixture of several sources with exact shares.

`weights` are the shares of the sources. A mixture is just long enough to
contain every record at least once: the records of the source that is scarcest
for its weight occur once, those of the others repeat, each as often as any
other or once more. Without weights every record occurs once.
"""

import bisect
import fractions
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.data import fields, open_source
from vit_jax.errors import UserError

_MAX_EXAMPLES = 2**32  # grain's shuffle counts with 32 bits


class Source:
  """The examples of the sources, one source after the other."""

  def __init__(
    self,
    split: str,
    *,
    sources: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, float] | None = None,
    classes: str = 'same',
  ):
    """Opens the sources.

    Args:
      split: of the sources that do not name their own.
      sources: data sections by a name of your choice: `dict(web=dict(name=
        'tar_shards', ...), photos=dict(name='image_folder', ...))`. They go in
        in the order of their names.
      weights: the share of each source; need not sum to 1. A source with
        weight 0 is left out.
      classes: `'same'`: all sources have the same classes. `'by_name'`: the
        classes are all names there are, sorted.

    Raises:
      UserError: weights that do not fit the sources, classes that differ or
        have no names, or what a source raises, with its name.
    """
    if not sources:
      raise UserError('mixture: no sources')
    if weights is not None:
      _check_weights(sources, weights)
    self._names = sorted(n for n in sources if weights is None or weights[n])
    self._sources = [_open(name, sources[name], split) for name in self._names]
    sizes = {
      name: len(source)
      for name, source in zip(self._names, self._sources, strict=True)
    }
    empty = [name for name, size in sizes.items() if not size]
    if empty:
      raise UserError(f'mixture: no records in {", ".join(empty)}')
    counts = sizes if weights is None else _counts(weights, sizes)
    self._sizes, self._counts = list(sizes.values()), list(counts.values())
    self._ends = list(itertools.accumulate(self._counts))
    if self._ends[-1] > _MAX_EXAMPLES:
      raise UserError(
        f'mixture: to contain every record, it would have {self._ends[-1]:,} '
        f'examples: {counts}; raise the weight of what is large'
      )
    try:
      self.class_names, self._new_ids = _classes(self._sources, classes)
    except UserError as e:
      raise UserError(f'mixture of {", ".join(self._names)}: {e}') from e
    self.fields = {
      name: role
      for source in self._sources
      for name, role in fields.declared(source).items()
    }
    self.num_classes = self._sources[0].num_classes
    if self.class_names is not None:
      self.num_classes = len(self.class_names)

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> dict:
    k, record = self._place(index)
    example, new_ids = self._sources[k][record], self._new_ids[k]
    if new_ids is None or 'label' not in example:
      return example
    label = np.asarray(example['label'])
    if label.dtype.kind in 'iu':  # one class id, or a list of them
      label = new_ids[label] if label.ndim else int(new_ids[label])
      return example | {'label': label}
    vector = np.zeros([self.num_classes], label.dtype)
    vector[new_ids] = label
    return example | {'label': vector}

  def describe(self, index: int) -> str:
    """Returns the name of the source and its description."""
    k, record = self._place(index)
    return f'{self._names[k]}: {self._sources[k].describe(record)}'

  def _place(self, index: int) -> tuple[int, int]:
    """Returns the source, and the record in it. Repeats are spread evenly."""
    k = bisect.bisect_right(self._ends, int(index))
    position = int(index) - self._ends[k] + self._counts[k]
    return k, position * self._sizes[k] // self._counts[k]


def _open(name: str, section: Mapping[str, Any], split: str):
  where = f'the source {name!r} of the mixture'
  if not hasattr(section, 'keys'):
    raise UserError(f'{where} is {section!r}; expected a dict with a name')
  section = {'split': split} | dict(section)
  try:
    return open_source.open_source(section, where=where)
  except UserError as e:
    raise UserError(f'{where}: {e}') from e


def _check_weights(
  sources: Mapping[str, Any], weights: Mapping[str, float]
) -> None:
  problems = [f'no weight for {n!r}' for n in sources if n not in weights]
  problems += [f'a weight for {n!r}' for n in weights if n not in sources]
  problems += [
    f'{name}={weight!r} is not a number of at least 0'
    for name, weight in weights.items()
    if isinstance(weight, bool)
    or not isinstance(weight, int | float)
    or not 0 <= weight < math.inf
  ]
  if problems or not any(weights.values()):
    raise UserError(
      f'mixture: weights {dict(weights)} do not fit the sources '
      f'{list(sources)}: {"; ".join(problems) or "all are 0"}'
    )


def _counts(
  weights: Mapping[str, float], sizes: Mapping[str, int]
) -> dict[str, int]:
  """Returns how many examples of each source there are, at least its records.

  Exact for weights as they are written, such as 0.1, and rounded down, so none
  is further than one example from its share.
  """
  exact = {name: fractions.Fraction(str(weights[name])) for name in sizes}
  total = sum(exact.values())
  length = max(math.ceil(n * total / exact[name]) for name, n in sizes.items())
  return {name: math.floor(w * length / total) for name, w in exact.items()}


def _classes(sources: list, how: str):
  """Returns names, and per source its ids in them (None: its own)."""
  names = [source.class_names for source in sources]
  nums = [source.num_classes for source in sources]
  if how == 'same':
    known = [list(n) for n in names if n is not None]
    if any(n != known[0] for n in known) or len(set(nums)) > 1:
      raise UserError(
        f'the classes differ ({nums} of them); with the same names in another '
        "order, or to have all there are, say classes='by_name'"
      )
    return (known[0] if known else None), [None] * len(sources)
  if how != 'by_name':
    raise UserError(f"classes is 'same' or 'by_name'; got {how!r}")
  if None in names:
    raise UserError("classes='by_name', but not all sources name their classes")
  union = sorted({name for one in names for name in one})
  ids = {name: i for i, name in enumerate(union)}
  return union, [np.array([ids[name] for name in one]) for one in names]
