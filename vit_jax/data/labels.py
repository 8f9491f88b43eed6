"""Conversion of labels in files to class ids.

A file has `3`, `cat`, `['cat', 'dog']` or an empty label. One label becomes an
int; several become float32 `[Y]`, 1 for each class that is listed.
"""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vit_jax.errors import UserError

_MAX_CLASSES = 1_000_000  # that labels alone can imply


class Classes:
  """The classes of a dataset: their number, their names and their ids."""

  def __init__(self, num: int | None, names: Sequence[str] | None):
    self.names = None if names is None else [str(name) for name in names]
    self.num = num if names is None else len(self.names)
    self._ids = {name: i for i, name in enumerate(self.names or ())}
    if len(self._ids) != len(self.names or ()):
      raise UserError('class_names: a name occurs twice')

  def id_of(self, label: Any) -> int:
    """Returns the id of a class name, or of a number or its text.

    Raises:
      UserError: the label is missing, unknown or out of range.
    """
    if label is None or label == '':
      raise UserError('the label is missing')
    if label in self._ids:
      return self._ids[label]
    number = as_int(label)
    if number is None:
      raise UserError(
        f'{label!r} is neither a number nor among the {self.num} classes'
        f' {_some(self.names or ())}'
      )
    if number < 0 or (self.num is not None and number >= self.num):
      most = '' if self.num is None else f' .. {self.num - 1}'
      raise UserError(f'label {number} is outside 0{most}')
    return number

  def vector_of(self, labels: Iterable[Any]) -> np.ndarray:
    """Returns float32 `[Y]`, 1 for each class that is given, if any."""
    vector = np.zeros([self.num], np.float32)
    vector[[self.id_of(label) for label in labels]] = 1
    return vector


def classes(
  num_classes: int | None, class_names: Sequence[str] | str | None
) -> Classes | None:
  """Returns the classes that a config specifies, or None.

  `class_names` are in the order of their ids, or in a file: a JSON list, or one
  name per line.

  Raises:
    UserError: the two disagree, or the file cannot be read.
  """
  if num_classes is not None and (
    not isinstance(num_classes, int | np.integer) or num_classes < 1
  ):
    raise UserError(
      f'num_classes is an integer of at least 1; got {num_classes!r}'
    )
  if isinstance(class_names, str):
    class_names = read_names(class_names)
  if class_names is None:
    return None if num_classes is None else Classes(num_classes, None)
  if num_classes not in (None, len(class_names)):
    raise UserError(
      f'num_classes={num_classes}, but there are {len(class_names)} class_names'
    )
  return Classes(None, class_names)


def read_names(path: str | os.PathLike) -> list[str]:
  """Returns the class names in a file: a JSON list, or one per line.

  Raises:
    UserError: the file cannot be read, or a name is empty or not a text.
  """
  try:
    with open(os.path.expanduser(path), encoding='utf-8-sig') as file:
      text = file.read().strip()
    is_json = text.startswith(('[', '{'))
    names = json.loads(text) if is_json else text.splitlines()
  except (OSError, ValueError) as e:
    raise UserError(
      f'class_names: {path} cannot be read: {e}; expected a JSON list or a '
      'text file with one name per line'
    ) from e
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise UserError(f'class_names: {path} is JSON, but no list of texts')
  names = [name.strip() for name in names]
  if '' in names:
    raise UserError(f'class_names: name {names.index("")} of {path} is empty')
  return names


def derived(labels: Iterable[Any]) -> Classes:
  """Derives the classes from labels: numbers are ids, names are sorted.

  Missing labels (None, '') do not count.

  Raises:
    UserError: a mixture of class ids and names, or a number that is not an id.
  """
  different = {label for label in labels if label is not None and label != ''}
  numbers = [as_int(label) for label in different]
  if None not in numbers:
    return Classes(count(max(numbers, default=-1)), None)
  ids = [label for label in different if isinstance(label, int)]
  names = sorted(label for label in different if not isinstance(label, int))
  if ids:
    raise UserError(
      f'some labels are class ids ({min(ids)}) and some are names '
      f'({_some(names)}); give class_names=, or write names only'
    )
  return Classes(None, names)


def count(largest: int) -> int:
  """Returns the number of classes, given the largest class id.

  Raises:
    UserError: it is too large for a class id, and may be a date.
  """
  if largest >= _MAX_CLASSES:
    raise UserError(
      f'the label {largest} would make {largest + 1:,} classes: numbers are '
      'class ids, which count from 0. Give num_classes= if it is one, or write '
      'class names'
    )
  return largest + 1


def as_int(label: Any) -> int | None:
  """Returns a label as an integer, also from text; None if it is not one."""
  if isinstance(label, bool | float):
    return None
  try:
    return int(label)
  except (TypeError, ValueError):
    return None


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
