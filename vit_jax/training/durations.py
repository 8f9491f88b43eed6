"""Durations of a config: steps and epochs, totals and cadences."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax import lookup
from vit_jax.errors import UserError

_MAX_STEPS = 2**31 - 1  # They are counted in int32.


def in_steps(
  section: Mapping[str, Any], steps_per_epoch: float, where: str
) -> dict[str, Any]:
  """Returns the section with every `*_epochs` key turned into `*_steps`.

  Sections in it are treated likewise, and lists of pairs (regex, epochs).

  Raises:
    UserError: both forms of one duration are given, or one is not a duration.
  """
  if not isinstance(section, lookup.SECTION):
    raise UserError(f'{where} is a section with keys; got {section!r}')
  out = {}
  for key, value in section.items():
    at = f'{where}.{key}'
    if isinstance(value, lookup.SECTION):
      value = in_steps(value, steps_per_epoch, at)
    elif str(key).endswith('_epochs'):
      if value is None:
        continue
      key = key.removesuffix('epochs') + 'steps'
      if section.get(key) is not None:
        raise UserError(
          f'{where}: give {key} or its _epochs form, not both; '
          f'set the other to None'
        )
      value = _steps(value, steps_per_epoch, at)
    elif value is None and str(key).endswith('_steps') and key in out:
      continue
    out[key] = value
  return out


@contextlib.contextmanager
def as_written(section: Mapping[str, Any]) -> Iterator[None]:
  """Names `*_epochs` keys as the user wrote them in a UserError raised inside.

  `over_steps=0` becomes `over_epochs=0`, and `warmup_steps=40` becomes
  `warmup_epochs=5 (40 steps)`.

  Args:
    section: of the config, before `in_steps`.
  """
  try:
    yield
  except UserError as e:
    text = str(e)
    for key, value in _epochs_keys(section).items():
      in_steps_key = key.removesuffix('epochs') + 'steps'

      def written(match, key=key, value=value):
        steps = match[1]
        if steps is None:
          return key
        extra = '' if float(steps) == value else f' ({steps} steps)'
        return f'{key}={value!r}{extra}'

      text = re.sub(rf'\b{re.escape(in_steps_key)}\b(?:=(\d+))?', written, text)
    if text == str(e):
      raise
    raise type(e)(text) from e


def _epochs_keys(section: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the keys of a section, and of those in it, that are in epochs."""
  found = {}
  for key, value in section.items():
    if isinstance(value, lookup.SECTION):
      found |= _epochs_keys(value)
    elif str(key).endswith('_epochs') and value is not None:
      found[key] = value
  return found


def cadence_problem(key: str, steps: Any) -> str | None:
  """Returns what is wrong with a number of steps between two events.

  None is fine: the event is only at the end of a run.
  """
  if steps is None or (not lookup.expected(int, steps) and steps >= 1):
    return None
  return (
    f'{key}={steps!r}: expected a whole number from 1 up, or None for the end '
    'of the run alone'
  )


def total_steps(
  steps: int | None, epochs: float | None, steps_per_epoch: float
) -> int:
  """Returns the length of a run in updates.

  Raises:
    UserError: both or none, or no duration.
  """
  if (steps is None) == (epochs is None):
    raise UserError(
      'give exactly one of config.total_steps and config.total_epochs; got '
      f'{steps} and {epochs}'
    )
  if epochs is None:
    key, value, words = 'total_steps', steps, lookup.expected(int, steps)
  else:
    key, value, words = 'total_epochs', epochs, lookup.expected(float, epochs)
  if words or value < 0:
    raise UserError(
      f'config.{key}={value!r}: expected {words or "0 or more"}; 0 only '
      'evaluates'
    )
  if epochs is not None:
    steps = _steps(epochs, steps_per_epoch, f'config.{key}')
  if steps > _MAX_STEPS:
    raise UserError(
      f'config.{key}={value!r}: a run has at most {_MAX_STEPS:,} steps'
    )
  return steps


def _steps(epochs: Any, steps_per_epoch: float, where: str) -> Any:
  """Returns the steps of a duration, or of those in pairs (regex, epochs)."""
  if isinstance(epochs, list | tuple):
    for pair in epochs:
      if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise UserError(f'{where}: {pair!r} is not a pair (regex, epochs)')
    return [
      (k, _steps(x, steps_per_epoch, f'{where}: {k!r}')) for k, x in epochs
    ]
  if lookup.expected(float, epochs) or epochs < 0:
    raise UserError(f'{where}={epochs!r}: expected a number from 0 up')
  return max(1, round(epochs * steps_per_epoch)) if epochs else 0
