"""Worker processes for reading, where the threads of one Python do not suffice.

An image costs about a millisecond of a core, of which its thread holds Python's
lock for some 50 (crop and flip) to 300 microseconds (RandAugment): beyond a few
thousand images per second more threads wait for each other. Each worker process
has threads of its own and hands over its part of a batch in shared memory.
"""

import faulthandler
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import TypeVar

import grain
import jax
from absl import flags

from vit_jax.data import folders, watchdog
from vit_jax.errors import RunError
from vit_jax.parallel import host_memory

T = TypeVar('T')

_CHUNKS_AHEAD = 2


def read_in(num_workers: int, chunks: grain.IterDataset) -> grain.IterDataset:
  """Returns the same chunks in the same order, read by worker processes."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain asks for flags that we do not have.
  return chunks.mp_prefetch(
    grain.MultiprocessingOptions(num_workers, _CHUNKS_AHEAD),
    worker_init_fn=functools.partial(_start, watchdog.limit),
  )


def alive(batches: Iterator[T]) -> Iterator[T]:
  """Yields the batches; the death of a worker becomes a RunError."""
  try:
    yield from batches
  # Errors of a record are UserErrors.
  except RuntimeError as e:
    raise RunError(
      f'a process that reads the input has died: {e} What it printed names '
      'the record, unless it was killed (out of memory?) or its shared memory '
      'is too small (/dev/shm of a container). num_workers=0 reads without'
    ) from e


def _start(most_seconds: float | None, index: int, count: int) -> None:
  """Prepares a worker process."""
  del index, count
  host_memory.keep_freed_memory()
  # The run handles signals, and may need batches until it stops the workers.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  jax.config.update('jax_platforms', 'cpu')  # The devices belong to the run.
  faulthandler.enable()
  folders.ignore_warnings()
  watchdog.limit = most_seconds
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()
  os._exit(1)
