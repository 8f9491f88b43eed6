"""Opening the data source that a config section names."""

from collections.abc import Mapping
from typing import Any

from vit_jax import lookup
from vit_jax.errors import UserError

_METHODS = {
  '__len__': '__len__(self), the number of examples',
  '__getitem__': "__getitem__(self, i), the example i: {'image': ..., ...}",
  'describe': 'describe(self, i), words that find the example i again',
}


def open_source(section: Mapping[str, Any], *, where: str | None = None) -> Any:
  """Returns the open source of a data section, with the attributes of all.

  A source may leave out `num_classes` and `class_names`: without the first it
  is the number of names, or unknown (None), and then nothing compares it with
  the model's. `column_texts` is that of `data/columns.py`, or empty.

  Args:
    section: name, split and the source's other keys.
    where: the section's place in the config, for messages.

  Raises:
    UserError: a section that does not fit, what the source raises, or a source
      that lacks a method; all of them are listed.
  """
  # Data sections come from configs and commands, never from a file.
  source = lookup.build(
    'data/sources', section, 'Source', where=where, trusted=True
  )
  missing = [text for name, text in _METHODS.items() if not _has(source, name)]
  if missing:
    raise UserError(
      f'the data source {section["name"]!r} has no\n  '
      + '\n  '.join(missing)
      + '\nadd what is missing to the class Source'
    )
  names = getattr(source, 'class_names', None)
  num_classes = None if names is None else len(names)
  defaults = dict(class_names=None, num_classes=num_classes, column_texts={})
  for name, value in defaults.items():
    if not hasattr(source, name):
      setattr(source, name, value)
  return source


def _has(source: Any, name: str) -> bool:
  return callable(getattr(type(source), name, None))
