"""Notices that the machine or the user wants the run to end."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

SIGTERM_EXIT_CODE = 42
SIGINT_EXIT_CODE = 130


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], int]]:
  """Yields `asked(step)`: 0, or the code with which to exit after saving.

  SIGTERM (a preemption) asks for exit code 42, the first Ctrl-C for 130; a
  second Ctrl-C interrupts at once. With several processes a SIGTERM to one of
  them gives all of them the same answer for the same step, and Ctrl-C, which
  only this one would know of, interrupts at once.
  """
  code = 0

  def handle(number, frame):
    nonlocal code
    del frame
    if number == signal.SIGINT:
      if code:
        raise KeyboardInterrupt
      print(
        '\nsaving a checkpoint; press Ctrl-C again to quit without it',
        file=sys.stderr,
        flush=True,
      )
      code = SIGINT_EXIT_CODE
    else:
      code = SIGTERM_EXIT_CODE

  def asked(step: int) -> int:
    if jax.process_count() == 1:
      return code
    agreed = multihost_utils.reached_preemption_sync_point(step)
    return SIGTERM_EXIT_CODE if agreed else 0

  # With several processes SIGTERM belongs to the preemption service of jax,
  # which tells all of them.
  alone = jax.process_count() == 1
  watched = [signal.SIGINT, signal.SIGTERM] if alone else []
  before = {number: signal.signal(number, handle) for number in watched}
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
