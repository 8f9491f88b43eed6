"""Fields of a batch: their roles, and those made of a source's columns.

A source may declare the roles of its fields (image, label, text, mask, group,
other):

  fields = {'image': 'image', 'caption': 'text', 'hospital': 'group'}

A source without `fields` has an `image` and perhaps a `label`. What is not
declared has a role by its name: `label` and `true_label` are labels. Images are
`image`, and arrays of rank 4 or more, `[B, ..., H, W, C]`, that are uint8 or
named like `local_image`. Device ops act on every image; the other roles
describe the data to a user's own code.

A source that has columns beside image and label takes `columns=`, a list of
their names, and yields each as a field of that name, which evaluators find in
their batches. Numbers stay numbers. A text becomes an int32 code, its place in
the sorted list of the texts of that column, or in the list that is given:
`columns=dict(sex=['f', 'm'])`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError

ROLES = ('image', 'label', 'text', 'mask', 'group', 'other')
_DEFAULT = {'image': 'image'}
_IMAGE_RANK = 4  # [B, H, W, C]
_TAKEN = ('image', 'label', 'mask', 'index', 'name')

ColumnNames = Sequence[str] | Mapping[str, Sequence[str] | None]


def declared(source: Any) -> dict[str, str]:
  """Returns the roles that a source declares, by field.

  Raises:
    UserError: `fields` is not a dict of names and roles.
  """
  fields = getattr(source, 'fields', None)
  if fields is None:
    return dict(_DEFAULT)
  if not isinstance(fields, Mapping) or not set(fields.values()) <= set(ROLES):
    raise UserError(
      f'the data source has fields={fields!r}. Expected a dict of the role of '
      f'each field; roles are {", ".join(ROLES)}'
    )
  return dict(fields)


def role(name: str, value: Any, roles: Mapping[str, str] | None = None) -> str:
  """Returns the role of a field.

  `value` is that of a batch, `[B, ...]`: an array, or its shape and dtype.
  """
  if roles and name in roles:
    return roles[name]
  last = name.rpartition('_')[2]
  if name == 'image' or (last in ROLES and last != 'image'):
    return last
  is_image = last == 'image' or value.dtype == 'uint8'
  return 'image' if is_image and len(value.shape) >= _IMAGE_RANK else 'other'


def images(
  batch: Mapping[str, Any], roles: Mapping[str, str] | None = None
) -> list[str]:
  """Returns the names of the image fields of a batch, sorted."""
  return sorted(n for n, x in batch.items() if role(n, x, roles) == 'image')


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
    roles: of the image and of each column, the `fields` of a source.
  """

  def __init__(self, columns: ColumnNames):
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
    self.roles = _DEFAULT | dict.fromkeys(self.names, 'group')
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
