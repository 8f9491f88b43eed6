"""Writes a source as array_record files that can be trusted.

A file appears under its name when it is complete and was read again, with its
facts beside it as JSON. So a run that is killed at any moment continues with
the first file that is missing, and the result is the same to the byte.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax import files
from vit_jax.data import paths, thread_map, watchdog
from vit_jax.data.sources import array_record
from vit_jax.errors import RunError, UserError

_PLAN = 'plan.json'
_INCOMPLETE = 'incomplete'
_STAYS = 'complete files stay: fix it and start the same command again'
_EXAMPLES_PER_SHARD = 8192
_MAX_SHARDS = 512  # each is an open file of the process that reads them


class Writer:
  """One split on its way into a folder."""

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
    """Decides which files there will be.

    Args:
      source: what is written, whole and in its order.
      folder: for the files, `<target>/<split>`.
      plan: what made these files, for those who read them and to notice that
        a folder was begun with something else.
      transform: applied to every example.
      skip: whether examples that cannot be read are left out; or else the
        first of them ends the run.
      num_threads: that read.
      examples_per_shard: None is 8,192, or more where that makes over 512
        files.

    Raises:
      UserError: the folder holds another dataset, or the beginning of one.
    """
    if paths.printable(str(folder)) != str(folder):
      raise UserError(
        f'{paths.printable(str(folder))}: the name of the target is not UTF-8, '
        'which ArrayRecord cannot open'
      )
    self._source, self._folder, self._transform = source, folder, transform
    self._skip, self._num_threads = skip, num_threads
    self._watchdog = watchdog.Watchdog(source.describe)
    num = len(source)
    size = examples_per_shard
    if size is None:
      size = max(_EXAMPLES_PER_SHARD, -(-num // _MAX_SHARDS))
    if size < 1:
      raise UserError(f'examples_per_shard is at least 1; got {size}')
    self._parts = [range(i, min(i + size, num)) for i in range(0, num, size)]
    self._plan = dict(plan) | dict(
      num_examples=num,
      examples_per_shard=size,
      class_names=source.class_names,
      num_classes=source.num_classes,
      records=_digest(source.describe(i) for i in range(num)),
    )
    self.num_shards = len(self._parts)

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Holds the folder against a second process, which gets a UserError."""
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      lock = open(self._folder / '.lock', 'w')
    except OSError as e:
      raise UserError(f'{self._folder} cannot be written: {e}') from e
    with lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as e:
        raise UserError(
          f'another process is writing to {self._folder}; wait for its end'
        ) from e
      self._check_plan()
      yield

  def complete(self) -> dict[str, Any] | None:
    """Returns what `dataset.json` says, if all was written before."""
    return _read_json(self._folder / array_record.INFO)

  def there(self, *, verify: bool) -> dict[int, dict[str, Any]]:
    """Returns the facts of the files that are there and good, by number.

    Args:
      verify: whether checksums are compared, or sizes only.
    """
    good = {}
    for k in range(self.num_shards):
      facts = _read_json(self._facts_path(k))
      if facts is None or array_record.wrong(self._folder, facts):
        continue
      path = self._folder / facts['file']
      if not verify or file_digest(path) == facts['sha256']:
        good[k] = facts
    return good

  def write(self, k: int, advance: Callable[[int], None]) -> dict[str, Any]:
    """Writes file number `k`, reads it again and returns its facts.

    Args:
      k: number of the file.
      advance: is told the bytes of each example that is done.

    Raises:
      UserError: an example cannot be read and is not to be skipped.
      RunError: the disk is full, or what was written is not what is read.
    """
    name = f'{k:05}-of-{self.num_shards:05}.array_record'
    temporary = self._folder / f'{_INCOMPLETE}.{name}'
    try:
      counts, skipped = self._fill(temporary, self._parts[k], advance)
      facts = dict(
        file=name,
        num_examples=len(self._parts[k]) - len(skipped),
        num_bytes=temporary.stat().st_size,
        sha256=file_digest(temporary),
        class_counts={str(i): counts[i] for i in sorted(counts)},
        skipped=skipped,
      )
    except (OSError, RuntimeError) as e:
      if isinstance(e, RunError):
        raise
      raise RunError(f'{temporary} cannot be written: {e}; {_STAYS}') from e
    os.replace(temporary, self._folder / name)
    _write_json(self._facts_path(k), facts)
    return facts

  def _fill(
    self, path: pathlib.Path, part: range, advance: Callable[[int], None]
  ) -> tuple[collections.Counter[int], list[str]]:
    """Writes a file and checks it; returns class counts and what is skipped."""
    from array_record.python import array_record_module

    counts: collections.Counter[int] = collections.Counter()
    written, skipped = hashlib.sha256(), []
    # Images are compressed already; arrays are not.
    first = next((e for e, _ in self._read(part[:1]) if e), {})
    encoded = isinstance(first.get('image'), bytes)
    options = 'group_size:1' + (',uncompressed' if encoded else '')
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    try:
      for example, problem in self._read(part):
        if example is None:
          skipped.append(problem)
          advance(0)
          continue
        record = _pack(example)
        writer.write(record)
        written.update(record)
        counts.update(_class_ids(example.get('label')))
        advance(len(record))
    finally:
      writer.close()
    _check(path, len(part) - len(skipped), written)
    return counts, skipped

  def finish(self, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes `dataset.json` and returns what it says."""
    counts: collections.Counter[int] = collections.Counter()
    for shard in shards:
      counts.update({int(i): n for i, n in shard['class_counts'].items()})
    info = self._plan | dict(
      num_examples=sum(shard['num_examples'] for shard in shards),
      num_bytes=sum(shard['num_bytes'] for shard in shards),
      class_counts=[counts[i] for i in range(self._plan['num_classes'] or 0)],
      skipped=[name for shard in shards for name in shard['skipped']],
      shards=[
        {
          key: shard[key]
          for key in ('file', 'num_examples', 'num_bytes', 'sha256')
        }
        for shard in shards
      ],
    )
    _write_json(self._folder / array_record.INFO, info)
    return info

  def _check_plan(self) -> None:
    """Raises if the folder was begun from something else."""
    path = self._folder / _PLAN
    begun = _read_json(path)
    if begun is None:
      _write_json(path, self._plan)
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

  def _facts_path(self, k: int) -> pathlib.Path:
    return self._folder / f'{k:05}-of-{self.num_shards:05}.json'

  def _read(self, part: range) -> Iterator[tuple[dict | None, str]]:
    """Returns examples in order with their names, or None with the problem."""
    examples = thread_map.in_order(self._example, part, self._num_threads)
    return self._watchdog.watched(examples)

  def _example(self, i: int) -> tuple[dict | None, str]:
    try:
      with self._watchdog.reading(i):
        name = self._source.describe(i)
        return self._transform(self._source[i]) | {'name': name}, name
    except BaseException as e:  # a SystemExit would end all as if it were well
      problem = e if isinstance(e, UserError) else repr(e)
      what = f'{self._source.describe(i)}: {problem}'
      if not self._skip:
        raise UserError(
          f'{what}\n(repair or remove it, or leave such images out with '
          '--on_error=skip)'
        ) from e
      return None, what


def file_digest(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, as `sha256sum` prints it."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _check(path: pathlib.Path, num: int, written: Any) -> None:
  """Raises RunError unless the file holds the records that were written."""
  from array_record.python import array_record_module

  with open(path, 'rb') as file:
    os.fsync(file.fileno())
  reader = array_record_module.ArrayRecordReader(str(path))
  found = hashlib.sha256()
  try:
    for start in range(0, num, 64):
      for record in reader.read(range(start, min(start + 64, num))):
        found.update(record)
    same = reader.num_records() == num and found.digest() == written.digest()
  except RuntimeError as e:
    raise RunError(f'{path} cannot be read again: {e}') from e
  finally:
    reader.close()
  if not same:
    raise RunError(
      f'{path} does not hold what was written to it ({num} records); is the '
      'disk broken or full?'
    )


def _pack(example: dict[str, Any]) -> bytes:
  from flax import serialization

  plain = {
    key: value.item()
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0
    else value
    for key, value in example.items()
  }
  return serialization.msgpack_serialize(plain)


def _class_ids(label: Any) -> list[int]:
  if label is None:
    return []
  label = np.asarray(label)
  if label.dtype.kind == 'f':
    return np.flatnonzero(label).tolist()
  return label.reshape(-1).tolist()


def _digest(names: Iterator[str]) -> str:
  digest = hashlib.sha256()
  for name in names:
    digest.update(name.encode(errors='backslashreplace') + b'\n')
  return digest.hexdigest()


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
  try:
    return files.read_json(path, max_bytes=array_record.MAX_JSON_BYTES)
  except UserError:
    return None  # It is made again.


def _write_json(path: pathlib.Path, content: Any) -> None:
  temporary = path.with_name(f'{_INCOMPLETE}.{path.name}')
  text = json.dumps(content, indent=1, ensure_ascii=False)
  # What of a path is not UTF-8 becomes an escape of JSON.
  try:
    temporary.write_text(text, encoding='utf-8', errors='backslashreplace')
    os.replace(temporary, path)
  except OSError as e:
    raise RunError(f'{path} cannot be written: {e}; {_STAYS}') from e


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
