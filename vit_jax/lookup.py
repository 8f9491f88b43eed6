"""One rule from a name in a config to the code that it means.

A name is a file of a folder of this package (`'vit'` in `models` is
`vit_jax/models/vit.py`) or, with a dot in it, a module of the user's own
(`'my_project.cait'`). There is nothing to register.

A dotted name is imported, and importing runs code. So it takes `trusted=True`,
which says that the name was given by the user: in a config, on the command line
or in Python. Names out of files are looked up without it.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vit_jax.errors import UserError

# What else a text or a dict may be where Python and no config calls us: _ALSO.
_WORDS = {str: 'a text', Sequence: 'a list', Mapping: 'a dict'}
_ALSO = (os.PathLike, ml_collections.ConfigDict)
SECTION = (Mapping, ml_collections.ConfigDict)
_PACKAGE = pathlib.Path(__file__).parent


def names(folder: str) -> list[str]:
  """Lists what a folder offers, for example `names('models')`."""
  files = (_PACKAGE / folder).glob('*.py')
  return sorted(f.stem for f in files if not f.stem.startswith('_'))


def find(folder: str, name: str, export: str, *, trusted: bool = False) -> Any:
  """Returns the attribute `export` of the module that `name` means.

  Args:
    folder: of this package, such as 'models'.
    name: of a file in it or, if trusted, a module of the user's own.
    export: what the module has to define.
    trusted: whether the user gave the name; a name out of a file never is.

  Raises:
    UserError: no such file or module, or it does not export `export`; a dotted
      name that is not trusted, which is not imported.
  """
  if isinstance(name, str) and '.' in name and not trusted:
    raise UserError(
      f'no {folder} named {name!r} in this package, and a name out of a file is'
      ' not imported. If you trust that module, name it yourself: in a config,'
      ' on the command line, or with trusted=True in Python'
    )
  if '.' in name:
    module_name = name
    try:
      known = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
      known = False
    choices = 'a dotted name must be importable: is its folder on PYTHONPATH?'
  else:
    module_name = f'vit_jax.{folder.replace("/", ".")}.{name}'
    known = name in names(folder)
    choices = f'{folder}/ has: {", ".join(names(folder))}{_close(name, folder)}'
  if not known:
    raise UserError(f'no {folder} named {name!r}; {choices}')
  module = importlib.import_module(module_name)
  if not hasattr(module, export):
    raise UserError(f'{module.__file__} does not define {export!r}')
  return getattr(module, export)


def build(
  folder: str,
  section: Mapping[str, Any],
  export: str,
  *args,
  where: str | None = None,
  trusted: bool = False,
  **kwargs,
) -> Any:
  """Calls what a config section names with the section's other keys.

  `build('models', {'name': 'vit', 'variant': 'B/16'}, 'Model')` calls
  `vit_jax.models.vit.Model(variant='B/16')`. `args` and `kwargs` come from the
  caller and may not appear in the section; `where` is its place in the config,
  for messages. `trusted` says that the user wrote the section, see `find`.
  """
  where = where or f'the {folder} section'
  if not isinstance(section, SECTION) or 'name' not in section:
    raise UserError(f'{where} needs a name; got {section}')
  section = dict(section)
  name = section.pop('name')
  target = find(folder, name, export, trusted=trusted)
  check_keys(
    target,
    section,
    f'{where} ({folder}/{name})',
    given=kwargs,
    num_args=len(args),
  )
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
  if any(p.kind is p.VAR_KEYWORD for p in parameters):
    return
  kinds = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  taken = {
    p.name: p for p in parameters if p.kind in kinds and p.name not in given
  }
  if not isinstance(section, SECTION):
    raise UserError(
      f'{where} is a section with keys of {list(taken)}; got {section!r}'
    )
  problems = []
  for key in sorted(set(section) - set(taken)):
    close = difflib.get_close_matches(key, taken, n=1)
    hint = f' (did you mean {close[0]!r}?)' if close else ''
    problems.append(f'unknown key {key!r}{hint}')
  for key, parameter in taken.items():
    if parameter.default is parameter.empty and key not in section:
      problems.append(f'missing key {key!r}')
    elif key in section and (words := _expected(parameter, section[key])):
      problems.append(f'{key}={section[key]!r}, expected {words}')
  if problems:
    raise UserError(f'{where}: {"; ".join(problems)}; it takes: {list(taken)}')


def _expected(parameter: inspect.Parameter, value: Any) -> str | None:
  """Returns what a key takes, if that is text or a dict and `value` is neither.

  Numbers are left to who takes them: there is more to say than their type.
  """
  hint = parameter.annotation
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
  kinds = {typing.get_origin(option) or option for option in options or (hint,)}
  optional, known = types.NoneType in kinds, kinds & _WORDS.keys()
  if not known or len(known) + optional < len(kinds):
    return None
  if isinstance(value, (*known, *_ALSO)):
    return None
  if value is None and (optional or Mapping in known):  # a section left out
    return None
  return ' or '.join(words for kind, words in _WORDS.items() if kind in known)


def _close(name: str, folder: str) -> str:
  close = difflib.get_close_matches(name, names(folder), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''
