"""Reading of records: a source's example, processed by the host ops.

All broken records are handled here: one stops the run with its name, or it is
skipped, counted and reported. It never becomes a black image.
"""

import os
import pathlib
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.data import fields, open_source, ops_language, watchdog
from vit_jax.errors import DataError, UserError
from vit_jax.printable import printable

Example = dict[str, np.ndarray]

_NEWS = '_news'
_MAX_BROKEN_IN_A_ROW = 100
_MAX_NAMED = 5  # broken records that a report names
# Images of any content do not raise these: decoders report a UserError.
_MISTAKES = (KeyError, TypeError, AttributeError, NameError)
_PACKAGE = f'{pathlib.Path(__file__).parents[1]}{os.sep}'
# JAX uses 32 bits by default and would convert silently.
_NARROW = {np.dtype(np.int64): np.int32, np.dtype(np.float64): np.float32}


class Reader:
  """Reads records as examples with the shapes of the first one.

  Attributes:
    source: the open source.
    roles: of the fields that the source declares.
    spec: shape and dtype of each field of an example.
    watched: see `Watchdog.watched`.
  """

  def __init__(
    self,
    data: Mapping[str, Any],
    ops: str,
    *,
    on_error: str,
    training: bool = False,
  ):
    """Opens the source and reads an example; without training, compares four.

    Args:
      data: config section of a source: name, split and its other keys.
      ops: host ops in the mini-language.
      on_error: what happens to a record that cannot be read: `'stop'` raises,
        `'skip'` counts it and leaves it out.
      training: whether this is the input of training. Labels then start at 0;
        otherwise -1 means unlabelled.

    Raises:
      DataError: a wrong section or source, or examples that do not match.
    """
    try:
      self._open(data, ops, on_error, training)
    except UserError as e:
      error = DataError(str(e))
      for note in getattr(e, '__notes__', []):
        error.add_note(note)
      raise error from e

  def _open(self, data, ops: str, on_error: str, training: bool) -> None:
    if on_error not in ('stop', 'skip'):
      raise UserError(f"on_error is 'stop' or 'skip'; got {on_error!r}")
    self.source = open_source.open_source(data)
    if not len(self.source):
      raise UserError(f'the source has no records: {dict(data)}')
    self._ops = ops_language.parse(ops, trusted=True)
    self._arguments = (dict(data), ops, on_error, training)
    self.roles = fields.declared(self.source)
    self._skip = on_error == 'skip'
    self._training = training
    self._lock = threading.Lock()
    self._watchdog = watchdog.Watchdog(self.source.describe)
    self.watched = self._watchdog.watched
    self._broken: dict[int, str] = {}
    self._num_reported = 0  # of the broken records, by a worker to its parent
    last = len(self.source) - 1
    compared = [] if training else [last // 3, 2 * last // 3, last]
    _, stop = self._watchdog.start()
    try:
      self._first, example = self._next_good(0, np.random.default_rng(0))
      self.spec = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype)
        for name, value in example.items()
      }
      for index in compared:
        self._checked(*self._next_good(index, np.random.default_rng(0)))
    finally:
      stop.set()
    for name, role in self.roles.items():
      if role == 'image' and name not in self.spec:
        raise UserError(
          f'{self.source.describe(self._first)}: no array "{name}" after the '
          f'ops {ops!r}; is the image still encoded? the ops then start with '
          'decode'
        )

  def __reduce__(self):
    """A copy in another process opens the source again."""
    return _open_in_worker, (*self._arguments, len(self.source))

  @property
  def skipped(self) -> int:
    """Number of different records skipped so far by this process."""
    return len(self._broken)

  @property
  def skipped_names(self) -> list[str]:
    """The first few skipped records, each with its error."""
    with self._lock:
      return [printable(x) for x in self._broken.values()][:_MAX_NAMED]

  def read(self, index: int, rng: np.random.Generator) -> Example:
    """Returns record `index`, or the next good one if it is skipped.

    The example has a field `index`: the number of the record that it is.
    """
    used, example = self._next_good(index, rng)
    return self._checked(used, example) | {'index': np.int64(used)}

  def read_or_blank(self, index: int, rng: np.random.Generator) -> Example:
    """Returns record `index` with `mask` True, or a blank one with False.

    Blank are the records past the end, which fill the last batch (`index` is
    -1), and those that are skipped.
    """
    example = None
    if index < len(self.source):
      example = self._try(index, rng)
    if example is None:
      blank = {k: np.zeros(s.shape, s.dtype) for k, s in self.spec.items()}
      index = index if index < len(self.source) else -1
      return blank | {'mask': np.False_, 'index': np.int64(index)}
    example = self._checked(index, example)
    return example | {'mask': np.True_, 'index': np.int64(index)}

  def pack(self, examples: Sequence[Example]) -> dict[str, Any]:
    """Returns stacked examples, and the records skipped since the last call."""
    with self._lock:
      news = list(self._broken.items())[self._num_reported :]
      self._num_reported = len(self._broken)
    stacked = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
    return {_NEWS: news, **stacked}

  def unpack(self, chunks: Sequence[dict[str, Any]]) -> Example:
    """Returns a batch of examples that copies of this reader packed."""
    with self._lock:
      for chunk in chunks:
        self._broken.update(chunk.pop(_NEWS))
    # Arrays in shared memory are of another type, which a batch should not be.
    return {
      k: np.concatenate([np.asarray(c[k]) for c in chunks]) for k in chunks[0]
    }

  def _next_good(
    self, index: int, rng: np.random.Generator
  ) -> tuple[int, Example]:
    num = len(self.source)
    tries = min(num, _MAX_BROKEN_IN_A_ROW)
    for i in range(index, index + tries):
      example = self._try(i % num, rng)
      if example is not None:
        return i % num, example
    raise UserError(
      f'{tries} records in a row cannot be read, from '
      f'{self.source.describe(index)} on; the last: {self._broken[i % num]}'
    )

  def _try(self, index: int, rng: np.random.Generator) -> Example | None:
    """Returns an example, or None if the record is broken and skipped."""
    with self._watchdog.reading(index):
      try:
        name = self.source.describe(index)
        return watchdog.call_under_name(name, self._decoded, index, rng)
      except KeyboardInterrupt:
        raise
      # A SystemExit would end the run without a word, and with code 0.
      except BaseException as e:
        what = f'{self.source.describe(index)}: {_explain(e)}'
        # A skip would hide that the process failed, and not the record.
        of_process = isinstance(e, MemoryError) or not isinstance(e, Exception)
        if not self._skip or of_process:
          raise UserError(f'{what}\n({self._advice(e)})') from e
        with self._lock:
          self._broken[index] = what
        return None

  def _decoded(self, index: int, rng: np.random.Generator) -> Example:
    example = self.source[index]
    if not isinstance(example, Mapping):
      kind = 'None' if example is None else f'a {type(example).__name__}'
      raise TypeError(
        f'`__getitem__` returned {kind}, expected a dict with image, label or '
        'other fields'
      )
    arrays = _arrays(self._ops(example, rng))
    num_classes, label = self.source.num_classes, arrays.get('label')
    if num_classes is None or label is None:
      return arrays
    least = 0 if self._training else -1
    is_id = label.ndim == 0 and label.dtype.kind in 'iu'  # No vector.
    if is_id and not least <= label < num_classes:
      raise UserError(f'label {label} is outside 0..{num_classes - 1}')
    return arrays

  def _advice(self, error: BaseException) -> str:
    """Returns what to do about a record that raised this."""
    if isinstance(error, MemoryError):
      return (
        'the process has no memory left: lower prefetch, num_threads or '
        'num_workers, or the batch size'
      )
    if isinstance(error, _MISTAKES):
      places = [
        f', {frame.filename}:{frame.lineno}'
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_PACKAGE)
        and 'site-packages' not in frame.filename
      ]
      return (
        'this is a mistake in the code of the source or of an op'
        f'{"".join(places[-1:])}: correct it there'
      )
    flag = (
      '--config.input.on_error=skip'
      if self._training
      else "on_error='skip' in this section (--config.evals.NAME.on_error=skip)"
    )
    return f'repair or remove it, or skip such records with {flag}'

  def _checked(self, index: int, example: Example) -> Example:
    """Returns the example if it has the shapes and dtypes of the first one."""
    same = example.keys() == self.spec.keys() and all(
      value.shape == self.spec[name].shape
      and value.dtype == self.spec[name].dtype
      for name, value in example.items()
    )
    if not same:
      describe = self.source.describe
      raise UserError(
        'examples that differ cannot share a batch:\n'
        f'  {describe(self._first)}: {_signature(self.spec)}\n'
        f'  {describe(index)}: {_signature(example)}\n'
        'if the image sizes differ, add an op such as resize(224) or '
        'random_resized_crop(224)'
      )
    return example


