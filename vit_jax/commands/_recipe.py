"""Loading of a recipe: a Python file with `get_config`, and its options."""

import importlib.util
import inspect
import os
import pathlib
import traceback

import ml_collections

from vit_jax import suggestions
from vit_jax.errors import UserError
from vit_jax.printable import printable

_INSTALLED = pathlib.Path(__file__).parents[1] / 'configs'
# Folders in the name of a recipe that may also mean one of the package's.
_SHORT = (pathlib.Path(), pathlib.Path('configs'))


def load(path_and_arg: str) -> ml_collections.ConfigDict:
  """Returns `get_config(arg)` of a file; the text is `file.py[:arg]`.

  Raises:
    UserError: no such file, one that cannot be imported or has no usable
      `get_config`, or an exception in it, with its line.
  """
  path, colon, arg = path_and_arg.partition(':')
  file = _find(path)
  if file is None:
    raise UserError(_no_file(path))
  if file.suffix != '.py':
    raise UserError(
      f'--config={path}: a recipe is a Python file whose name ends in .py'
    )
  spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as e:
    raise UserError(_failure(path, e)) from e
  if not callable(getattr(module, 'get_config', None)):
    raise UserError(f'{path} does not define get_config(arg)')
  try:
    inspect.signature(module.get_config).bind(*([arg] if colon else []))
  except TypeError as e:
    takes = f'the argument {arg!r}' if colon else 'no argument'
    raise UserError(
      f'{path}: get_config{inspect.signature(module.get_config)} cannot be '
      f"called with {takes}; define it as def get_config(arg='')"
    ) from e
  try:
    config = module.get_config(*([arg] if colon else []))
  except Exception as e:
    if type(e) in (ValueError, UserError):  # What a recipe says to its user.
      raise UserError(f'{path}: {e}') from e
    raise UserError(_failure(path, e)) from e
  if isinstance(config, dict):
    config = ml_collections.ConfigDict(config)
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f'{path}: get_config returned {type(config).__name__}; expected a '
      'ml_collections.ConfigDict or a dict'
    )
  return config


def _find(path: str) -> pathlib.Path | None:
  """Returns the file of a recipe: a path, or else one of the package's."""
  file = pathlib.Path(path)
  if file.is_file():
    return file
  if file.parent in _SHORT:
    installed = _INSTALLED / file.name
    if installed.is_file():
      return installed
  return None


def _no_file(path: str) -> str:
  """Returns one line: no such recipe; the one that is meant, or those here."""
  problem = f'no config file {printable(path)!r} in {pathlib.Path.cwd()}; '
  if '\0' in path:
    return f'{problem}a path has no NUL character'
  file = pathlib.Path(path)
  name = file.name.removesuffix('.py') + '.py'
  for folder in (file.parent, pathlib.Path('configs'), _INSTALLED):
    if name in _recipes(folder):
      meant = name if folder == _INSTALLED else folder / name
      return f'{problem}did you mean {printable(meant)}?'
  if file.parent in _SHORT:
    near = suggestions.close(name, _recipes(_INSTALLED))
    if near:
      return f'{problem}did you mean {near}?'
  names = printable(', '.join(_recipes(file.parent)))
  return f'{problem}{printable(file.parent)}/ has: {names or "no recipes"}'


def _recipes(folder: pathlib.Path) -> list[str]:
  """Returns the names of the files of a folder that define `get_config`."""
  return sorted(
    file.name
    for file in folder.glob('*.py')
    if file.is_file()
    and os.access(file, os.R_OK)
    and b'def get_config' in file.read_bytes()
  )


def _failure(path: str, error: Exception) -> str:
  """Returns one line: where in a recipe what went wrong."""
  place = path
  if isinstance(error, SyntaxError):
    line = '' if error.lineno is None else f':{error.lineno}'
    place, what = f'{error.filename or path}{line}', error.msg
  else:
    what = printable(error) or 'no message'
    name = pathlib.Path(path).name
    for frame in traceback.extract_tb(error.__traceback__):
      if pathlib.Path(frame.filename).name == name:
        place = f'{path}:{frame.lineno}'
  return (
    f'{place}: the recipe fails with {type(error).__name__}: {what}; '
    '--traceback shows where'
  )
