"""Other columns of a source as fields of its examples, for evaluators.

A source that has columns beside image and label takes `columns=`, a list of
their names, and yields each as a field of that name: a batch then holds it, and
an evaluator can compare groups. Numbers stay numbers. A text becomes an int32
code, its place in the sorted list of the texts of that column, or in the list
that is given: `columns=dict(sex=['f', 'm'])`. `Columns.texts` has the lists.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError

_TAKEN = ('image', 'label', 'mask', 'index', 'name')

Names = Sequence[str] | Mapping[str, Sequence[str] | None]


def check_present(
  where: str,
  wanted: Iterable[str | None],
  present: Iterable[str],
  *,
  noun: str = 'column',
  has: str = 'it has',
) -> None:
  """Raises UserError unless all wanted names (but None) are present."""
  present = list(present)
  missing = [repr(x) for x in wanted if x is not None and x not in present]
  if missing:
    raise UserError(
      f'{where} has no {noun} {", ".join(missing)}; {has}: '
      f'{", ".join(present) or "nothing"} (keys image_key, label_key, ...)'
    )


class Columns:
  """The columns that a config asks for.

  Attributes:
    names: of the columns, in their order.
    texts: for each column of texts, the list in which a code is a place.
    roles: `{name: 'group'}`, for the `fields` of a source.
  """

  def __init__(self, columns: Names):
    """Takes the names, or a dict from a name to its texts or None."""
    if isinstance(columns, str):
      raise UserError(f'columns={columns!r}: expected a list of names')
    lists = columns if hasattr(columns, 'items') else dict.fromkeys(columns)
    taken = [name for name in lists if name in _TAKEN]
    if taken:
      raise UserError(
        f'columns={list(lists)}: {taken[0]!r} is a field of its own; rename '
        'that column'
      )
    self.names = list(lists)
    self.texts = {k: list(v) for k, v in lists.items() if v is not None}
    self.roles = dict.fromkeys(self.names, 'group')
    self._integers: set[str] = set()

  def learn(self, name: str, values: Iterable[Any]) -> None:
    """Derives from all values of a column whether it has numbers or texts."""
    if name in self.texts:
      return
    values = {str(value) for value in values if value not in (None, '')}
    if all(_is(int, value) for value in values):
      self._integers.add(name)
    elif not all(_is(float, value) for value in values):
      self.texts[name] = sorted(values)

  def encode(self, row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an example.

    A number is int32 where all values of its column are whole and known, else
    float32. Arrays stay as they are.

    Raises:
      UserError: an empty cell, or a text that has no code.
    """
    return {name: self._encode(name, row.get(name)) for name in self.names}

  def _encode(self, name: str, value: Any) -> Any:
    if isinstance(value, bytes):
      value = value.decode()
    if value is None or (isinstance(value, str) and not value):
      raise UserError(f'the column {name!r} is empty')
    if isinstance(value, list) or np.ndim(value):
      return np.asarray(value)
    if name in self.texts:
      texts = self.texts[name]
      if isinstance(value, int | np.integer) and 0 <= value < len(texts):
        return np.int32(value)
      if str(value) not in texts:
        raise UserError(
          f'the column {name!r} has {value!r}, which is not among its '
          f'{len(texts)} texts {texts[:10]}'
        )
      return np.int32(texts.index(str(value)))
    if isinstance(value, np.number):
      return value
    if not _is(float, value):
      raise UserError(
        f'the column {name!r} has the text {value!r}: list its texts with '
        f'columns={{{name!r}: [...]}}'
      )
    return np.int32(value) if name in self._integers else np.float32(value)


def _is(kind: type, value: Any) -> bool:
  try:
    kind(value)
  except (TypeError, ValueError):
    return False
  return True
