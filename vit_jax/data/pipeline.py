"""Input pipelines: shuffled batches for training, exact ones for evaluation.

What batch t of training contains is a function of (seed, t) alone: not of the
number of threads or processes, nor of where the run was started again. A row's
record comes from a permutation that is computed and never stored, its random
numbers from (seed, its position in the stream).
"""

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np

from vit_jax import lookup
from vit_jax.data import batching, records
from vit_jax.errors import UserError

_HOST_ONLY = ('index',)
# JAX uses the last 32 bits of a seed: 2**32 would give the weights of seed 0.
_MAX_SEED = 2**32


class _Input:
  """A source behind its host ops, and how its rows become batches."""

  def __init__(
    self, layout: batching.Layout, reader: records.Reader, batch_size: int
  ):
    self._layout, self._reader = layout, reader
    self.source, self.roles = reader.source, reader.roles
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


class TrainInput(_Input):
  """An endless stream of shuffled, augmented batches, seekable to any step."""

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
    process_index: int | None = None,
    process_count: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
    repeats: int = 1,
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
      process_index: of this process; the default asks JAX.
      process_count: how many processes share a batch; the default asks JAX.
      sharding: of the rows over the devices; this process then reads the rows
        of its own devices. None is an equal part for each process, in order.
      repeats: rows of each image in a global batch, each augmented differently;
        3 in DeiT (`batching.Repeated`). An epoch keeps its number of rows.
    """
    layout = batching.Layout(
      batch_size,
      num_threads,
      prefetch,
      num_workers,
      process_index,
      process_count,
      sharding,
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
    reader = records.Reader(data, ops, on_error=on_error, training=True)
    super().__init__(layout, reader, batch_size)
    self.repeats = repeats
    self._seed = int(seed)
    self.device_ops = device_ops

  @property
  def steps_per_epoch(self) -> float:
    """Batches in one pass over the data, rarely a whole number."""
    return self.num_examples / self.batch_size

  def batches(self, start_step: int = 0) -> Iterator[batching.Batch]:
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
    if self.repeats > 1:
      stream = stream[: -(-self.num_examples // self.repeats)].repeat()
      stream = batching.Repeated(stream, self.batch_size, self.repeats)
    else:
      stream = stream.repeat()
    stream = stream.random_map(self._reader.read)
    if start_step < 0:
      raise UserError(f'start_step is at least 0; got {start_step}')
    return self._reader.watched(
      self._layout.batches(stream, start_step, self._reader)
    )


class EvalInput(_Input):
  """Batches that hold every example exactly once, in order.

  The last batches are filled up; `mask` is False in the rows that do not
  count. Iterate as often as you like: the batches are the same each time.
  """

  def __init__(
    self,
    *,
    data: Mapping[str, Any],
    ops: str,
    batch_size: int,
    on_error: str = 'stop',
    num_threads: int | None = None,
    prefetch: int = 2,
    process_index: int | None = None,
    process_count: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
  ):
    """Opens the data and compares four examples; arguments of `TrainInput`.

    Images must have one size after the ops. With `on_error='skip'` the row of a
    record that cannot be read has mask False, and `skipped` counts the record.
    """
    layout = batching.Layout(
      batch_size,
      num_threads,
      prefetch,
      0,
      process_index,
      process_count,
      sharding,
    )
    reader = records.Reader(data, ops, on_error=on_error, num_compared=4)
    super().__init__(layout, reader, batch_size)

  @property
  def num_batches(self) -> int:
    """Batches in one pass, the same for every process."""
    return -(-self.num_examples // self.batch_size)

  def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a global batch, with its mask."""
    mask = jax.ShapeDtypeStruct((self.batch_size,), np.bool_)
    return super().element_spec() | {'mask': mask}

  def __iter__(self) -> Iterator[batching.Batch]:
    rows = self.num_batches * self.batch_size
    stream = grain.MapDataset.range(rows).seed(0)  # for ops that ask for chance
    stream = stream.random_map(self._reader.read_or_blank)
    return self._reader.watched(self._layout.batches(stream, 0, self._reader))


def to_global(
  batch: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding
) -> dict[str, jax.Array]:
  """Returns global arrays made of the rows of every process.

  An explicit transfer, allowed under `jax.transfer_guard('disallow')`. The
  field `index` stays on the host.

  Args:
    batch: the rows of this process's devices, in order.
    sharding: of the rows, over all devices.

  Raises:
    UserError: the global batch does not divide among the devices.
  """
  rows = {k: v for k, v in batch.items() if k not in _HOST_ONLY}
  ours, all_parts = _num_parts(sharding)
  shapes = {
    k: (len(v) * all_parts // ours, *v.shape[1:]) for k, v in rows.items()
  }
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
  batches: Iterable[Mapping[str, np.ndarray]],
  sharding: jax.sharding.Sharding,
  size: int = 2,
) -> Iterator[dict[str, jax.Array]]:
  """Yields `to_global` of each batch, transfers started ahead of need.

  An error in the input is raised in place of its batch, so a run that ends
  before that batch never sees it. Closing this iterator closes `batches`.

  Args:
    batches: what `TrainInput.batches` or an `EvalInput` yields.
    sharding: of the rows, over all devices.
    size: batches on the device at once, the one just handed out included.
  """
  if size < 1:
    raise UserError(f'prefetch_to_device: size is at least 1; got {size}')
  return _prefetch(iter(batches), sharding, size)


def _prefetch(batches, sharding, size: int):
  ready = collections.deque()
  ended = False
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
    close = getattr(batches, 'close', None)
    if close is not None:
      close()


def _num_parts(sharding: jax.sharding.Sharding) -> tuple[int, int]:
  """Returns the number of parts of the rows: of this process, and of all."""
  rows = sharding.num_devices  # Some number that they divide.
  slices = sharding.addressable_devices_indices_map((rows,)).values()
  ours = {part.indices(rows) for (part,) in slices}
  return len(ours), rows // sharding.shard_shape((rows,))[0]
