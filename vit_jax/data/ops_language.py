"""The mini-language of host ops, such as `'decode|resize(224)|flip_lr'`.

Segments between `|` are names, or calls whose arguments are Python literals;
nothing is evaluated. Empty segments are skipped, so that `f'decode|{extra}'`
works when `extra` is empty. A name is the function of that name in the file of
that name in `ops/`, or a public function of a file there that has no function
of its own name, such as `color.py`. `my_project.ops.solarize` is a factory of
the user's own.

To import and call what a text names is to run code, so a text is `trusted` only
where the user wrote it. Text out of a file, such as a header of weights, may
name the ops of `FROM_FILES`, with sizes up to a limit; that is the default.

A factory takes the arguments once and returns `(example, rng) -> example`. An
example is a dict of numpy arrays and raw bytes, which no op modifies; `rng` is
the numpy Generator of this one example and the only source of chance.
"""

import ast
import contextlib
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
_LIMITS = _from_files.Limits(FROM_FILES, 'ops', 'max_side', 4096)  # pixels
_MAX_LENGTH = 10_000  # characters of the longest text that is parsed
_MAX_PARTS = 50  # of a dotted name


@dataclasses.dataclass(frozen=True)
class Segment:
  """One op of a pipeline as it was written: `resize(32)`."""

  text: str
  name: str
  args: tuple[Any, ...] = ()
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parse(text: str, *, trusted: bool = False) -> Op:
  """Returns the host ops that `text` names as one `(example, rng) -> example`.

  An exception that an op raises later on an example carries the op's text.

  Args:
    text: the ops.
    trusted: whether the user wrote them, and no file.

  Raises:
    UserError: a segment that is not a name or a call with literals, an unknown
      op, arguments that the op does not take, or what a text that is not
      trusted may not ask for; all of them in one message.
  """
  ops = build(text, _FOLDER, limits=None if trusted else _LIMITS)

  def apply(example: Example, rng: np.random.Generator) -> Example:
    for segment, op in ops:
      with named(segment):
        example = op(example, rng)
      if not isinstance(example, dict):
        kind = None if example is None else f'a {type(example).__name__}'
        raise TypeError(
          f'the op {segment.text!r} returned {kind}, expected an example (a '
          'dict)'
        )
    return example

  return apply


def names(folder: str = _FOLDER) -> list[str]:
  """Lists the ops in a folder of this package."""
  return sorted(_factories(folder))


def build(
  text: str, folder: str, *, limits: _from_files.Limits | None, **offered
) -> list[tuple[Segment, Any]]:
  """Returns each segment with what its factory made of the arguments.

  Args:
    text: ops in the mini-language.
    folder: of this package, where the ops are.
    limits: for text from a file; None for text of the user.
    **offered: default arguments for the factories that take them.

  Raises:
    UserError: all problems of all segments in one message.
  """
  found = segments(text)
  if limits is not None:
    _from_files.check_count(len(found), limits)

  def make(segment: Segment) -> tuple[Segment, Any]:
    # A name without a dot is one of this package: a mistyped one gets a hint.
    factory = None if '.' in segment.name else find(segment.name, folder)
    if limits is not None:
      _from_files.check_segment(segment, limits)
    factory = factory or find(segment.name, folder)
    return segment, _call(factory, segment, offered)

  return _each(make, found)


@contextlib.contextmanager
def named(segment: Segment) -> Iterator[None]:
  """Adds the text of an op to the errors that it raises."""
  try:
    yield
  except UserError as e:
    raise UserError(f'{segment.text}: {e}') from e
  except Exception as e:
    e.add_note(f'in the op {segment.text!r}')
    raise


def segments(text: str) -> list[Segment]:
  """Returns the parsed segments of `text`, empty ones left out.

  Nothing is imported or called.

  Raises:
    UserError: the segments that do not parse, all in one message.
  """
  if not isinstance(text, str):
    raise UserError(
      f"ops are written as text such as 'decode|resize(224)'; got {text!r}"
    )
  if len(text) > _MAX_LENGTH:
    raise UserError(
      f'ops of {len(text):,} characters are over max_length={_MAX_LENGTH:,};'
      f' they begin with {text[:40]!r}'
    )
  return _each(_parse_segment, _split(text))


