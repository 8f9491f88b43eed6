"""Names for the leaves of a tree, and rules over those names.

A name is the path joined by slashes: `encoder/block_03/mlp/up/kernel`. A rule
is a pair `(regex, value)`; the regex must match the whole name and the first
rule that matches wins.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from flax import traverse_util

from vit_jax.errors import UserError


def flatten(tree: Any) -> dict[str, Any]:
  """Returns `{name: leaf}` in the order of `jax.tree.leaves`."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {_name(path): leaf for path, leaf in leaves}


def unflatten(named: dict[str, Any]) -> dict[str, Any]:
  """Returns the nested dict whose `flatten` is `named`."""
  return traverse_util.unflatten_dict(named, sep='/')


def below(tree: Any, folder: str, where: str) -> dict[str, Any]:
  """Returns `{name below the folder: leaf}`; all leaves if the folder is ''.

  Raises:
    UserError: the folder, which `where` has named, is empty.
  """
  named = flatten(tree)
  prefix = f'{folder}/' if folder else ''
  found = {
    name.removeprefix(prefix): leaf
    for name, leaf in named.items()
    if name.startswith(prefix)
  }
  if not found:
    raise UserError(
      f'{where}: nothing is in {folder!r}; there are'
      f' {", ".join(folders(named))}'
    )
  return found


def folders(names: Iterable[str]) -> list[str]:
  """Returns the first two levels of the folders of names."""
  parts = [name.split('/')[:-1] for name in names]
  found = {'/'.join(p[:depth]) for p in parts for depth in (1, 2) if p[:depth]}
  return sorted(found)


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """Maps `fn(name, leaf, *leaves_of_rest)` over a tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: fn(_name(path), *leaves), tree, *rest
  )


def regex_problem(pattern: Any) -> str | None:
  """Returns why a pattern of a config is not a regular expression, or None."""
  if not isinstance(pattern, str):
    return f'{pattern!r} is not a regular expression: expected a text'
  try:
    re.compile(pattern)
  except re.error as e:
    return f'{pattern!r} is not a regular expression: {e}'
  return None


def match_rules(
  rules: Iterable[tuple[str, Any]], names: Iterable[str], what: str
) -> dict[str, Any]:
  """Returns `{name: value of the first rule that matches the whole name}`.

  Args:
    rules: pairs of a regular expression and a value.
    names: names that must all be covered.
    what: the config key, for messages.

  Raises:
    UserError: a name that no rule matches, a rule that matches no name or is
      hidden behind earlier ones, or a regex that does not compile; all of them
      in one message.
  """
  rules, names = [tuple(rule) for rule in rules], list(names)
  compiled, problems = [], []
  for pattern, value in rules:
    if problem := regex_problem(pattern):
      problems.append(problem)
    else:
      compiled.append((re.compile(pattern), value))
  if problems:
    raise UserError(f'{what}: ' + '; '.join(problems))
  values, used = {}, set()
  for name in names:
    for i, (pattern, value) in enumerate(compiled):
      if pattern.fullmatch(name):
        values[name] = value
        used.add(i)
        break
    else:
      problems.append(f'no rule matches {name}')
  for i, (pattern, _) in enumerate(rules):
    if i not in used and pattern != '.*':
      problems.append(f'rule {pattern!r} decides no parameter')
  if problems:
    raise UserError(
      f'{what}: every parameter needs exactly one rule (the first whose regex '
      f'matches the whole name):\n  ' + '\n  '.join(problems)
    )
  return values


def _name(path: Sequence[Any]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')
