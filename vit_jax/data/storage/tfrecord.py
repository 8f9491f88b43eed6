"""Converts a prepared TFDS dataset from TFRecord to array_record.

TFRecord can only be read from the start, so nothing random can be served from
it. The records themselves are copied byte for byte.
"""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator

from absl import logging

from vit_jax.errors import UserError

_FORMAT = 'array_record'
_INFO = 'dataset_info.json'  # written last: its presence means all is there


def copy_of(version_dir: str) -> pathlib.Path:
  """Returns the folder where the converted copy of a dataset version goes."""
  return pathlib.Path(version_dir) / _FORMAT


def is_complete(target: pathlib.Path) -> bool:
  """Returns whether a conversion to this folder has finished."""
  return (target / _INFO).exists()


def convert(version_dir: str, target: pathlib.Path) -> None:
  """Writes a copy of a TFRecord dataset as array_record. Needs TensorFlow.

  Takes about as much disk as the original, which stays as it is. A file
  appears under its name only when it is complete, so a conversion that was
  killed continues, and processes that convert at once do not disturb each
  other.

  Args:
    version_dir: the folder with `dataset_info.json` and the shards.
    target: the folder for the copy.

  Raises:
    UserError: the target cannot be written.
  """
  source = pathlib.Path(version_dir)
  shards = sorted(source.glob('*.tfrecord*'))
  logging.warning('converting %s to %s, once', source, target)
  try:
    target.mkdir(exist_ok=True)
    for shard in shards:
      name = shard.name.replace('.tfrecord', f'.{_FORMAT}')
      if not (target / name).exists():
        with _complete(target / name) as path:
          _convert_shard(shard, path)
    for extra in source.glob('*'):
      if extra.suffix in ('.json', '.txt') and extra.name != _INFO:
        with _complete(target / extra.name) as path:
          path.write_bytes(extra.read_bytes())
    info = json.loads((source / _INFO).read_text())
    with _complete(target / _INFO) as path:
      path.write_text(json.dumps(info | {'fileFormat': _FORMAT}, indent=2))
  except OSError as e:
    raise UserError(
      f'cannot write the {_FORMAT} copy of {source} to {target}: {e}; free '
      'space or make the folder writable, or prepare the dataset as '
      f'{_FORMAT} in another data_dir'
    ) from e


def _convert_shard(shard: pathlib.Path, target: pathlib.Path) -> None:
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(target), 'group_size:1')
  with contextlib.closing(writer):
    for record in _records(shard):
      writer.write(record)


def _records(shard: pathlib.Path) -> Iterator[bytes]:
  """Returns the serialized records of a TFRecord file, in order."""
  import tensorflow as tf  # the only place that needs it

  return tf.data.TFRecordDataset(str(shard)).as_numpy_iterator()


@contextlib.contextmanager
def _complete(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path that becomes `path` if nothing is raised."""
  folder = tempfile.mkdtemp(prefix='incomplete.', dir=path.parent)
  temporary = pathlib.Path(folder) / path.name
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
    os.rmdir(folder)
