"""Traces of some training steps, for a profiler."""

import contextlib
import os
import re
from collections.abc import Callable
from typing import Any

import jax


def problem(steps: Any, total_steps: int) -> str | None:
  """Returns what is wrong with 'START:STOP' of a config; None if nothing is."""
  if steps is None:
    return None
  match = re.fullmatch(r'([0-9]+):([0-9]+)', str(steps))
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    return (
      f'profile={steps!r}: expected START:STOP, the first and the last step to '
      "trace, such as '10:12'"
    )
  if int(match[1]) > total_steps:
    return (
      f'profile={steps!r} begins after the last step of the run, which is '
      f'{total_steps}'
    )
  return None


class Trace(contextlib.AbstractContextManager):
  """A context manager that traces the steps START to STOP of a loop.

  Process 0 traces itself and its devices. To look at it: TensorBoard with the
  plugin `xprof`, or `xprof --logdir=<workdir>/profile`.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    steps: str | None,
    *,
    restored_step: int = 0,
    on_log: Callable[[str], Any] = print,
  ):
    """Writes nothing yet.

    Args:
      directory: where the trace goes.
      steps: a text in which `problem` finds nothing wrong, or None.
      restored_step: the loop begins after this one.
      on_log: called with a line where START is not after it.
    """
    self._directory = os.fspath(directory)
    self._first = self._last = None
    self._is_tracing = False
    if steps is None:
      return
    first, last = map(int, steps.split(':'))
    if first <= restored_step:
      on_log(
        f'profile={steps}: no trace, since this run continues after step '
        f'{restored_step}'
      )
    elif jax.process_index() == 0:
      self._first, self._last = first, last

  def __exit__(self, *_):
    if self._is_tracing:
      jax.profiler.stop_trace()

  def before(self, step: int, state: Any) -> None:
    """Begins or ends the trace; waits for `state` where it does either."""
    if step == self._first:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._directory)
      self._is_tracing = True
    elif self._is_tracing and step > self._last:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._is_tracing = False
