"""The mini-language of host ops, such as `'decode|resize(224)|flip_lr'`.

Segments between `|` are names, or calls whose arguments are Python literals;
nothing is evaluated. Empty segments are skipped, so that `f'decode|{extra}'`
works when `extra` is empty. A name is the function of that name in the file of
that name in `ops/`, or a public function of `color.py`, `image.py` or
`label.py` there. `my_project.ops.solarize` is a factory of the user's own.

To import and call what a text names is to run code, so a text is `trusted` only
where the user wrote it. Text out of a file, such as a header of weights, may
name the ops of `FROM_FILES`, with sizes up to a limit; that is the default.

A factory takes the arguments once and returns `(example, rng) -> example`. An
example is a dict of numpy arrays and raw bytes, which no op modifies; `rng` is
the numpy Generator of this one example and the only source of chance.
"""

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax import lookup, suggestions
from vit_jax.data.ops import _from_files
from vit_jax.errors import UserError

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]

_FOLDER = 'data/ops'
_COLLECTIONS = ('color', 'image', 'label')  # Files that hold more than one op.

# The ops that text from a file may name: those that prepare an image for
# evaluation. None of them takes the name of other code, as multi_crop does.
FROM_FILES = (
  'central_crop',
  'decode',
  'decode_bands',
  'flip_lr',
  'grayscale',
  'onehot',
  'random_crop',
  'random_resized_crop',
  'resize',
  'resize_small',
)


@dataclasses.dataclass(frozen=True)
class Segment:
  """One op of a pipeline as it was written: `resize(32)`."""

  text: str
  name: str
  args: tuple[Any, ...] = ()
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parse(
  text: str, *, trusted: bool = False, max_side: int = _from_files.MAX_SIDE
) -> Op:
  """Returns the host ops that `text` names as one `(example, rng) -> example`.

  An exception that an op raises later on an example carries the op's text.

  Args:
    text: the ops.
    trusted: whether the user wrote them, and no file.
    max_side: in pixels, the largest number that ops may have as an argument
      where they are not trusted.

  Raises:
    UserError: a segment that is not a name or a call with literals, an unknown
      op, arguments that the op does not take, or what a text that is not
      trusted may not ask for; all of them in one message.
  """
  limits = _from_files.Limits(FROM_FILES, 'ops', 'max_side', max_side)
  ops = build(text, _find, limits=None if trusted else limits)

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
        kind = None if example is None else f'a {type(example).__name__}'
        raise TypeError(
          f'the op {segment.text!r} returned {kind}, expected an example (a '
          'dict)'
        )
    return example

  return apply


def names() -> list[str]:
  """Lists the host ops of this package."""
  files = set(lookup.names(_FOLDER)) - set(_COLLECTIONS)
  return sorted(files | _collected().keys())


def build(
  text: str,
  find: Callable[[str], Callable[..., Any]],
  *,
  limits: _from_files.Limits | None,
) -> list[tuple[Segment, Any]]:
  """Returns each segment with what its factory made of the arguments.

  Args:
    text: ops in the mini-language.
    find: returns the factory that a name means, or raises UserError.
    limits: for text from a file; None for text of the user.

  Raises:
    UserError: all problems of all segments in one message.
  """
  found = segments(text)
  if limits is not None:
    _from_files.check_count(len(found), limits)
  ops, problems = [], []
  for segment in found:
    try:
      # A name without a dot is one of this package: a mistyped one gets a hint.
      factory = None if '.' in segment.name else find(segment.name)
      if limits is not None:
        _from_files.check_segment(segment, limits)
      factory = factory or find(segment.name)
      ops.append((segment, _call(factory, segment)))
    except UserError as e:
      problems.append(str(e))
  if problems:
    raise UserError('\n'.join(problems))
  return ops


