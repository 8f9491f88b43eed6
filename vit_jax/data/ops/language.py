"""The op mini-language: `'decode|resize(224)|flip_lr'` becomes a function.

Segments are separated by `|`. Each is a name, or a call whose arguments are
Python literals; strings in quotes may contain anything, `|` included. Nothing
is evaluated. Empty segments are skipped, so that `f'decode|{extra}|flip_lr'`
works when `extra` is empty.

A name is the function of that name in the file of that name in this folder, or
a public function of `image.py` or `label.py`. With a dot in it, it is a factory
of the user's own: `my_project.ops.solarize` is the function `solarize` of the
module `my_project.ops`.

A factory takes the arguments once and returns `(example, rng) -> example`. An
example is a dict of numpy arrays and raw bytes; `rng` is the numpy Generator
of this one example and the only source of chance. An op returns a new dict, or
its argument, and never changes what it was given.
"""

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax import lookup
from vit_jax.errors import UserError

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]

_FOLDER = 'data/ops'
_COLLECTIONS = ('image', 'label')  # Files that hold more than one op.


@dataclasses.dataclass(frozen=True)
class Segment:
  """One op of a pipeline as it was written: `resize(32)`."""

  text: str
  name: str
  args: tuple[Any, ...] = ()
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parse(text: str) -> Op:
  """Returns the host ops that `text` names as one `(example, rng) -> example`.

  An exception that an op raises later on an example carries the op's text.

  Raises:
    UserError: a segment that is not a name or a call with literals, an unknown
      op, or arguments that the op does not take; all of them in one message.
  """
  ops = build(text, _find)

  def apply(example: Example, rng: np.random.Generator) -> Example:
    for segment, op in ops:
      try:
        example = op(example, rng)
      except UserError as e:
        raise UserError(f'{segment.text}: {e}') from e
      except Exception as e:
        e.add_note(f'in the op {segment.text!r}')
        raise
      if not isinstance(example, dict):
        raise TypeError(
          f'the op {segment.text!r} returned {type(example).__name__}, not an '
          'example (a dict)'
        )
    return example

  return apply


def names() -> list[str]:
  """Lists the host ops of this package."""
  files = set(lookup.names(_FOLDER)) - {'language', *_COLLECTIONS}
  inside = (public_functions(_collection(name)) for name in _COLLECTIONS)
  return sorted(files.union(*inside))


def build(
  text: str, find: Callable[[str], Callable[..., Any]]
) -> list[tuple[Segment, Any]]:
  """Returns each segment with what its factory made of the arguments.

  Args:
    text: ops in the mini-language.
    find: returns the factory that a name means, or raises UserError.

  Raises:
    UserError: all problems of all segments in one message.
  """
  ops, problems = [], []
  for segment in segments(text):
    try:
      ops.append((segment, _call(find(segment.name), segment)))
    except UserError as e:
      problems.append(str(e))
  if problems:
    raise UserError('\n'.join(problems))
  return ops


def segments(text: str) -> list[Segment]:
  """Returns the parsed segments of `text`, empty ones left out.

  Raises:
    UserError: the segments that do not parse, all in one message.
  """
  if not isinstance(text, str):
    raise UserError(
      f"ops are written as text such as 'decode|resize(224)'; got {text!r}"
    )
  parsed, problems = [], []
  for piece in _split(text):
    try:
      parsed.append(_parse_segment(piece))
    except UserError as e:
      problems.append(str(e))
  if problems:
    raise UserError('\n'.join(problems))
  return parsed


def find_dotted(name: str) -> Callable[..., Any]:
  """Returns the user's own factory, `package.module.function`.

  Raises:
    UserError: the module cannot be found or has no such function.
  """
  module_name, _, function = name.rpartition('.')
  try:
    known = importlib.util.find_spec(module_name) is not None
  except (ModuleNotFoundError, ValueError):
    known = False
  if not known:
    raise UserError(
      f'op {name!r}: there is no module {module_name!r}; a dotted name is '
      'module.function and must be importable: is its folder on PYTHONPATH?'
    )
  factory = getattr(importlib.import_module(module_name), function, None)
  if not callable(factory):
    raise UserError(f'op {name!r}: {module_name} has no function {function!r}')
  return factory


