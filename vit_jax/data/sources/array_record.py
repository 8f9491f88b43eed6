"""ArrayRecord files written by `python -m vit_jax prepare`.

`<data_dir>/<split>/dataset.json` describes the split. The examples are in files
`00000-of-00012.array_record` beside it, each as one MessagePack map that
`flax.serialization.msgpack_restore` reads.
"""

import os
import pathlib
import threading

import numpy as np

from vit_jax.data import folders, splits
from vit_jax.errors import UserError

_SHARD = {'file': str, 'num_examples': int, 'num_bytes': int}


class Source:
  """Examples with the prepared fields: `image`, `label` and columns."""

  def __init__(self, split: str, *, data_dir: str):
    """Opens a split; looks at the size of every file.

    Args:
      split: name of a folder in `data_dir`, or a slice of one.
      data_dir: the TARGET that was given to prepare.

    Raises:
      UserError: no such split, one that is not complete, or files that are
        missing or have another size than they should.
    """
    self._split = splits.parse(split)
    root = pathlib.Path(data_dir).expanduser()
    folder = root / self._split.name
    info = _info(root, folder)
    self.num_classes = info['num_classes']
    self.class_names = info['class_names']
    self.column_texts = info.get('column_texts', {})
    shards = info['shards']
    problems = [p for shard in shards if (p := size_mismatch(folder, shard))]
    if problems:
      raise UserError(
        f'{folder}: {len(problems)} of {len(shards)} files are not what '
        'was written; run prepare again:\n  ' + '\n  '.join(problems[:10])
      )
    self._files = [str(folder / shard['file']) for shard in shards]
    self._counts = [shard['num_examples'] for shard in shards]
    self._starts = np.cumsum([0, *self._counts])
    self._records = self._split.records(sum(self._counts))
    self._readers = [None] * len(shards)
    self._lock = threading.Lock()
    self._last = threading.local()

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    return self._read(index)[0]

  def describe(self, index: int) -> str:
    """Returns the file, the place in it, and where it was prepared from."""
    shard, position = self._place(index)
    where = f'{self._files[shard]}[{position}]'
    try:
      return f'{where} ({self._read(index)[1]})'
    except Exception:
      return where  # it is most often asked because it cannot be read

  def _read(self, index: int) -> tuple[dict, str]:
    # Asked for its name, a thread then reads the same record.
    if getattr(self._last, 'index', None) != index:
      self._last.record, self._last.index = self._restored(index), index
    example, name = self._last.record
    return dict(example), name

  def _restored(self, index: int) -> tuple[dict, str]:
    from flax import serialization

    shard, position = self._place(index)
    with self._lock:  # Any number of threads may read an open file.
      if self._readers[shard] is None:
        path, count = self._files[shard], self._counts[shard]
        self._readers[shard] = open_file(path, count)
    content = self._readers[shard].read([position])
    # A file that was cut off while open gives empty records and no error.
    if not content or not content[0]:
      raise UserError(f'{self._files[shard]} is shorter than it was')
    example = serialization.msgpack_restore(content[0])
    return example, example.pop('name')

  def _place(self, index: int) -> tuple[int, int]:
    record = self._records[index]
    shard = int(np.searchsorted(self._starts, record, side='right')) - 1
    return shard, int(record - self._starts[shard])


def size_mismatch(folder: pathlib.Path, shard: dict) -> str | None:
  """Returns a message if a shard is missing or has another size, or None."""
  path = folder / shard['file']
  if not os.path.isfile(path):  # A pipe is none.
    return f'{path} is missing'
  size = os.path.getsize(path)
  if size == shard['num_bytes']:
    return None
  return f'{path} has {size:,} bytes instead of {shard["num_bytes"]:,}'


def open_file(path: str, num_examples: int):
  """Returns the reader of a file.

  Raises:
    UserError: it is missing, broken, or has another number of records.
  """
  from array_record.python import array_record_module

  # A reader of a file that is missing or broken is made without complaint.
  reader = array_record_module.ArrayRecordReader(
    path, options='readahead_buffer_size:0', file_reader_buffer_size=32768
  )
  if not os.path.exists(path):
    raise UserError(f'{path} is gone')
  if not reader.ok() or reader.num_records() != num_examples:
    raise UserError(
      f'{path} is broken: it has {reader.num_records()} records, not '
      f'{num_examples}'
    )
  return reader


def _info(root: pathlib.Path, folder: pathlib.Path) -> dict:
  info = folders.read_prepared(folder)
  if info is None:
    found = sorted(f.parent.name for f in root.glob(f'*/{folders.PREPARED}'))
    hint = ' (not complete: run prepare again)' if folder.is_dir() else ''
    raise UserError(
      f'{root} has no split {folder.name!r}{hint}; '
      f'it has: {", ".join(found) or "none"}. Expected what `python -m '
      'vit_jax prepare` writes'
    )
  if not _is_info(info):
    raise UserError(
      f'{folder / folders.PREPARED} is not what `python -m vit_jax prepare` '
      'writes; run it again'
    )
  return info


def _is_info(info: dict) -> bool:
  """Whether what we read of it has the types that prepare writes."""
  names, texts = info.get('class_names', ''), info.get('column_texts', {})
  num_classes, shards = info.get('num_classes', ''), info.get('shards')
  return (
    (num_classes is None or type(num_classes) is int)
    and (names is None or _is_list_of(names, str))
    and isinstance(texts, dict)
    and all(_is_list_of(text, str) for text in texts.values())
    and _is_list_of(shards, dict)
    and all(
      type(shard.get(key)) is kind and (kind is str or 0 <= shard[key] < 2**48)
      for shard in shards
      for key, kind in _SHARD.items()
    )
  )


def _is_list_of(value, kind: type) -> bool:
  return isinstance(value, list) and all(isinstance(v, kind) for v in value)
