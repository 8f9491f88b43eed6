"""Work on many records: in threads, in order, with a bar that tells how far."""

import collections
import concurrent.futures
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from vit_jax.errors import UserError

T = TypeVar('T')

_AHEAD = 4  # results a thread may be ahead of who takes them


def in_order(
  function: Callable[[Any], T], items: Iterable[Any], num_threads: int
) -> Iterator[T]:
  """Yields `function(item)` for each item, in their order.

  What the function raises is raised here in its turn; nothing that waits is
  started then.
  """
  if num_threads < 1:
    raise UserError(f'num_threads is at least 1; got {num_threads}')
  waiting: collections.deque = collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(num_threads)
  try:
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > _AHEAD * num_threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def progress(
  what: str, total: int, done: int = 0
) -> Iterator[Callable[[int], None]]:
  """Yields what counts an image of so many bytes; a bar on a terminal."""
  if not sys.stderr.isatty():
    yield lambda num_bytes: None
    return
  import rich.console
  import rich.progress as bars

  columns = (
    bars.TextColumn('{task.description}'),
    bars.BarColumn(),
    bars.MofNCompleteColumn(),
    bars.TextColumn('{task.fields[speed]}'),
    bars.TimeRemainingColumn(),
  )
  console = rich.console.Console(stderr=True)
  with bars.Progress(*columns, console=console, transient=True) as bar:
    task = bar.add_task(what, total=total, completed=done, speed='')
    start, images, size = time.monotonic(), 0, 0

    def advance(num_bytes: int) -> None:
      nonlocal images, size
      images, size = images + 1, size + num_bytes
      seconds = max(time.monotonic() - start, 1e-6)
      speed = (
        f'{images / seconds:,.0f} images/s, {size / 1e6 / seconds:,.0f} MB/s'
      )
      bar.update(task, completed=done + images, speed=speed)

    yield advance
