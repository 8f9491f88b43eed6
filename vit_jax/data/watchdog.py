"""Names the records that end the input without an error.

A read from a dead network disk does not fail, it never ends. Nothing in the
process can end it either; but whoever looks at the run can be told, and the
process can be ended. And a decoder that crashes takes the process along, of
which the stack is left.
"""

import contextlib
import itertools
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from absl import logging

from vit_jax.errors import UserError
from vit_jax.printable import printable

T = TypeVar('T')

_LOOK_SECONDS = 30.0  # at least two pass before a record is named
_SECONDS_FOR_A_NAME = 5.0
_most_seconds: float | None = None


@contextlib.contextmanager
def most_seconds(seconds: float | None) -> Iterator[None]:
  """Within it, one record read for so long ends the process with exit code 1.

  Not by an exception: the thread that reads would be waited for. The time in
  which the process was stopped (SIGSTOP) does not count. None waits for ever.
  """
  if seconds is not None and seconds <= 0:
    raise UserError(
      f'max_read_seconds is positive, or None to wait for ever; got {seconds}'
    )
  before = limit()
  set_limit(seconds)
  try:
    yield
  finally:
    set_limit(before)


def limit() -> float | None:
  """Returns what `most_seconds` has set."""
  return _most_seconds


def set_limit(seconds: float | None) -> None:
  """Is `most_seconds` for good, in a worker process."""
  global _most_seconds
  _most_seconds = seconds


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
  """Knows what each thread is reading."""

  def __init__(self, describe: Callable[[int], str]):
    self._describe = describe
    self._reads = itertools.count()
    self._reading: dict[int, tuple[int, int]] = {}  # by thread: index, read

  def begin(self, index: int) -> None:
    """Notes that this thread starts with a record."""
    self._reading[threading.get_ident()] = (index, next(self._reads))

  def end(self) -> None:
    """Notes that this thread is done with it."""
    self._reading.pop(threading.get_ident(), None)

  @contextlib.contextmanager
  def reading(self, index: int) -> Iterator[None]:
    """Notes that this thread is at work on a record as long as this lasts."""
    self.begin(index)
    try:
      yield
    finally:
      self.end()

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
    """Returns what the source calls a record, if it can say so by now."""
    names = []
    # To describe a record of some sources is to read it.
    thread = threading.Thread(
      target=lambda: names.append(self._describe(index)), daemon=True
    )
    thread.start()
    thread.join(timeout=_SECONDS_FOR_A_NAME)
    return names[0] if names else f'record {index}'

  def _watch(self, stop: threading.Event) -> None:
    most, seen = _most_seconds, {}
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