def unknown(name: str, choices: Iterable[str]) -> UserError:
  """Returns the error for a name that is none of `choices`."""
  choices = sorted(choices)
  close = difflib.get_close_matches(name, choices, n=1)
  hint = f' (did you mean {close[0]!r}?)' if close else ''
  return UserError(
    f'unknown op {name!r}{hint}; there are: {", ".join(choices)}; an op of '
    'your own is written module.function'
  )


def public_functions(module: Any) -> dict[str, Callable[..., Any]]:
  """Returns the functions that a module itself defines, private ones not."""
  members = inspect.getmembers(module, inspect.isfunction)
  return {
    name: fn
    for name, fn in members
    if not name.startswith('_') and fn.__module__ == module.__name__
  }


def _find(name: str) -> Callable[..., Any]:
  if '.' in name:
    return find_dotted(name)
  if name not in names():
    raise unknown(name, names())
  for collection in _COLLECTIONS:
    functions = public_functions(_collection(collection))
    if name in functions:
      return functions[name]
  return lookup.find(_FOLDER, name, name)


def _collection(name: str) -> Any:
  return importlib.import_module(f'vit_jax.data.ops.{name}')


def _call(factory: Callable[..., Any], segment: Segment) -> Any:
  """Returns `factory(*args, **kwargs)`, mistakes named as the user's."""
  signature = inspect.signature(factory)
  try:
    signature.bind(*segment.args, **segment.kwargs)
  except TypeError as e:
    close = [
      f' (did you mean {match!r}?)'
      for key in segment.kwargs
      if key not in signature.parameters
      for match in difflib.get_close_matches(key, signature.parameters, n=1)
    ]
    raise UserError(
      f'{segment.text}: {e}{"".join(close)}; it takes: '
      f'{segment.name}{_without_annotations(signature)}'
    ) from e
  try:
    op = factory(*segment.args, **segment.kwargs)
  except (TypeError, ValueError) as e:
    raise UserError(f'{segment.text}: {e}') from e
  if not callable(op):
    raise UserError(f'{segment.text}: {segment.name} did not return an op')
  return op


def _without_annotations(signature: inspect.Signature) -> str:
  parameters = [
    p.replace(annotation=p.empty) for p in signature.parameters.values()
  ]
  return str(inspect.Signature(parameters))


def _split(text: str) -> Iterator[str]:
  """Yields what lies between bars that are not inside quotes or brackets."""
  start, depth, quote, escaped = 0, 0, '', False
  for i, character in enumerate(text):
    if quote:
      if escaped:
        escaped = False
      elif character == '\\':
        escaped = True
      elif character == quote:
        quote = ''
    elif character in '\'"':
      quote = character
    elif character in '([{':
      depth += 1
    elif character in ')]}':
      depth -= 1
    elif character == '|' and depth <= 0:
      yield from filter(None, [text[start:i].strip()])
      start = i + 1
  yield from filter(None, [text[start:].strip()])


def _parse_segment(text: str) -> Segment:
  try:
    node = ast.parse(text, mode='eval').body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
    reason = e.msg if isinstance(e, SyntaxError) else str(e)
    raise UserError(f'cannot read the op {text!r}: {reason}') from e
  if not isinstance(node, ast.Call):
    return Segment(text, _dotted_name(node, text))
  kwargs = {}
  for keyword in node.keywords:
    if keyword.arg is None:
      raise UserError(f'cannot read the op {text!r}: ** is not supported')
    kwargs[keyword.arg] = _literal(keyword.value, text)
  args = tuple(_literal(arg, text) for arg in node.args)
  return Segment(text, _dotted_name(node.func, text), args, kwargs)


def _dotted_name(node: ast.expr, text: str) -> str:
  name = ast.unparse(node)
  if not all(part.isidentifier() for part in name.split('.')):
    raise UserError(
      f'cannot read the op {text!r}: expected name or name(arguments)'
    )
  return name


def _literal(node: ast.expr, text: str) -> Any:
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError, MemoryError, RecursionError) as e:
    raise UserError(
      f'cannot read the op {text!r}: {ast.unparse(node)!r} is not a literal '
      '(number, string, tuple, list, dict, True, False, None)'
    ) from e
