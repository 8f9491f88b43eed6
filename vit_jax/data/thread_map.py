"""Ordered results of a function, computed by threads."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from vit_jax.errors import UserError

T = TypeVar('T')

_AHEAD = 4  # Results per thread that wait for the consumer.


def in_order(
  function: Callable[[Any], T], items: Iterable[Any], num_threads: int
) -> Iterator[T]:
  """Yields `function(item)` for each item, in their order.

  An exception of the function is raised here in its turn, and no further item
  is started.
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
