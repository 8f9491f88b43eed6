"""Types and bounds of values in the JSON of weight files."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.printable import printable

MAX_INT = 2**31 - 1
MAX_SIDE = 2**14  # Of an image, in pixels.


@dataclasses.dataclass(frozen=True)
class Kind:
  """A requirement on a value: in words, and as a test."""

  words: str
  fits: Callable[[Any], bool]


def is_int(value: Any, low: int = 1, high: int = MAX_INT) -> bool:
  return type(value) is int and low <= value <= high


def _is_number(value: Any) -> bool:
  if type(value) is int:
    return abs(value) <= MAX_INT
  return type(value) is float and math.isfinite(value)


def list_of(
  fits: Callable[[Any], bool], length: int | None = None
) -> Callable[[Any], bool]:
  """Returns the test whether a value is a list of such items."""
  return lambda v: (
    isinstance(v, list | tuple)
    and length in (None, len(v))
    and all(map(fits, v))
  )


def _is_side(value: Any) -> bool:
  return is_int(value, 1, MAX_SIDE)


TEXT = Kind('a text', lambda v: isinstance(v, str))
FLAG = Kind('true or false', lambda v: isinstance(v, bool))
OBJECT = Kind('a JSON object', lambda v: isinstance(v, Mapping))
SIZE = Kind(f'an integer of 1 to {MAX_INT}', is_int)
POSITIVE = Kind('a positive number', lambda v: _is_number(v) and v > 0)
PAIR = Kind(f'[height, width] of 1 to {MAX_INT}', list_of(is_int, 2))
SIDE = Kind(f'1 to {MAX_SIDE} pixels', _is_side)
SIDES = Kind(f'[height, width] of 1 to {MAX_SIDE} pixels', list_of(_is_side, 2))
SIDE_OR_SIDES = Kind(
  f'1 to {MAX_SIDE} pixels, or [height, width]',
  lambda v: _is_side(v) or SIDES.fits(v),
)
CHANNELS = Kind(
  'a number, or one per channel',
  lambda v: _is_number(v) or (bool(v) and list_of(_is_number)(v)),
)
POSITIVE_CHANNELS = Kind(
  'a positive number, or one per channel',
  lambda v: POSITIVE.fits(v) or (bool(v) and list_of(POSITIVE.fits)(v)),
)
TEXTS = Kind('a list of texts', list_of(TEXT.fits))

_PREPROCESS = {'image_size': SIDES, 'ops': TEXT, 'device_ops': TEXT}
_SOURCE = {'format': TEXT, 'path': TEXT, 'name': TEXT, 'loss': TEXT}
_DESCRIPTION = {
  'model': OBJECT,
  'preprocess': OBJECT,
  'class_names': TEXTS,
  'grid': PAIR,
  'source': OBJECT,
  'version': SIZE,
}


def check(
  values: Mapping[str, Any], kinds: Mapping[str, Kind], where: str
) -> None:
  """Raises UserError for values of another kind, all in one line.

  Values that are absent or None are fine, and other keys are not looked at.
  """
  wrong = [
    f'{key}={printable(repr(values[key]), max_length=60)}, expected'
    f' {kind.words}'
    for key, kind in kinds.items()
    if values.get(key) is not None and not kind.fits(values[key])
  ]
  if wrong:
    raise UserError(f'{where} has values that are wrong: ' + '; '.join(wrong))


def rename(
  values: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
  """Returns the values that are there, by their other names in `names`."""
  return {
    ours: values[theirs]
    for theirs, ours in names.items()
    if values.get(theirs) is not None
  }


def choose(value: Any, choices: Mapping[Any, Any], what: str) -> Any:
  """Returns `choices[value]`, or raises UserError that names the choices."""
  if value not in choices:
    raise UserError(f'{what}={value!r}: models/vit.py has {list(choices)}')
  return choices[value]


def statistics(evaluation: Any, channels: int) -> dict[str, list[float]]:
  """Returns 'mean' and 'std' of an `Evaluation`, if known, for each channel."""
  found = rename(vars(evaluation), {'mean': 'mean', 'std': 'std'})
  return {
    key: list(x) if isinstance(x, Sequence) else [x] * channels
    for key, x in found.items()
  }


def class_names(value: Any, where: str) -> list[str] | None:
  """Returns names from a list, or from an object of numbers and names.

  `['cat', 'dog']` or `{'0': 'cat', '1': 'dog'}`; None or empty for no names.

  Raises:
    UserError: something else, or numbers that are not 0, 1, 2, ...
  """
  if not value:
    return None
  names = value
  if isinstance(value, Mapping):
    keys = [str(i) for i in range(len(value))]
    names = [value.get(key) for key in keys]
  if not TEXTS.fits(names):
    raise UserError(
      f'{where} must be a list of names, or have a name for each of "0", "1",'
      f' "2", ...; got {printable(repr(value), max_length=80)}'
    )
  return list(names)


def parse_description(
  text: str, where: str, *, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
  """Returns what a file of ours says of its model, checked.

  The JSON is an object with the keys `model`, `preprocess`, `class_names`,
  `source` (as in `Weights`), `version` and `grid`; those `needed` are there.

  Raises:
    UserError: no such JSON, or values of another kind.
  """
  said = files.check_object(files.parse_json(text, where), where)
  if missing := [key for key in needed if said.get(key) is None]:
    raise UserError(
      f'{where} lacks {", ".join(missing)}; write the file again with'
      ' `python -m vit_jax convert`'
    )
  check(said, _DESCRIPTION, where)
  check(said.get('preprocess') or {}, _PREPROCESS, f'preprocess in {where}')
  check(said.get('source') or {}, _SOURCE, f'source in {where}')
  return said
