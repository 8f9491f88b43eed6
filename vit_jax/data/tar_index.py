"""Where the files of a tar lie, so that each can be read without the others.

A tar must be gone through once to know, in under a second for 10,000 files.
The answer is kept beside it as `<tar>.index.npz`, where the folder may be
written, and made again when size or time of the tar have changed.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError

_COMPRESSED = {b'\x1f\x8b': 'gunzip', b'BZ': 'bunzip2', b'\xfd7': 'unxz'}
_THREADS = 16  # on a network disk all the time goes into waiting


@dataclasses.dataclass(frozen=True)
class Index:
  """The regular files of one tar, in their order."""

  path: str
  stamp: tuple[int, int]  # size and time of the tar when it was read
  names: np.ndarray  # utf-8 bytes, fixed length
  offsets: np.ndarray
  sizes: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets)

  def name(self, i: int) -> str:
    """Returns the path of file `i` inside the tar."""
    return self.names[i].decode()

  def read(self, i: int) -> bytes:
    """Returns the content of file `i`. Any number of threads may read.

    The tar is opened each time: no limit of open files is met, and a tar that
    was deleted or replaced meanwhile is noticed.

    Raises:
      UserError: the tar is gone, or is not the one that was indexed.
    """
    size = int(self.sizes[i])
    try:
      with open(self.path, 'rb') as file:
        if _stamp(file.fileno()) != self.stamp:
          raise UserError(
            f'{self.path} was changed after its files were looked up; start '
            'again to read the new one'
          )
        content = os.pread(file.fileno(), size, int(self.offsets[i]))
    except OSError as e:
      raise UserError(f'{self.path} cannot be read any more: {e}') from e
    if len(content) != size:
      raise UserError(f'{self.path} ends within {self.name(i)}')
    return content


def open_all(paths: Sequence[str]) -> list[Index]:
  """Returns the index of each tar, read or made in parallel.

  Raises:
    UserError: tars that cannot be read; all of them in one message.
  """
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    futures = [pool.submit(_open, path) for path in paths]
  problems = [str(e) for f in futures if (e := f.exception()) is not None]
  for future in futures:
    error = future.exception()
    if error is not None and not isinstance(error, UserError):
      raise error
  if problems:
    more = [f'and {len(problems) - 10} more'] if len(problems) > 10 else []
    raise UserError('\n'.join(problems[:10] + more))
  return [future.result() for future in futures]


def _open(path: str) -> Index:
  try:
    stamp = _stamp(path)
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e}') from e
  kept = f'{path}.index.npz'
  # Whatever is wrong with what was kept: it can be made again.
  with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
    with np.load(kept, allow_pickle=False) as file:
      if tuple(file['stamp'].tolist()) == stamp:
        fields = (file[key] for key in ('names', 'offsets', 'sizes'))
        return Index(path, stamp, *fields)
  index = _make(path, stamp)
  with contextlib.suppress(OSError):  # a folder that may only be read
    _keep(index, kept)
  return index


def _make(path: str, stamp: tuple[int, int]) -> Index:
  with open(path, 'rb') as file:
    start = file.read(2)
  if start in _COMPRESSED:
    raise UserError(
      f'{path} is compressed, and then nothing can be read without all before '
      f'it; unpack it first: {_COMPRESSED[start]} {path}'
    )
  names, offsets, sizes, end = [], [], [], 0
  try:
    with tarfile.open(path, 'r:') as tar:
      for member in tar:
        end = member.offset_data + member.size
        if member.isreg() and not _hidden(member.name):
          names.append(member.name.encode())
          offsets.append(member.offset_data)
          sizes.append(member.size)
  except (tarfile.TarError, OSError, EOFError) as e:
    raise UserError(f'{path} is no tar, or a broken one: {e}') from e
  # A tar ends with empty blocks: one that ends with a file was cut off.
  if -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE >= stamp[0]:
    raise UserError(f'{path} is a broken tar: its end is missing')
  return Index(
    path,
    stamp,
    np.array(names, dtype='S'),
    np.array(offsets, np.int64),
    np.array(sizes, np.int64),
  )


def _keep(index: Index, path: str) -> None:
  handle, temporary = tempfile.mkstemp(
    prefix='.index.', dir=os.path.dirname(path) or '.'
  )
  try:
    with open(handle, 'wb') as file:
      np.savez(
        file,
        stamp=np.array(index.stamp),
        names=index.names,
        offsets=index.offsets,
        sizes=index.sizes,
      )
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _stamp(file: str | int) -> tuple[int, int]:
  status = os.stat(file)
  return status.st_size, status.st_mtime_ns


def _hidden(name: str) -> bool:
  return os.path.basename(name).startswith('.')