def segments(text: str, *, max_length: int = 10_000) -> list[Segment]:
  """Returns the parsed segments of `text`, empty ones left out.

  Args:
    text: ops in the mini-language; nothing is imported or called.
    max_length: characters of the longest text that is parsed.

  Raises:
    UserError: the segments that do not parse, all in one message.
  """
  if not isinstance(text, str):
    raise UserError(
      f"ops are written as text such as 'decode|resize(224)'; got {text!r}"
    )
  if len(text) > max_length:
    raise UserError(
      f'ops of {len(text):,} characters are over max_length={max_length:,};'
      f' they begin with {text[:40]!r}'
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
    factory = lookup.find(_FOLDER, module_name, function, trusted=True)
  except UserError as e:
    raise UserError(
      f'op {name!r}: an op of your own is written module.function; {e}'
    ) from e
  if not callable(factory):
    raise UserError(f'op {name!r}: {function!r} is not a function')
  return factory


def unknown(name: str, choices: Iterable[str]) -> UserError:
  """Returns the error for a name that is not among `choices`."""
  choices = sorted(choices)
  close = suggestions.close(name, choices)
  hint = f' (did you mean {close!r}?)' if close else ''
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
  return _collected().get(name) or lookup.find(_FOLDER, name, name)


def _collected() -> dict[str, Callable[..., Any]]:
  """Returns the ops in files that hold more than one."""
  modules = (
    importlib.import_module(f'vit_jax.data.ops.{c}') for c in _COLLECTIONS
  )
  return {
    k: v for module in modules for k, v in public_functions(module).items()
  }


def _call(factory: Callable[..., Any], segment: Segment) -> Any:
  """Returns `factory(*args, **kwargs)`, mistakes named as the user's."""
  signature = inspect.signature(factory)
  try:
    signature.bind(*segment.args, **segment.kwargs)
  except TypeError as e:
    wrong = [key for key in segment.kwargs if key not in signature.parameters]
    close = [suggestions.close(key, signature.parameters) for key in wrong]
    hints = ''.join(f' (did you mean {key!r}?)' for key in close if key)
    raise UserError(
      f'{segment.text}: {e}{hints}; it takes: '
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
  """Yields the segments between bars outside of quotes and brackets."""
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
  start = f'cannot read the op {_short(text)!r}'
  try:
    node = ast.parse(text, mode='eval').body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
    reason = e.msg if isinstance(e, SyntaxError) else str(e)
    raise UserError(f'{start}: {reason}') from e
  if not isinstance(node, ast.Call):
    return Segment(text, _dotted_name(node, start))
  kwargs = {}
  for keyword in node.keywords:
    if keyword.arg is None:
      raise UserError(f'{start}: ** is not supported')
    kwargs[keyword.arg] = _literal(keyword.value, text, start)
  args = tuple(_literal(arg, text, start) for arg in node.args)
  return Segment(text, _dotted_name(node.func, start), args, kwargs)


def _dotted_name(node: ast.expr, start: str, *, max_parts: int = 50) -> str:
  # A loop and not ast.unparse, whose recursion deep nesting would exhaust, as
  # it would that of an import.
  parts = []
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  if not isinstance(node, ast.Name):
    raise UserError(f'{start}: expected name or name(arguments)')
  if len(parts) >= max_parts:
    raise UserError(f'{start}: its name has over max_parts={max_parts} parts')
  return '.'.join([node.id, *reversed(parts)])


def _literal(node: ast.expr, text: str, start: str) -> Any:
  try:
    return ast.literal_eval(node)
  except (ValueError, TypeError, MemoryError, RecursionError) as e:
    # Not ast.unparse, whose recursion deep nesting would exhaust.
    written = ast.get_source_segment(text, node) or ''
    raise UserError(
      f'{start}: {_short(written)!r} is not a literal '
      '(number, string, tuple, list, dict, True, False, None)'
    ) from e


def _short(text: str, *, max_length: int = 80) -> str:
  return text if len(text) <= max_length else text[: max_length - 3] + '...'
