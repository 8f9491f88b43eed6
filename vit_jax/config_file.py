"""Reads a recipe and the changes to it from the command line.

`--config=configs/vit.py:B/16` calls `get_config('B/16')` of that file;
`--config.optimizer.learning_rate=3e-4` changes one value of the result. Values
are Python literals; what is not a literal is a string. Unlike the flags of
ml_collections this may set a value that is None, replace a list and name a key
that the recipe leaves to its default: whoever receives the section checks its
keys (`lookup.check_keys`).
"""

import argparse
import ast
import importlib.util
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections

from vit_jax.errors import UserError


def parse(
  parser: argparse.ArgumentParser, argv: list[str] | None = None
) -> tuple[ml_collections.ConfigDict, argparse.Namespace]:
  """Returns the config and the parsed arguments of a program.

  Args:
    parser: knows the program's own arguments; `--config` is added to it.
    argv: the arguments; None reads those of the process.

  Raises:
    UserError: no such file, a file without `get_config`, an argument that its
      `get_config` refuses, a change that does not fit.
  """
  parser.add_argument(
    '--config',
    required=True,
    metavar='FILE[:ARG]',
    help='recipe; change a value with --config.section.key=value',
  )
  argv = list(sys.argv[1:] if argv is None else argv)
  changes, rest = split(argv, '--config.')
  args = parser.parse_args(rest)
  config = load(args.config)
  for name, text in changes:
    change(config, name, text)
  return config, args


def load(path_and_arg: str) -> ml_collections.ConfigDict:
  """Returns `get_config(arg)` of a file; the text is `file.py[:arg]`."""
  path, colon, arg = path_and_arg.partition(':')
  file = pathlib.Path(path)
  if not file.is_file():
    near = sorted(p.name for p in file.parent.glob('*.py') if p.name[0] != '_')
    raise UserError(
      f'no config file {path!r} in {pathlib.Path.cwd()}; '
      f'{file.parent}/ has: {", ".join(near) or "no recipes"}'
    )
  spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(f'{path} does not define get_config(arg)')
  try:
    return module.get_config(*([arg] if colon else []))
  except ValueError as e:
    raise UserError(f'{path}: {e}') from e


def change(config: ml_collections.ConfigDict, name: str, text: str) -> None:
  """Sets `config.<name>` from the text of a command line, in place.

  Raises:
    UserError: the path runs through something that is not a section, or the
      value has another type than the one it replaces (None, and an int for a
      float, always fit).
  """
  *folders, key = name.split('.')
  section = config
  for i, folder in enumerate(folders):
    if not isinstance(section.get(folder), ml_collections.ConfigDict):
      if section.get(folder) is not None:
        raise UserError(
          f'--config.{name}: config.{".".join(folders[: i + 1])} is '
          f'{section[folder]!r}, not a section'
        )
      with section.unlocked():
        section[folder] = ml_collections.ConfigDict()
    section = section[folder]
  value, old = _literal(text), section.get(key)
  if isinstance(old, ml_collections.ConfigDict) and value is not None:
    if not isinstance(value, dict):
      raise UserError(
        f'--config.{name}={text}: it is a section with the keys {list(old)}; '
        'set one of them, or the whole with a dict'
      )
    value = ml_collections.ConfigDict(value)
  elif not _fits(value, old):
    raise UserError(
      f'--config.{name}={text}: expected {type(old).__name__} as in {old!r}, '
      f'got {type(value).__name__}'
    )
  with config.ignore_type(), section.unlocked():
    section[key] = float(value) if _widens(value, old) else value


def split(
  argv: Sequence[str], prefix: str
) -> tuple[list[tuple[str, str]], list[str]]:
  """Takes `<prefix>name=text` and `<prefix>name text` out of the arguments.

  Returns:
    The pairs (name, text) and the other arguments.

  Raises:
    UserError: the last name has no text.
  """
  pairs, rest, i = [], [], 0
  while i < len(argv):
    if argv[i].startswith(prefix):
      name, equals, text = argv[i].removeprefix(prefix).partition('=')
      if not equals:
        i += 1
        if i == len(argv):
          raise UserError(f'{prefix}{name} needs a value')
        text = argv[i]
      pairs.append((name, text))
    else:
      rest.append(argv[i])
    i += 1
  return pairs, rest


def _literal(text: str) -> Any:
  lowered = {'true': True, 'false': False, 'none': None}
  if text.lower() in lowered:
    return lowered[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _widens(value: Any, old: Any) -> bool:
  return isinstance(old, float) and type(value) is int


def _fits(value: Any, old: Any) -> bool:
  if value is None or old is None or _widens(value, old):
    return True
  sequences = (list, tuple)
  if isinstance(old, sequences) and isinstance(value, sequences):
    return True
  return type(value) is type(old)
