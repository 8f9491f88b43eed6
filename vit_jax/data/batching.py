"""Batches of one process, from a stream of examples.

The stream is the same in every process. Each takes its own rows of every
global batch, so that the number of processes changes neither what a batch holds
nor the order of its rows.
"""

import os
from collections.abc import Iterator

import grain
import jax
import numpy as np

from vit_jax.data import records, workers
from vit_jax.errors import UserError

Batch = dict[str, np.ndarray]

# Threads work on chunks of a batch: handing over 8x8-pixel images one by one
# takes six times as long (147 against 26 microseconds an image), and whole
# batches would delay the first one.
_MAX_CHUNK = 16
_MAX_WORKERS_PER_CORE = 16  # More would only fill memory.


class Layout:
  """The rows of this process, and the threads that read them."""

  def __init__(
    self,
    batch_size: int,
    num_threads: int | None,
    prefetch: int,
    num_workers: int,
    process_index: int | None,
    process_count: int | None,
    sharding: jax.sharding.Sharding | None = None,
  ):
    if process_index is None:
      process_index = jax.process_index()
    if process_count is None:
      process_count = jax.process_count()
    minima = [
      ('batch_size', batch_size, 1),
      ('num_threads', 0 if num_threads is None else num_threads, 0),
      ('prefetch', prefetch, 1),
      ('num_workers', num_workers, 0),
    ]
    bad = [
      f'{name} is an integer of at least {minimum}; got {value!r}'
      for name, value, minimum in minima
      if not isinstance(value, int | np.integer) or value < minimum
    ]
    max_workers = _MAX_WORKERS_PER_CORE * (os.cpu_count() or 1)
    if not bad and num_workers > max_workers:
      bad.append(
        f'num_workers={num_workers:,}: expected at most {max_workers}, '
        f'{_MAX_WORKERS_PER_CORE} for each core of this machine'
      )
    if not bad and sharding is None and batch_size % process_count:
      bad.append(
        f'batch_size={batch_size} is not divisible by {process_count} processes'
      )
    if bad:
      raise UserError('input: ' + '; '.join(bad))
    if num_threads is None:
      num_cores = os.cpu_count() or 1
      num_threads = max(1, min(16, num_cores // max(1, num_workers)))
    self._batch_size = batch_size
    self._num_threads = num_threads
    self._prefetch = prefetch
    self._num_workers = num_workers
    self._process = (process_index, process_count)
    self._sharding = sharding

  def batches(
    self, stream: grain.MapDataset, start_step: int, reader: records.Reader
  ) -> Iterator[Batch]:
    """Yields this process's rows of the batches of a stream of examples.

    `stream` has examples of `reader`, which records what its copies in worker
    processes skip.
    """
    rows = self._rows()
    chunk = _chunk_size(
      len(rows), self._num_threads * max(1, self._num_workers)
    )
    per_batch = len(rows) // chunk
    examples = _RowsOfProcess(stream, self._batch_size, rows, start_step)
    # Nothing is dropped; rounded up, the endless length would overflow.
    chunks = examples.batch(
      chunk,
      drop_remainder=True,
      batch_fn=reader.pack if self._num_workers else list,
    )
    ahead = -(-self._prefetch * per_batch // max(1, self._num_workers))
    chunks = chunks.to_iter_dataset(
      grain.ReadOptions(
        num_threads=self._num_threads,
        prefetch_buffer_size=max(ahead, self._num_threads),
      )
    )
    if self._num_workers:
      chunks = workers.read_in(self._num_workers, chunks)
      iterator = iter(chunks.batch(per_batch, batch_fn=reader.unpack))
    else:
      iterator = iter(chunks.batch(per_batch, batch_fn=_stack))
    try:
      yield from workers.alive(iterator) if self._num_workers else iterator
    finally:
      iterator.close()

  def _rows(self) -> np.ndarray:
    """Returns the rows of a global batch that this process reads."""
    if self._sharding is not None:
      return rows_of_process(self._sharding, self._batch_size)
    index, count = self._process
    size = self._batch_size // count
    return np.arange(index * size, (index + 1) * size)


def rows_of_process(
  sharding: jax.sharding.Sharding, batch_size: int
) -> np.ndarray:
  """Returns the rows of a global batch that this process's devices hold.

  Ascending and each once. On most meshes process p of P has the p-th part of
  the rows. Where the devices are ordered for their network, or a tensor axis
  spans processes, it has others, or several processes have the same.
  """
  slices = sharding.addressable_devices_indices_map((batch_size,)).values()
  parts = sorted({rows.indices(batch_size)[:2] for (rows,) in slices})
  return np.concatenate([np.arange(*part) for part in parts])


class Repeated(grain.MapDataset):
  """A stream of images as rows of global batches, `repeats` rows each.

  Repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335) as in DeiT and
  timm (RASampler). A pass over as many rows as there are images sees a part of
  them, `1 / repeats`.

  Row j of batch t is a copy of image `(t * B + e) // repeats` of the stream,
  where e runs over 0 .. B - 1: the images of a batch, and at its two ends
  perhaps some copies only, if `repeats` does not divide B. Within the batch
  first copies stand before second copies and so on, so that B // repeats rows
  in a row are different images. (In DeiT the copies go to different processes,
  which has the same effect on what is mixed within a process.)
  """

  def __init__(self, images: grain.MapDataset, batch_size: int, repeats: int):
    super().__init__(images)
    self._batch_size = batch_size
    self._repeats = repeats

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, self._batch_size)
    element = batch * self._batch_size + self._element(row)
    return self._parent[element // self._repeats]

  def _element(self, row: int) -> int:
    """Returns e of a row: 0, r, 2 r, ... come first, then 1, r + 1, ..."""
    least, more = divmod(self._batch_size, self._repeats)
    if row < more * (least + 1):  # These copies have one row more than others.
      copy, image = divmod(row, least + 1)
    else:
      copy, image = divmod(row - more * (least + 1), least)
      copy += more
    return image * self._repeats + copy


class _RowsOfProcess(grain.MapDataset):
  """Some rows of every global batch of B, starting from one batch."""

  def __init__(self, stream, batch_size: int, rows: np.ndarray, first: int):
    super().__init__(stream)
    self._num_batches = len(stream) // batch_size - first
    self._first = first
    self._batch_size = batch_size
    self._rows = rows.tolist()

  def __len__(self) -> int:
    return self._num_batches * len(self._rows)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, len(self._rows))
    batch += self._first
    return self._parent[batch * self._batch_size + self._rows[row]]


def _chunk_size(local_size: int, num_threads: int) -> int:
  """Returns a divisor of the local batch that keeps all threads busy."""
  largest = min(_MAX_CHUNK, -(-local_size // max(num_threads, 1)))
  return max(size for size in range(1, largest + 1) if local_size % size == 0)


def _stack(chunks: list[list[Batch]]) -> Batch:
  """Returns a batch; each image is copied only once."""
  rows = [row for chunk in chunks for row in chunk]
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
