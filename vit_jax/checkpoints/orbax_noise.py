"""Workarounds for orbax: its log messages, and its threads after an error.

Orbax (seen with 0.12.8) logs each phase of each save at INFO, an error with its
stack trace and, when one of many concurrent reads fails, leaves the others to
asyncio, which prints dozens of stack traces after the exception was handled.

`silence` can go when orbax logs at DEBUG and cancels its other reads;
`join_writers` when `CheckpointManager.wait_until_finished` returns after all
writers, also where it raises.
"""

import functools
import logging
import sys
import threading
import time
import traceback
import warnings

from absl import logging as absl_logging


@functools.cache
def silence() -> None:
  """Drops log records and unraisable errors of orbax, unless at --verbosity=1.

  Messages of other libraries stay. Calling it again changes nothing.
  """
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_is_not_of_orbax)
  previous = sys.unraisablehook

  def hook(unraisable) -> None:
    frames = traceback.extract_tb(unraisable.exc_traceback)
    last = frames[-1].filename.replace('\\', '/') if frames else ''
    # Orbax closes the event loop while reads of tensorstore are under way.
    abandoned = last.endswith('asyncio/base_events.py') and (
      str(unraisable.exc_value) == 'Event loop is closed'
    )
    if _is_debugging() or not (abandoned or '/orbax/' in last):
      previous(unraisable)

  sys.unraisablehook = hook
  warnings.filterwarnings('ignore', "coroutine '_read_array", RuntimeWarning)


def join_writers(seconds: float) -> None:
  """Waits for the threads of a failed checkpoint, at most `seconds`.

  When one part of a checkpoint fails, orbax (0.12.8) no longer waits for the
  others, which write on and make folders again that were removed.
  """
  deadline = time.monotonic() + seconds
  for thread in threading.enumerate():
    if type(thread).__module__.startswith('orbax.checkpoint.'):
      try:
        thread.join(max(0.0, deadline - time.monotonic()))
      except Exception as e:  # That of its own work, which has failed anyway.
        absl_logging.debug('another error in writing a checkpoint: %s', e)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  if _is_debugging():
    return True
  if record.name == 'asyncio':
    text = record.getMessage()
    return 'exception was never retrieved' not in text or not (
      'orbax' in text or 'tensorstore' in text
    )
  return '/orbax/' not in record.pathname.replace('\\', '/')


def _is_debugging() -> bool:
  return absl_logging.get_verbosity() >= absl_logging.DEBUG
