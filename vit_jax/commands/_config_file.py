"""A config from the command line: a recipe, and changes to it.

`--config=configs/vit.py:B/16` calls `get_config('B/16')` of that file. A recipe
of the package is found by its name from any folder, as in `quickstart.py`.
`--config.optimizer.learning_rate=3e-4` changes one value of the result. Values
are Python literals; what is not a literal is a string. Unlike the flags of
ml_collections this may set a value that is None, replace a list and name a key
that the recipe leaves to its default: whoever receives the section checks its
keys (`lookup.check_keys`). A duration has two forms, `*_steps` and `*_epochs`:
one that is set replaces the recipe's other one.
"""

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections

from vit_jax import lookup, suggestions
from vit_jax.commands import _recipe
from vit_jax.errors import UserError


def parse(
  parser: argparse.ArgumentParser,
  argv: list[str] | None = None,
  *,
  required: bool = True,
) -> tuple[ml_collections.ConfigDict | None, argparse.Namespace]:
  """Returns the config and the parsed arguments of a program.

  Args:
    required: whether `--config` must be among them; without it the config is
      None.

  Raises:
    UserError: an argument that the program does not take, or an error of
      `_recipe.load` or `apply`.
  """
  parser.add_argument(
    '--config',
    required=required,
    metavar='FILE[:OPTIONS]',
    help='the recipe, a Python file, and its options; change any value of it '
    'with --config.section.key=value',
  )
  argv = list(sys.argv[1:] if argv is None else argv)
  changes, rest = split(argv, '--config.')
  args, unknown = parser.parse_known_args(rest)
  config = None if args.config is None else _recipe.load(args.config)
  if unknown:
    _refuse(unknown, config or {}, parser)
  if changes and config is None:
    raise UserError(f'--config.{changes[0][0]} needs --config=FILE')
  if config is not None:
    apply(config, changes)
  return config, args


def apply(
  config: ml_collections.ConfigDict, changes: Sequence[tuple[str, str]]
) -> None:
  """Sets `config.<name>` for pairs (name, text) of a command line, in place.

  A duration, such as `total_steps`, replaces the recipe's other form of it
  (`total_epochs` becomes None), unless the pairs contain both.

  Raises:
    UserError: the path runs through something that is not a section, or the
      value has another type than the one it replaces (None, and an int for a
      float, always fit).
  """
  names = {name for name, _ in changes}
  for name, text in changes:
    section, key = _change(config, name, text)
    other = _other_form(key)
    if other is None or section[key] is None or section.get(other) is None:
      continue
    if name.removesuffix(key) + other not in names:
      with config.ignore_type(), section.unlocked():
        section[other] = None


def sections(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns nested dicts with the keys in the order in which they were set.

  `ConfigDict.to_dict` sorts them, but of evaluations the first one counts.
  """
  as_set = json.loads(config.to_json_best_effort(sort_keys=False))
  return _in_order(config.to_dict(), as_set)


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
        if i == len(argv) or argv[i].startswith('--'):
          raise UserError(f'{prefix}{name} needs a value: {prefix}{name}=VALUE')
        text = argv[i]
      pairs.append((name, text))
    else:
      rest.append(argv[i])
    i += 1
  return pairs, rest


def _in_order(values: dict[str, Any], order: dict[str, Any]) -> dict[str, Any]:
  """Returns nested dicts with the keys in another one's order."""
  return {
    key: _in_order(values[key], order[key])
    if isinstance(values[key], dict) and isinstance(order.get(key), dict)
    else values[key]
    for key in [*order, *values]
    if key in values
  }


def _change(
  config: ml_collections.ConfigDict, name: str, text: str
) -> tuple[ml_collections.ConfigDict, str]:
  """Sets `config.<name>`; returns the section that it is in, and its key."""
  *folders, key = name.split('.')
  if not all([*folders, key]):
    raise UserError(
      f'--config.{name}: expected --config.section.key=value, the keys '
      'separated by dots'
    )
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
  elif value is not None and old is not None:
    kind = tuple if isinstance(old, list) else type(old)
    if words := lookup.expected(kind, value):
      raise UserError(
        f'--config.{name}={text}: expected {words} such as {old!r}, got '
        f'{value!r}'
      )
  widens = isinstance(old, float) and value is not None
  try:
    with config.ignore_type(), section.unlocked():
      section[key] = float(value) if widens else value
  except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as e:
    raise UserError(f'--config.{name}={text}: {e}') from e
  return section, key


def _other_form(key: str) -> str | None:
  """Returns `total_epochs` for `total_steps` and the reverse."""
  start, underscore, unit = key.rpartition('_')
  other = dict(steps='epochs', epochs='steps').get(unit)
  return f'{start}_{other}' if underscore and other else None


def _refuse(
  unknown: Sequence[str],
  config: ml_collections.ConfigDict | dict,
  parser: argparse.ArgumentParser,
) -> None:
  """Raises UserError for arguments that the program does not take."""
  own = [
    option.removeprefix('--')
    for action in parser._actions
    for option in action.option_strings
  ]
  config = config.to_dict() if config else {}
  problems = []
  for text in unknown:
    name, equals, value = text.removeprefix('--').partition('=')
    if not text.startswith('--'):
      problems.append(f'unknown argument {text}')
      continue
    near = suggestions.close(name, own)
    key = suggestions.config_key(name, config) if config else None
    exact = key is not None and name.rpartition('.')[2] in key.split('.')
    if key is not None and (exact or near is None):
      near = f'config.{key}'
    hint = f' (did you mean --{near}{equals}{value}?)' if near else ''
    problems.append(f'unknown argument {text}{hint}')
  raise UserError(f'{"; ".join(problems)}; {parser.prog} --help lists them')


def _literal(text: str) -> Any:
  lowered = {'true': True, 'false': False, 'none': None}
  if text.lower() in lowered:
    return lowered[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
    return text  # A TypeError: {[]: 1}, whose key cannot be hashed.
