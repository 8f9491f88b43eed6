"""How a stream of examples becomes the batches of one process.

The stream is the same in every process. Each takes its own rows of every
global batch, so that the number of processes changes neither what a batch holds
nor the order of its rows.
"""

import os
from collections.abc import Iterator

import grain
import jax
import numpy as np

from vit_jax.errors import UserError

Batch = dict[str, np.ndarray]

# Threads work on chunks of a batch: to hand over 8x8-pixel images one by one
# costs six times the work (147 against 26 microseconds an image), and whole
# batches would make the first one slow.
_MAX_CHUNK = 16


class Layout:
  """Which rows are ours, and how many threads read them."""

  def __init__(
    self,
    batch_size: int,
    num_threads: int | None,
    prefetch: int,
    process_index: int | None,
    process_count: int | None,
  ):
    if num_threads is None:
      num_threads = min(16, os.cpu_count() or 1)
    if process_index is None:
      process_index = jax.process_index()
    if process_count is None:
      process_count = jax.process_count()
    least = [
      ('batch_size', batch_size, 1),
      ('num_threads', num_threads, 0),
      ('prefetch', prefetch, 1),
    ]
    bad = [
      f'{name} is an integer of at least {minimum}; got {value!r}'
      for name, value, minimum in least
      if not isinstance(value, int | np.integer) or value < minimum
    ]
    if not bad and batch_size % process_count:
      bad.append(
        f'batch_size={batch_size} does not divide among {process_count} '
        'processes'
      )
    if bad:
      raise UserError('input: ' + '; '.join(bad))
    self._batch_size = batch_size
    self._process = (process_index, process_count)
    self._local_size = batch_size // process_count
    self._chunk = _chunk_size(self._local_size, num_threads)
    chunks_ahead = prefetch * self._local_size // self._chunk
    self._options = grain.ReadOptions(
      num_threads=num_threads,
      prefetch_buffer_size=max(chunks_ahead, num_threads),
    )

  def batches(
    self, stream: grain.MapDataset, start_step: int
  ) -> Iterator[Batch]:
    """Yields this process's rows of the batches of a stream of examples."""
    rows = _RowsOfProcess(stream, self._batch_size, *self._process)
    # Nothing is dropped; rounded up, the endless length would overflow.
    chunks = rows.batch(self._chunk, drop_remainder=True)
    chunks = chunks.to_iter_dataset(self._options)
    per_batch = self._local_size // self._chunk
    iterator = iter(chunks.batch(per_batch, batch_fn=_concatenate))
    try:
      grain.experimental.set_next_index(iterator, start_step)
      yield from iterator
    finally:
      iterator.close()


class _RowsOfProcess(grain.MapDataset):
  """The rows [p * B / P, (p + 1) * B / P) of every global batch of B."""

  def __init__(self, stream, batch_size: int, process: int, count: int):
    super().__init__(stream)
    self._num_batches = len(stream) // batch_size
    self._batch_size = batch_size
    self._local_size = batch_size // count
    self._start = process * self._local_size

  def __len__(self) -> int:
    return self._num_batches * self._local_size

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, self._local_size)
    return self._parent[batch * self._batch_size + self._start + row]


def _chunk_size(local_size: int, num_threads: int) -> int:
  """Returns a divisor of the local batch that keeps all threads busy."""
  most = min(_MAX_CHUNK, -(-local_size // max(num_threads, 1)))
  return max(size for size in range(1, most + 1) if local_size % size == 0)


def _concatenate(chunks: list[Batch]) -> Batch:
  if len(chunks) == 1:
    return chunks[0]
  return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}
