"""Lookup of a name in a config: the code that it means, built from a section.

A name is a file of a folder of this package (`'vit'` in `models` is
`vit_jax/models/vit.py`), or else a module of the user's own
(`'my_project.cait'`, or `'cait'` where that is a file of its own). There is
nothing to register. A file whose name starts with `_` cannot be named.

Importing a module runs its code. So a module outside the package takes
`trusted=True`: the name was given by the user, in a config, on the command line
or in Python. Names out of files are looked up without it.
"""

import importlib
import importlib.util
import inspect
import math
import numbers
import os
import pathlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vit_jax import suggestions
from vit_jax.errors import UserError

SECTION = (Mapping, ml_collections.ConfigDict)
# For each type in a signature: what a config may give it, and how we say so.
# A path or a ConfigDict comes from Python callers.
_TYPES = {
  bool: (lambda x: isinstance(x, bool), 'True or False'),
  int: (lambda x: _is_number(x, numbers.Integral), 'a whole number'),
  float: (lambda x: _is_number(x, numbers.Real), 'a finite number'),
  str: (lambda x: isinstance(x, str | os.PathLike), 'a text'),
  tuple: (lambda x: isinstance(x, list | tuple), 'a list'),
  Sequence: (lambda x: isinstance(x, Sequence), 'a list'),
  Mapping: (lambda x: isinstance(x, SECTION), 'a dict'),
  types.NoneType: (lambda x: x is None, 'None'),
}
_PACKAGE = pathlib.Path(__file__).parent
# Of folders, for messages; of others the last word without its s.
_KINDS = {'visualize': 'picture', 'data/sources': 'data source'}


def names(folder: str) -> list[str]:
  """Lists what a folder offers, for example `names('models')`."""
  files = (_PACKAGE / folder).glob('*.py')
  return sorted(f.stem for f in files if not f.stem.startswith('_'))


def find(folder: str, name: str, export: str, *, trusted: bool = False) -> Any:
  """Returns the attribute `export` of the module that `name` means.

  Args:
    folder: of this package, such as 'models'. Its files come first.
    name: of a file in it or, if trusted, a module of the user's own.
    export: what the module has to define.
    trusted: whether the user gave the name; a name out of a file never is.

  Raises:
    UserError: no such file or module, or it does not export `export`; a module
      of the user's own that is not trusted, which is not imported.
  """
  word = folder.rpartition('/')[2].removesuffix('s').replace('_', ' ')
  kind = _KINDS.get(folder, word)
  if not isinstance(name, str):
    raise UserError(f'no {kind} named {name!r}; a name is a text')
  offered = names(folder)
  if name in offered:
    module_name = f'vit_jax.{folder.replace("/", ".")}.{name}'
  elif trusted and _is_importable(name):
    module_name = name
  elif not trusted and ('.' in name or _is_importable(name)):
    raise UserError(
      f'no {kind} named {name!r} in this package, and a name out of a file is'
      ' not imported. If you trust that module, name it yourself: in a config,'
      ' on the command line, or with trusted=True in Python'
    )
  elif '.' in name:
    raise UserError(
      f'no {kind} named {name!r}; a dotted name must be importable: is its '
      'folder on PYTHONPATH?'
    )
  else:
    near = suggestions.close(name, offered)
    hint = f' (did you mean {near!r}?)' if near else ''
    raise UserError(
      f'no {kind} named {name!r}; {folder}/ has: {", ".join(offered)}{hint}'
    )
  module = importlib.import_module(module_name)
  if not hasattr(module, export):
    raise UserError(
      f'{folder} {name!r}: {module.__file__} does not define {export!r}'
    )
  return getattr(module, export)


def model_fields(
  section: Mapping[str, Any], *kinds: str, trusted: bool = False
) -> tuple[str, ...]:
  """Returns the fields of a section's model that are of some kinds.

  As `FIELDS` beside its `Model` says, see `models/_vit_tables.py`; none for a
  model that exports no such table, or that is unknown.

  Args:
    section: a `config.model` section.
    *kinds: keys of FIELDS.
    trusted: whether the user gave its name, see `find`.
  """
  try:
    table = find('models', section.get('name'), 'FIELDS', trusted=trusted)
  except UserError:
    return ()
  if not isinstance(table, Mapping):
    raise UserError(
      f'FIELDS of models/{section["name"]} is a dict of fields by kind, as in '
      f'models/_vit_tables.py, or left out; got {table!r}'
    )
  return tuple(field for kind in kinds for field in table.get(kind, ()))


