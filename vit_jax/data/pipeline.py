"""Input pipelines: shuffled batches for training, exact ones for evaluation.

What batch t of training contains is a function of (seed, t) alone: not of the
number of threads or processes, nor of where the run was started again. A row's
record comes from a permutation that is computed and never stored, its random
numbers from (seed, its position in the stream). The stream of examples is the
same in every process, and each takes its own rows of every global batch.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from vit_jax import lookup
from vit_jax.data import balance as balance_lib, records, workers
from vit_jax.errors import UserError

Batch = dict[str, np.ndarray]

# JAX uses the last 32 bits of a seed: 2**32 would give the weights of seed 0.
_MAX_SEED = 2**32
# Threads work on chunks of a batch: handing over 8x8-pixel images one by one
# takes six times as long (147 against 26 microseconds an image), and whole
# batches would delay the first one.
_MAX_CHUNK = 16
_MAX_WORKERS_PER_CORE = 16  # More would only fill memory.


class _Input:
  """A source behind its host ops, and the rows of this process."""

  _training: bool

  def __init__(
    self,
    *,
    data: Mapping[str, Any],
    ops: str,
    batch_size: int,
    on_error: str = 'stop',
    num_threads: int | None = None,
    num_workers: int = 0,
    prefetch: int = 2,
    sharding: jax.sharding.Sharding | None = None,
  ):
    """Opens the data; arguments of `TrainInput`."""
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
    process_count = jax.process_count()
    num_cores = os.cpu_count() or 1
    max_workers = _MAX_WORKERS_PER_CORE * num_cores
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
      num_threads = max(1, min(16, num_cores // max(1, num_workers)))
    self._num_threads, self._num_workers = num_threads, num_workers
    self._prefetch = prefetch
    size, index = batch_size // process_count, jax.process_index()
    self._rows = range(index * size, (index + 1) * size)
    self._sharding = sharding
    self._reader = records.Reader(
      data, ops, on_error=on_error, training=self._training
    )
    self.source, self.roles = self._reader.source, self._reader.roles
    self.batch_size = batch_size
    self.num_examples = len(self.source)
    self.num_classes = self.source.num_classes
    self.class_names = self.source.class_names

  @property
  def skipped(self) -> int:
    """Different records skipped so far by this process, prefetched included."""
    return self._reader.skipped

  @property
  def skipped_names(self) -> list[str]:
    """The first few skipped records, each with its error."""
    return self._reader.skipped_names

  def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a global batch as the device gets it."""
    return {
      name: jax.ShapeDtypeStruct((self.batch_size, *one.shape), one.dtype)
      for name, one in self._reader.spec.items()
    }

  def _batches(self, stream: grain.MapDataset, first: int) -> Iterator[Batch]:
    """Yields this process's rows of the batches first, first + 1, ..."""
    rows, batch_size = self._rows, self.batch_size
    if self._sharding is not None:
      rows = _rows_of_devices(self._sharding, batch_size)
    num_threads = max(1, self._num_threads) * max(1, self._num_workers)
    # The largest divisor of the rows that keeps all threads busy.
    largest = min(_MAX_CHUNK, -(-len(rows) // num_threads))
    chunk = max(n for n in range(1, largest + 1) if len(rows) % n == 0)
    per_batch = len(rows) // chunk

    def place(index: int) -> int:
      batch, row = divmod(index, len(rows))
      return (first + batch) * batch_size + rows[row]

    num_batches = len(stream) // batch_size - first
    examples = _Reordered(stream, num_batches * len(rows), place)
    # Nothing is dropped; rounded up, the endless length would overflow.
    chunks = examples.batch(
      chunk,
      drop_remainder=True,
      batch_fn=self._reader.pack if self._num_workers else list,
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
    combine = self._reader.unpack if self._num_workers else _stack
    iterator = iter(chunks.batch(per_batch, batch_fn=combine))
    try:
      yield from workers.alive(iterator) if self._num_workers else iterator
    finally:
      iterator.close()


class TrainInput(_Input):
  """An endless stream of shuffled, augmented batches, seekable to any step."""

  _training = True

  def __init__(
    self,
    *,
    data: Mapping[str, Any],
    ops: str,
    batch_size: int,
    seed: int,
    device_ops: str = '',
    on_error: str = 'stop',
    num_threads: int | None = None,
    num_workers: int = 0,
    prefetch: int = 2,
    sharding: jax.sharding.Sharding | None = None,
    repeats: int = 1,
    balance: str | Sequence[float] | None = None,
  ):
    """Opens the data and reads one example; starts no thread yet.

    Args:
      data: config section of a source: name, split and its other keys.
      ops: host ops in the mini-language, for example `'decode|resize(32)'`.
      batch_size: rows of a global batch, over all processes.
      seed: of the order and of the ops' random numbers, 0 to 2**32 - 1.
      device_ops: ops for the batch on the device, as text: the run parses it.
      on_error: what happens to a record that cannot be read: `'stop'` raises
        an error that names it, `'skip'` counts it and takes the next good one.
      num_threads: for reading and decoding; 0 reads in the caller's thread. The
        default is one per core, 16 at most.
      num_workers: processes for reading, each with `num_threads` (by default
        its share of the cores); 0 reads in this process. See `workers`.
      prefetch: batches read ahead of the consumer.
      sharding: of the rows over the devices; this process then reads the rows
        of its own devices. None is an equal part for each process, in order.
      repeats: rows of each image in a global batch, each augmented differently;
        3 in DeiT: repeated augmentation (Hoffer et al. 2019, arXiv:1901.09335;
        timm's RASampler). An epoch keeps its number of rows and so sees
        `1 / repeats` of the images.
      balance: draws classes equally often ('class'), by the square root of
        their number of records ('sqrt') or in the proportions of a list, see
        `data/balance.py`. None draws every record once an epoch.
    """
    super().__init__(
      data=data,
      ops=ops,
      batch_size=batch_size,
      on_error=on_error,
      num_threads=num_threads,
      num_workers=num_workers,
      prefetch=prefetch,
      sharding=sharding,
    )
    if lookup.expected(int, seed) or not 0 <= seed < _MAX_SEED:
      raise UserError(
        f'seed={seed!r}: expected a whole number from 0 to {_MAX_SEED - 1:,}'
      )
    if not isinstance(repeats, int) or not 1 <= repeats <= batch_size:
      raise UserError(
        f'repeats is an integer from 1 to batch_size={batch_size}; got '
        f'{repeats!r}'
      )
    self.repeats = repeats
    self._seed = int(seed)
    self._balanced = None
    if balance is not None:
      if repeats > 1:
        raise UserError(f'balance does not go with repeats={repeats}')
      self._balanced = balance_lib.Balanced(
        self.source, balance, seed=self._seed
      )
    self.device_ops = device_ops

  @property
  def steps_per_epoch(self) -> float:
    """Batches in one pass over the data, rarely a whole number."""
    return self.num_examples / self.batch_size

  def batches(self, start_step: int = 0) -> Iterator[Batch]:
    """Yields this process's rows of the batches start_step, start_step + 1...

    Besides the example's fields a batch has `index`, int64: which record each
    row is. Without a sharding, process p of P holds the rows
    [p * B / P, (p + 1) * B / P) of a global batch. Close the iterator, or drop
    it, to stop its threads.
    """
    stream = (
      grain.MapDataset.range(self.num_examples)
      .seed(self._seed)
      .shuffle()  # another permutation each epoch
    )
    if self._balanced is not None:
      stream = self._balanced
    elif self.repeats > 1:
      stream = stream[: -(-self.num_examples // self.repeats)].repeat()
      image = functools.partial(_repeated_image, self.batch_size, self.repeats)
      stream = _Reordered(stream, len(stream), image)
    else:
      stream = stream.repeat()
    stream = stream.random_map(self._reader.read)
    if start_step < 0:
      raise UserError(f'start_step is at least 0; got {start_step}')
    return self._reader.watched(self._batches(stream, start_step))


class EvalInput(_Input):
  """Batches that hold every example exactly once, in order.

  The last batches are filled up; `mask` is False in the rows that do not
  count. Iterate as often as you like: the batches are the same each time.

  Takes the arguments of `TrainInput` but those of an order and of chance, and
  compares four examples: images must have one size after the ops. With
  `on_error='skip'` the row of a record that cannot be read has mask False.
  """

  _training = False

  @property
  def num_batches(self) -> int:
    """Batches in one pass, the same for every process."""
    return -(-self.num_examples // self.batch_size)

  def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a global batch, with its mask."""
    mask = jax.ShapeDtypeStruct((self.batch_size,), np.bool_)
    return super().element_spec() | {'mask': mask}

  def __iter__(self) -> Iterator[Batch]:
    rows = self.num_batches * self.batch_size
    stream = grain.MapDataset.range(rows).seed(0)  # for ops that ask for chance
    stream = stream.random_map(self._reader.read_or_blank)
    return self._reader.watched(self._batches(stream, 0))


class _Reordered(grain.MapDataset):
  """A stream whose element i is the element `place(i)` of another stream."""

  def __init__(
    self, stream: grain.MapDataset, length: int, place: Callable[[int], int]
  ):
    super().__init__(stream)
    self._length, self._place = length, place

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    return self._parent[self._place(index)]


def _repeated_image(batch_size: int, repeats: int, index: int) -> int:
  """Returns the image of a row of the stream, r = `repeats` rows for each.

  A row of batch t is a copy of image `(t * B + e) // r`, where e goes through
  0, r, 2 r, ..., then 1, r + 1, ...: first copies stand before second ones, and
  B // r rows in a row are different images. (In DeiT the copies go to different
  processes, which has the same effect on what is mixed within a process.)
  """
  batch, row = divmod(index, batch_size)
  least, more = divmod(batch_size, repeats)
  if row < more * (least + 1):  # These copies have one row more than others.
    copy, image = divmod(row, least + 1)
  else:
    copy, image = divmod(row - more * (least + 1), least)
    copy += more
  return (batch * batch_size + image * repeats + copy) // repeats


def _rows_of_devices(sharding: jax.sharding.Sharding, batch_size: int) -> list:
  """Returns the rows of a batch on this process's devices, ascending.

  On most meshes process p of P has the p-th part of the rows. Where the devices
  are ordered for their network, or a tensor axis spans processes, it has
  others, or several processes have the same.
  """
  slices = sharding.addressable_devices_indices_map((batch_size,)).values()
  parts = sorted({rows.indices(batch_size)[:2] for (rows,) in slices})
  return [row for part in parts for row in range(*part)]


def _stack(chunks: list[list[Batch]]) -> Batch:
  """Returns a batch; each image is copied only once."""
  rows = [row for chunk in chunks for row in chunk]
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def to_global(
  batch: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
  """Returns global arrays made of the rows of every process.

  An explicit transfer, allowed under `jax.transfer_guard('disallow')`. `batch`
  has the rows of this process's devices, in order; its field `index` stays on
  the host.

  Raises:
    UserError: the global batch does not divide among the devices.
  """
  rows = {k: v for k, v in batch.items() if k != 'index'}
  num = sharding.num_devices  # Some number of rows that they divide.
  ours = len(_rows_of_devices(sharding, num))
  shapes = {k: (len(v) * num // ours, *v.shape[1:]) for k, v in rows.items()}
  try:
    for shape in shapes.values():
      sharding.shard_shape(shape)
  except ValueError as e:
    raise UserError(
      f'a batch of {next(iter(shapes.values()))[0]} rows does not divide among '
      f'{sharding.num_devices} devices: {e}'
    ) from e
  # Over several processes JAX makes these arrays by implicit transfers.
  with jax.transfer_guard_host_to_device('allow'):
    return jax.make_array_from_process_local_data(sharding, rows, shapes)


def prefetch_to_device(
  batches: Iterable[Batch], sharding: jax.sharding.Sharding, size: int = 2
) -> Iterator[dict[str, jax.Array]]:
  """Yields `to_global` of each batch, transfers started ahead of need.

  An error in the input is raised in place of its batch, so a run that ends
  before that batch never sees it. Closing this iterator closes `batches`.
  `size` batches are on the device at once, the one just handed out included.
  """
  batches, ready, ended = iter(batches), collections.deque(), False
  try:
    while True:
      while not ended and len(ready) < size:
        try:
          ready.append(to_global(next(batches), sharding))
        except Exception as e:  # StopIteration too; raised in its turn
          ready.append(e)
          ended = True
      item = ready.popleft()
      if isinstance(item, StopIteration):
        return
      if isinstance(item, Exception):
        raise item
      yield item
  finally:
    if hasattr(batches, 'close'):
      batches.close()
