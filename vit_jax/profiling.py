"""Records what the devices and the host do during some training steps."""

import os
import re
from typing import Any

import jax

from vit_jax.errors import UserError


class Trace:
  """A context manager that traces the steps START to STOP of a loop.

  ```python
  with Trace(workdir / 'profile', '10:12') as trace:
    for step in range(1, total_steps + 1):
      trace.before(step, state)
      state = train_step(state)
  ```

  Process 0 traces itself and its devices. To look at it: TensorBoard with the
  plugin `xprof`, or `xprof --logdir=<workdir>/profile`.
  """

  def __init__(self, directory: str | os.PathLike, steps: str | None):
    """Writes nothing yet.

    Args:
      directory: where the trace goes.
      steps: 'START:STOP', the first and the last step, or None for no trace.

    Raises:
      UserError: another text.
    """
    self._directory = os.fspath(directory)
    self._first = self._last = None
    self._is_tracing = False
    if steps is None:
      return
    match = re.fullmatch(r'(\d+):(\d+)', str(steps))
    if not match or not 1 <= int(match[1]) <= int(match[2]):
      raise UserError(
        f'profile={steps!r}: expected START:STOP, the first and the last step '
        "to trace, such as '10:12'"
      )
    if jax.process_index() == 0:
      self._first, self._last = int(match[1]), int(match[2])

  def __enter__(self):
    return self

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
