"""Names the records that the input waits for, while it waits.

A read from a dead network disk does not fail, it never ends. Nothing in the
process can end it either; but whoever looks at the run can be told.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from absl import logging

T = TypeVar('T')

_PATIENCE_SECONDS = 60.0


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
