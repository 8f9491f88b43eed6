"""Names the records that end the input without an error.

A read from a dead network disk does not fail, it never ends. Nothing in the
process can end it either; but whoever looks at the run can be told. And a
decoder that crashes takes the process along, of which the stack is left.
"""

import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from absl import logging

T = TypeVar('T')

_PATIENCE_SECONDS = 60.0


def call_under_name(name: str, function: Callable[..., T], *args: Any) -> T:
  """Returns `function(*args)`, called from a frame with `name` as its file.

  In the stack that faulthandler prints when the process crashes, files are the
  only text that we can choose.
  """
  code = _call.__code__.replace(co_filename=f'<{name}>')
  return types.FunctionType(code, {})(function, args)


def _call(function, args):
  return function(*args)


class Watchdog:
  """Knows what each thread is reading, and since when."""

  def __init__(self, describe: Callable[[int], str]):
    self._describe = describe
    self._reading: dict[int, tuple[int, float]] = {}  # by thread

  def begin(self, index: int) -> None:
    """Notes that this thread starts with a record."""
    self._reading[threading.get_ident()] = (index, time.monotonic())

  def end(self) -> None:
    """Notes that this thread is done with it."""
    self._reading.pop(threading.get_ident(), None)

  def watched(self, batches: Iterator[T]) -> Iterator[T]:
    """Yields the batches; meanwhile a thread warns of records that take long.

    Each is named once, when it has taken a minute. The thread ends with the
    iterator.
    """
    stop = threading.Event()
    thread = threading.Thread(target=self._watch, args=(stop,), daemon=True)
    thread.start()
    try:
      yield from batches
    finally:
      stop.set()
      thread.join(timeout=1)  # it may itself wait for the disk

  def _watch(self, stop: threading.Event) -> None:
    told = set()
    while not stop.wait(_PATIENCE_SECONDS / 2):
      now = time.monotonic()
      for index, since in list(self._reading.values()):
        if now - since >= _PATIENCE_SECONDS and (index, since) not in told:
          told.add((index, since))
          logging.warning(
            'the input has been reading one record for %.0f s: %s',
            now - since,
            self._describe(index),
          )
