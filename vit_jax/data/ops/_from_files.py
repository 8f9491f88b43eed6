"""Limits on ops whose text comes from a file: names, sizes and number.

A file of weights describes how its images are prepared. Its author is unknown,
so the text may only name ops of a fixed list, and no sizes that would take
minutes or all of the memory.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.printable import printable

_MAX_OPS = 20
_MAX_CLASSES = 10**6
_OWN_LIMITS = {'max_pixels', 'max_scans'}  # Arguments of decode.


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits on the text of ops that comes from a file."""

  names: tuple[str, ...]  # of the ops
  option: str  # with which the user gives ops: 'ops' or 'device_ops'
  argument: str  # what the limit on numbers is called in messages
  max_number: float  # the largest size of a number among the arguments

  def error(self, problem: str) -> UserError:
    return UserError(
      f'{problem}. If you trust them, give them yourself: {self.option}=... in'
      f' Python, --{self.option}=... on the command line'
    )


def check_count(num_ops: int, limits: Limits) -> None:
  """Raises UserError for more ops than an evaluation needs."""
  if num_ops > _MAX_OPS:
    raise limits.error(
      f'a file asks for {num_ops:,} ops, over max_ops={_MAX_OPS}'
    )


def check_segment(segment: Any, limits: Limits) -> None:
  """Raises UserError for an op that text from a file may not name or size."""
  text = printable(segment.text, max_length=80)
  if segment.name not in limits.names:
    raise limits.error(
      f'{text}: nothing that a file names is imported, and its'
      f' {limits.option} may only be {", ".join(limits.names)}'
    )
  if raised := sorted(_OWN_LIMITS & segment.kwargs.keys()):
    raise limits.error(
      f'{text}: a file does not choose {", ".join(raised)}, which guard'
      f' against images that take too long'
    )
  most, argument = limits.max_number, limits.argument
  if segment.name == 'onehot':
    most, argument = _MAX_CLASSES, 'max_classes'
  for number in _numbers([*segment.args, *segment.kwargs.values()]):
    if not abs(number) <= most:  # Also for NaN.
      raise limits.error(
        f'{text}: {number:g} is over {argument}={most:,}, the limit for'
        f' {limits.option} of a file'
      )


def _numbers(values: Iterable[Any]) -> Iterable[float]:
  """Yields the numbers among literals, also those inside texts."""
  for value in values:
    if isinstance(value, str | bytes):
      text = value if isinstance(value, str) else value.decode('latin-1')
      yield from map(float, re.findall(r'\d+', text))
    elif isinstance(value, Mapping):
      yield from _numbers([*value, *value.values()])
    elif isinstance(value, list | tuple | set):
      yield from _numbers(value)
    elif isinstance(value, complex):
      yield abs(value)
    elif isinstance(value, int | float):
      yield float(value) if abs(value) < 2**64 else float('inf')