def _open_in_worker(
  data, ops: str, on_error: str, training: bool, size: int
) -> Reader:
  reader = Reader(data, ops, on_error=on_error, training=training)
  if len(reader.source) != size:
    raise UserError(
      f'the data has changed: {size} records when the run began, now '
      f'{len(reader.source)}: {data}'
    )
  reader._watchdog.start()
  return reader


def _arrays(example: Mapping[str, Any]) -> Example:
  """Returns the fields that a batch can hold; text is dropped.

  int64 and float64 become their 32-bit kinds; an int64 that does not fit is
  an error.
  """
  arrays = {}
  for name, value in example.items():
    array = np.asarray(value)
    if array.dtype.kind not in 'biuf':
      continue
    if array.dtype in _NARROW:
      wide, array = array, array.astype(_NARROW[array.dtype])
      if array.dtype == np.int32 and (array != wide).any():
        raise ValueError(f'{name!r} does not fit into int32: {wide}')
    arrays[name] = array
  return arrays


def _explain(error: BaseException) -> str:
  if isinstance(error, UserError):
    return str(error)
  notes = getattr(error, '__notes__', [])
  return '; '.join([f'{type(error).__name__}: {error}', *notes])


def _signature(fields: Mapping[str, Any]) -> str:
  return ', '.join(
    f'{name} {value.dtype}{list(value.shape)}' for name, value in fields.items()
  )
