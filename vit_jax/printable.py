"""Text from outside, such as names in files, made safe for a terminal."""

import json
import unicodedata
from typing import Any

# Joiners inside words and emoji; they move no cursor and hide no text.
_HARMLESS = '\u200c\u200d'
_UNITS = ('B', 'kB', 'MB', 'GB', 'TB')
_ESCAPED = ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')


def printable(text: object, *, max_length: int | None = None) -> str:
  r"""Returns `str(text)` on one line, without characters that control output.

  Control characters (escape sequences, newlines), invisible format characters
  such as the right-to-left override, and lone surrogates are written as Python
  escapes: `'\x1b[31m'` becomes the seven characters `\x1b[31m`.

  Args:
    text: what to show.
    max_length: longer results are cut and end with `...`; None keeps all.
  """
  text = str(text)
  if max_length is not None and len(text) > max_length:
    text = text[: max(0, max_length - 3)] + '...'
  return ''.join(
    c.encode('unicode_escape').decode() if _is_control(c) else c for c in text
  )


def printable_lines(text: object) -> str:
  """Returns `printable` of each line; newlines stay newlines."""
  return '\n'.join(printable(line) for line in str(text).split('\n'))


def printable_json(value: Any, **options) -> str:
  r"""Returns `value` as JSON that reads the same and controls no terminal.

  Letters of all languages stay as they are; what `printable` escapes is written
  as the `\uXXXX` of JSON.

  Args:
    value: what `json.dumps` takes.
    **options: of `json.dumps`.
  """
  text = json.dumps(value, ensure_ascii=False, **options)
  return ''.join(
    # A newline between values; those inside of strings are escaped already.
    json.dumps(c)[1:-1] if _is_control(c) and c != '\n' else c
    for c in text
  )


def show(text: object, **options) -> None:
  """Prints `printable_lines` of a text; options are those of `print`."""
  print(printable_lines(text), **options)


def plural(count: int, noun: str, many: str | None = None) -> str:
  """Returns `'1 file'`, `'1,234 files'`; `many` is an irregular plural."""
  return f'{count:,} {noun if count == 1 else many or noun + "s"}'


def size(num_bytes: float) -> str:
  """Returns `'17.2 MB'`: three digits, in powers of 1,000."""
  unit = 0
  while num_bytes >= 1000 and unit < len(_UNITS) - 1:
    num_bytes, unit = num_bytes / 1000, unit + 1
  return f'{num_bytes:.3g} {_UNITS[unit]}'


def _is_control(character: str) -> bool:
  return (
    unicodedata.category(character) in _ESCAPED and character not in _HARMLESS
  )