def build(
  folder: str,
  section: Mapping[str, Any],
  export: str,
  *args,
  where: str | None = None,
  trusted: bool = False,
  offered: Mapping[str, Any] | None = None,
  **kwargs,
) -> Any:
  """Calls what a config section names with the section's other keys.

  `build('models', {'name': 'vit', 'variant': 'B/16'}, 'Model')` calls
  `vit_jax.models.vit.Model(variant='B/16')`. `args` and `kwargs` come from the
  caller and may not appear in the section; `where` is its place in the config,
  for messages. `trusted` says that the user wrote the section, see `find`; a
  target whose signature has it gets it, and likewise what is `offered`.
  """
  where = where or f'the {folder} section'
  if not isinstance(section, SECTION) or 'name' not in section:
    raise UserError(f'{where} needs a name; got {section}')
  section = dict(section)
  name = section.pop('name')
  target = find(folder, name, export, trusted=trusted)
  taken = inspect.signature(target).parameters
  offered = dict(offered or {}, trusted=trusted)
  kwargs |= {key: x for key, x in offered.items() if key in taken}
  return call(target, section, f'{where} ({folder}/{name})', *args, **kwargs)


def call(target, section, where: str, *args, **kwargs) -> Any:
  """Calls `target` with a config section after checking the section's keys."""
  check_keys(target, section, where, given=kwargs, num_args=len(args))
  return target(*args, **kwargs, **section)


def check_keys(
  target, section, where: str, *, given=(), num_args: int = 0
) -> None:
  """Raises UserError where `section` does not fit the signature of `target`.

  Args:
    target: the function or class that will be called.
    section: the keys that the config gives.
    where: the place in the config, for the message.
    given: keyword arguments that the caller provides itself.
    num_args: how many positional arguments the caller provides itself.
  """
  parameters = list(inspect.signature(target).parameters.values())[num_args:]
  is_open = any(p.kind is p.VAR_KEYWORD for p in parameters)
  kinds = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  taken = {
    p.name: p for p in parameters if p.kind in kinds and p.name not in given
  }
  if {'parent', 'name'} <= set(getattr(target, '__dataclass_fields__', ())):
    for flax_own in ('parent', 'name'):  # Of every nn.Module.
      taken.pop(flax_own, None)
  if not isinstance(section, SECTION):
    raise UserError(
      f'{where} is a section with keys of {list(taken)}; got {section!r}'
    )
  problems, values = [], []  # With its keys, and with their values.
  for key in sorted(map(str, set(section) - set(taken))):
    if is_open and key not in given:
      continue
    near = suggestions.close(key, taken)
    if near is None and where == 'config':  # It may be a key of a section.
      near = suggestions.config_key(key, section)
    hint = f' (did you mean {near!r}?)' if near else ''
    problems.append(f'unknown key {key!r}{hint}')
  for key, parameter in taken.items():
    if parameter.default is parameter.empty and key not in section:
      problems.append(f'missing key {key!r}')
    elif key in section:
      words = expected(parameter.annotation, section[key])
      if words:
        values.append(f'{key}={section[key]!r}, expected {words}')
  if problems or values:
    takes = f'; it takes: {list(taken)}' if problems else ''
    raise UserError(f'{where}: {"; ".join([*problems, *values])}{takes}')


def expected(hint: Any, value: Any) -> str | None:
  """Returns what a key takes, if its type hint says so and `value` is not it.

  `expected(int | None, 'x')` is 'a whole number or None'. The result is None
  where `value` fits or the hint says nothing that a config could break.

  Args:
    hint: the annotation of an argument.
    value: of a config.
  """
  is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  options = typing.get_args(hint) if is_union else (hint,)
  found = [typing.get_origin(option) or option for option in options]
  if any(kind not in _TYPES for kind in found if isinstance(kind, type)):
    return None
  if not all(isinstance(kind, type) for kind in found):
    return None
  if any(_TYPES[kind][0](value) for kind in found):
    return None
  return ' or '.join(dict.fromkeys(_TYPES[kind][1] for kind in found))


def _is_importable(name: str) -> bool:
  """Whether a name is a module outside this package; a typo is no `random`."""
  if not all(part.isidentifier() for part in name.split('.')):
    return False
  if name in sys.stdlib_module_names:
    return False
  try:
    spec = importlib.util.find_spec(name)
  except (ModuleNotFoundError, ValueError):  # ValueError: `__main__`.
    return False
  return spec is not None and spec.origin is not None  # No bare folder.


def _is_number(value: Any, kind: type) -> bool:
  """Whether a value is a number; True and False, NaN and inf are not."""
  if isinstance(value, bool) or not isinstance(value, kind):
    return False
  return isinstance(value, numbers.Integral) or math.isfinite(value)
