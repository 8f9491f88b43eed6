"""Watchdog for records whose reading hangs or crashes the process.

A read from a dead network disk never returns and cannot be interrupted: the
watchdog logs a warning and, after a time limit, ends the process. The stack
trace of a crash, such as a decoder's, contains the record's name.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from absl import logging

from vit_jax.errors import UserError
from vit_jax.printable import printable

T = TypeVar('T')

_LOOK_SECONDS = 30.0  # A record is named after at least two of these.
_SECONDS_FOR_A_NAME = 5.0
_AHEAD = 4  # Results per thread that wait for the consumer.
limit: float | None = None  # Of `most_seconds`; a worker process sets its own.


@contextlib.contextmanager
def most_seconds(seconds: float | None) -> Iterator[None]:
  """Context in which reading one record for longer ends the process (code 1).

  No exception is raised, as the reading thread could not be joined. Time in
  which the process is stopped (SIGSTOP) does not count. None waits for ever.
  """
  if seconds is not None and seconds <= 0:
    raise UserError(
      f'max_read_seconds is positive, or None to wait for ever; got {seconds}'
    )
  global limit
  before, limit = limit, seconds
  try:
    yield
  finally:
    limit = before


def call_under_name(name: str, function: Callable[..., T], *args: Any) -> T:
  """Returns `function(*args)`, called from a frame with `name` as its file.

  Nothing else in the stack trace of faulthandler can be chosen.
  """
  code = _call.__code__.replace(co_filename=f'<{name}>')
  return types.FunctionType(code, {})(function, args)


def _call(function, args):
  return function(*args)


class Watchdog:
  """Keeps track of the record that each thread reads."""

  def __init__(self, describe: Callable[[int], str]):
    self._describe = describe
    self._reads = itertools.count()
    self._reading: dict[int, tuple[int, int]] = {}  # by thread: index, read

  @contextlib.contextmanager
  def reading(self, index: int) -> Iterator[None]:
    """Marks the start and the end of a record in this thread."""
    thread = threading.get_ident()
    self._reading[thread] = (index, next(self._reads))
    try:
      yield
    finally:
      self._reading.pop(thread, None)

  def in_order(
    self, read: Callable[[int], T], indices: Iterable[int], num_threads: int
  ) -> Iterator[T]:
    """Yields `read(index)` of each record in order, read by threads, watched.

    An exception is raised here in its turn, and no further record is started.
    """

    def one(index: int) -> T:
      with self.reading(index):
        return read(index)

    def results() -> Iterator[T]:
      waiting: collections.deque = collections.deque()
      pool = concurrent.futures.ThreadPoolExecutor(num_threads)
      try:
        for index in indices:
          waiting.append(pool.submit(one, index))
          if len(waiting) > _AHEAD * num_threads:
            yield waiting.popleft().result()
        while waiting:
          yield waiting.popleft().result()
      finally:
        pool.shutdown(cancel_futures=True)

    return self.watched(results())

  def watched(self, batches: Iterator[T]) -> Iterator[T]:
    """Yields the batches; meanwhile a thread warns of records that take long.

    Each is named once, when it has taken a minute, and once more where it ends
    the process. The thread ends with the iterator.
    """
    thread, stop = self.start()
    try:
      yield from batches
    finally:
      stop.set()
      thread.join(timeout=1)  # it may itself wait for the disk

  def start(self) -> tuple[threading.Thread, threading.Event]:
    """Starts to watch; setting the event ends it."""
    stop = threading.Event()
    thread = threading.Thread(target=self._watch, args=(stop,), daemon=True)
    thread.start()
    return thread, stop

  def _name(self, index: int) -> str:
    """Returns the name of a record, or its number if describing it hangs."""
    names = []
    # Some sources read a record to describe it.
    thread = threading.Thread(
      target=lambda: names.append(self._describe(index)), daemon=True
    )
    thread.start()
    thread.join(timeout=_SECONDS_FOR_A_NAME)
    return names[0] if names else f'record {index}'

  def _watch(self, stop: threading.Event) -> None:
    most, seen = limit, {}
    pause = min(_LOOK_SECONDS, most or _LOOK_SECONDS)
    while not stop.wait(pause):
      # Looks are counted, and not the time: a process can be stopped.
      seen = {
        read: seen.get(read, -1) + 1 for read in list(self._reading.values())
      }
      for (index, _), looks in seen.items():
        ends = most is not None and looks * pause >= most
        if not ends and looks != 2:
          continue
        what = (
          f'the input has been reading one record for {looks * pause:.0f} s: '
          f'{printable(self._name(index))}'
        )
        if ends:
          _end(what)
        logging.warning('%s', what)


def _end(what: str) -> None:
  print(
    f'error: {what}. Nothing can interrupt it, so the process ends; the '
    'checkpoints are safe, and the same command continues. Is a network disk '
    'dead? max_read_seconds=None waits for ever',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)
