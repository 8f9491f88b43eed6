"""Writing a source as array_record files, one resumable shard at a time.

A shard appears under its name when it is complete, with its metadata beside it
as JSON. A run that is killed continues with the first missing shard, and the
result is the same to the byte; so two processes may write the same target.
"""

import collections
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax import files
from vit_jax.data import layout, paths, watchdog
from vit_jax.data.sources import array_record
from vit_jax.errors import RunError, UserError

_PLAN = 'plan.json'
_EXAMPLES_PER_SHARD = 8192
_MAX_SHARDS = 512  # The process that reads them holds all of them open.


class Writer:
  """Writes one split of a source into a folder."""

  def __init__(
    self,
    source: Any,
    folder: pathlib.Path,
    *,
    plan: Mapping[str, Any],
    transform: Callable[[dict], dict],
    skip: bool,
    num_threads: int,
    examples_per_shard: int | None = None,
  ):
    """Divides the source into shards and begins or continues the folder.

    Args:
      source: written whole and in its order.
      folder: for the files, `<target>/<split>`.
      plan: the settings behind the files, stored with them and compared.
      transform: applied to every example.
      skip: whether examples that cannot be read are left out.
      num_threads: for reading.
      examples_per_shard: None is 8,192, or more for 512 files at most.

    Raises:
      UserError: the folder was begun with another plan, or is not writable.
    """
    if paths.printable(str(folder)) != str(folder):
      raise UserError(
        f'{paths.printable(str(folder))}: the name of the target is not UTF-8, '
        'which ArrayRecord cannot open'
      )
    self._source, self._folder, self._transform = source, folder, transform
    self._skip, self._num_threads = skip, num_threads
    num = len(source)
    size = examples_per_shard
    if size is None:
      size = max(_EXAMPLES_PER_SHARD, -(-num // _MAX_SHARDS))
    if size < 1:
      raise UserError(f'examples_per_shard is at least 1; got {size}')
    self._parts = [range(i, min(i + size, num)) for i in range(0, num, size)]
    self.num_shards = len(self._parts)
    names = (source.describe(i) for i in range(num))
    self._plan = dict(plan) | dict(
      num_examples=num,
      examples_per_shard=size,
      class_names=source.class_names,
      num_classes=source.num_classes,
      records=_digest(names),
    )
    if source.column_texts:  # Otherwise dataset.json has no such key.
      self._plan['column_texts'] = source.column_texts
    self._check_plan()

  def existing_shards(self) -> dict[int, dict[str, Any]]:
    """Returns the metadata of the shards that exist in full size, by number."""
    shards = {}
    for k in range(self.num_shards):
      shard = _read_json(self._path(k, 'json'))
      if shard and not array_record.size_mismatch(self._folder, shard):
        shards[k] = shard
    return shards

  def write(self, k: int, advance: Callable[[], None]) -> dict[str, Any]:
    """Writes shard `k` and returns its metadata.

    Raises:
      UserError: an example cannot be read and is not to be skipped.
      RunError: the disk is full or the shard cannot be opened again.
    """
    path = self._path(k, 'array_record')
    try:
      with files.write_atomically(path, error=RunError) as part:
        shard = self._fill(part, self._parts[k], advance)
    except RuntimeError as e:  # also of the ArrayRecord library
      raise RunError(
        f'{e}; the complete files of {self._folder} remain: fix the cause and '
        'start the same command again'
      ) from e
    shard = dict(file=path.name) | shard
    _write_json(self._path(k, 'json'), shard)
    return shard

  def finish(self, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes `dataset.json` and returns its content."""
    counts: collections.Counter[int] = collections.Counter()
    for shard in shards:
      counts.update({int(i): n for i, n in shard['class_counts'].items()})
    info = self._plan | dict(
      num_examples=sum(shard['num_examples'] for shard in shards),
      num_bytes=sum(shard['num_bytes'] for shard in shards),
      class_counts=[counts[i] for i in range(self._plan['num_classes'] or 0)],
      skipped=[name for shard in shards for name in shard['skipped']],
      shards=[
        {key: shard[key] for key in ('file', 'num_examples', 'num_bytes')}
        for shard in shards
      ],
    )
    _write_json(self._folder / layout.PREPARED, info)
    return info

  def _fill(
    self, path: pathlib.Path, part: range, advance: Callable[[], None]
  ) -> dict[str, Any]:
    """Writes and reopens a file; returns its metadata without the name."""
    from array_record.python import array_record_module

    counts: collections.Counter[int] = collections.Counter()
    skipped = []
    examples = watchdog.Watchdog(self._source.describe).in_order(
      self._example, part, self._num_threads
    )
    first = next(examples)
    # Images are compressed already; arrays are not.
    encoded = isinstance((first[0] or {}).get('image'), bytes)
    options = 'group_size:1' + (',uncompressed' if encoded else '')
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    try:
      for example, problem in itertools.chain([first], examples):
        advance()
        if example is None:
          skipped.append(problem)
          continue
        record = _pack(example)
        writer.write(record)
        counts.update(class_ids(example.get('label')))
    finally:
      writer.close()
    num = len(part) - len(skipped)
    array_record.open_file(str(path), num).close()
    return dict(
      num_examples=num,
      num_bytes=path.stat().st_size,
      class_counts={str(i): counts[i] for i in sorted(counts)},
      skipped=skipped,
    )

  def _check_plan(self) -> None:
    """Stores the plan; raises if the folder was begun with another one."""
    path = self._folder / _PLAN
    begun = _read_json(path)
    if begun is None:
      _write_json(path, self._plan, error=UserError)
      return
    plan = json.loads(json.dumps(self._plan))
    differ = [
      f'{key}: was {_short(begun.get(key))}, is {_short(plan.get(key))}'
      for key in sorted(begun.keys() | plan.keys())
      if begun.get(key) != plan.get(key)
    ]
    if differ:
      raise UserError(
        f'{self._folder} was begun from something else; choose another target '
        'or delete it:\n  ' + '\n  '.join(differ)
      )

  def _path(self, k: int, suffix: str) -> pathlib.Path:
    return self._folder / f'{k:05}-of-{self.num_shards:05}.{suffix}'

  def _example(self, i: int) -> tuple[dict | None, str]:
    """Returns an example with its name, or None and the problem."""
    try:
      name = self._source.describe(i)
      return self._transform(self._source[i]) | {'name': name}, ''
    except MemoryError:  # A failure of the process, not of the example.
      raise
    except BaseException as e:  # A SystemExit would end it with code 0.
      problem = e if isinstance(e, UserError) else repr(e)
      what = f'{self._source.describe(i)}: {problem}'
      if not self._skip:
        raise UserError(
          f'{what}\n(repair or remove it, or leave such images out with '
          '--on_error=skip)'
        ) from e
      return None, what


def class_ids(label: Any) -> list[int]:
  """Returns the class ids of a label: one, a list, a vector or None."""
  if label is None:
    return []
  label = np.asarray(label)
  if label.dtype.kind == 'f':
    return np.flatnonzero(label).tolist()
  return label.reshape(-1).tolist()


def _pack(example: dict[str, Any]) -> bytes:
  from flax import serialization

  plain = {
    key: value.item()
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0
    else value
    for key, value in example.items()
  }
  return serialization.msgpack_serialize(plain)


def _digest(names: Iterator[str]) -> str:
  digest = hashlib.sha256()
  for name in names:
    digest.update(name.encode(errors='backslashreplace') + b'\n')
  return digest.hexdigest()


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return files.read_json(path, max_bytes=layout.MAX_PREPARED_BYTES)
  except UserError:
    return None  # It is made again.


def _write_json(
  path: pathlib.Path, content: Any, error: type[Exception] = RunError
) -> None:
  text = json.dumps(content, indent=1, ensure_ascii=False)
  with files.write_atomically(path, error=error) as part:
    # The parts of a path that are not UTF-8 become escapes of JSON.
    part.write_text(text, encoding='utf-8', errors='backslashreplace')


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
