"""Expansion of file patterns such as `'/data/{split}-{000..099}.tar'`."""

import glob
import itertools
import os
import re

from vit_jax.errors import UserError

# A split that a pattern without {split} has: there is nothing to choose.
ALL = 'all'
_BRACES = re.compile(r'\{([^{}]*)\}')
_RANGE = re.compile(r'(\d+)\.\.(\d+)')


def expand(pattern: str, split: str) -> list[str]:
  """Returns the files that match a pattern, all of which exist.

  Args:
    pattern: `{split}` is the name of the split, `{00..12}` and `{a,b}` are
      expanded as in a shell, then `*`, `?` and `[...]` are looked up. Expanded
      names keep their order, those that are looked up are sorted.
    split: name of a split. A pattern without `{split}` has one, `'all'`, so
      that no two splits can be the same files unnoticed.

  Raises:
    UserError: another split of a pattern without `{split}`, or files that are
      missing.
  """
  if '{split}' not in pattern and split != ALL:
    raise UserError(
      f'{pattern} has no {{split}} in it: its split is {ALL!r} (or a slice '
      f"such as '{ALL}[:90%]'); got {split!r}"
    )
  names = _braces(os.path.expanduser(pattern.replace('{split}', split)))
  files, missing = [], []
  for name in names:
    found = [name] if os.path.exists(name) else sorted(glob.glob(name))
    files += found
    if not found:
      missing.append(name)
  if missing:
    some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
    raise UserError(
      f'{pattern}: {len(missing)} of {len(names)} are missing: {some}'
    )
  return files


def printable(path: str) -> str:
  """Returns the path as text that any file or terminal takes.

  A name need not be UTF-8; Python holds its other bytes as half characters.
  """
  return path.encode(errors='backslashreplace').decode()


def _braces(pattern: str) -> list[str]:
  # Text and the inside of braces take turns.
  parts = _BRACES.split(pattern)
  choices = [
    _choices(part, pattern) if i % 2 else [part] for i, part in enumerate(parts)
  ]
  return [''.join(words) for words in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> list[str]:
  if match := _RANGE.fullmatch(inside):
    first, last = match.groups()
    width = len(first) if first.startswith('0') else 0
    numbers = range(int(first), int(last) + 1)
    if not numbers:
      raise UserError(f'{pattern}: {{{inside}}} counts downwards')
    return [str(n).zfill(width) for n in numbers]
  if ',' in inside:
    return inside.split(',')
  raise UserError(
    f'{pattern}: {{{inside}}} is not understood; expected {{split}}, '
    '{000..123} or {a,b}'
  )