def find(name: str, folder: str = _FOLDER) -> Callable[..., Any]:
  """Returns the factory that a name means; a dotted one is the user's own.

  Raises:
    UserError: an unknown op, or a module that cannot be found or has no such
      function.
  """
  if '.' not in name:
    choices = _factories(folder)
    if name in choices:
      return choices[name]
    close = suggestions.close(name, sorted(choices))
    hint = f' (did you mean {close!r}?)' if close else ''
    raise UserError(
      f'unknown op {name!r}{hint}; there are: {", ".join(sorted(choices))}; an '
      'op of your own is written module.function'
    )
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


def image_op(
  change: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> Op:
  """Returns the op that makes the image, `[H, W, C]`, `change(image, rng)`."""
  return lambda example, rng: (
    example | {'image': change(image_of(example), rng)}
  )


def image_of(example: Example) -> np.ndarray:
  """Returns the image, `[H, W, C]`, of an example that has one, decoded."""
  image = example.get('image')
  if image is None:
    raise UserError(f"the example has no 'image'; it has {sorted(example)}")
  if not isinstance(image, np.ndarray):
    raise UserError(
      f"'image' is {type(image).__name__}, not an array; put decode before"
    )
  if image.ndim != 3:
    raise UserError(
      f"'image' has shape {image.shape}, not [H, W, C]; put decode before"
    )
  return image


def public_functions(module: Any) -> dict[str, Callable[..., Any]]:
  """Returns the functions that a module itself defines, private ones not."""
  return {
    name: fn
    for name, fn in inspect.getmembers(module, inspect.isfunction)
    if not name.startswith('_') and fn.__module__ == module.__name__
  }


def _factories(folder: str) -> dict[str, Callable[..., Any]]:
  """Returns the ops in a folder of this package by name."""
  package, found = 'vit_jax.' + folder.replace('/', '.'), {}
  for file in lookup.names(folder):
    functions = public_functions(importlib.import_module(f'{package}.{file}'))
    found |= {file: functions[file]} if file in functions else functions
  return found


def _call(
  factory: Callable[..., Any], segment: Segment, offered: Mapping[str, Any]
) -> Any:
  """Returns what a factory makes, mistakes named as the user's."""
  signature = inspect.signature(factory)
  taken = {k: v for k, v in offered.items() if k in signature.parameters}
  kwargs = taken | dict(segment.kwargs)
  try:
    signature.bind(*segment.args, **kwargs)
  except TypeError as e:
    wrong = [key for key in kwargs if key not in signature.parameters]
    close = [suggestions.close(key, signature.parameters) for key in wrong]
    hints = ''.join(f' (did you mean {key!r}?)' for key in close if key)
    plain = [
      p.replace(annotation=p.empty) for p in signature.parameters.values()
    ]
    raise UserError(
      f'{segment.text}: {e}{hints}; it takes: '
      f'{segment.name}{inspect.Signature(plain)}'
    ) from e
  try:
    op = factory(*segment.args, **kwargs)
  except (TypeError, ValueError) as e:
    raise UserError(f'{segment.text}: {e}') from e
  if not callable(op):
    raise UserError(f'{segment.text}: {segment.name} did not return an op')
  return op


def _each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
  """Returns what a function makes of items, all their mistakes in one error."""
  made, problems = [], []
  for item in items:
    try:
      made.append(function(item))
    except UserError as e:
      problems.append(str(e))
  if problems:
    raise UserError('\n'.join(problems))
  return made


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
  args, kwargs, parts = (), {}, []
  if isinstance(node, ast.Call):
    for keyword in node.keywords:
      if keyword.arg is None:
        raise UserError(f'{start}: ** is not supported')
      kwargs[keyword.arg] = _literal(keyword.value, text, start)
    args = tuple(_literal(arg, text, start) for arg in node.args)
    node = node.func
  # A loop and not ast.unparse, whose recursion deep nesting would exhaust, as
  # it would that of an import.
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  if not isinstance(node, ast.Name):
    raise UserError(f'{start}: expected name or name(arguments)')
  if len(parts) >= _MAX_PARTS:
    raise UserError(f'{start}: its name has over max_parts={_MAX_PARTS} parts')
  return Segment(text, '.'.join([node.id, *reversed(parts)]), args, kwargs)


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
