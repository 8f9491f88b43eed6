"""An index of the files in a tar, for random access.

Reading the headers of a tar takes under a second for 10,000 files. The index is
stored beside the tar as `<tar>.index.npz` if the folder is writable, and made
again when the size or the modification time of the tar has changed.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import tarfile
from collections.abc import Sequence

import numpy as np

from vit_jax import files
from vit_jax.errors import UserError

_COMPRESSED = {
  b'\x1f\x8b': 'gunzip',
  b'BZ': 'bunzip2',
  b'\xfd7': 'unxz',
  b'\x28\xb5': 'unzstd',
}
_NOWHERE = (-1, -1)  # Place of a link to a file outside of the tar.
_MAX_LINKS = 40  # in a chain, as in Linux
_ARRAYS = ('names', 'offsets', 'sizes')
_MB = 2**20
_THREADS = 16  # on a network disk all the time goes into waiting


@dataclasses.dataclass(frozen=True)
class Index:
  """The files of one tar, in their order; links are resolved."""

  path: str
  stamp: tuple[int, int]  # size and time of the tar when it was read
  names: np.ndarray  # bytes, fixed length
  offsets: np.ndarray
  sizes: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets)

  def name(self, i: int) -> str:
    """Returns the path of file `i` inside the tar."""
    return self.names[i].decode(errors='backslashreplace')

  def read(self, i: int) -> bytes:
    """Returns the content of file `i`; any number of threads may read.

    Opens the tar each time: the limit of open files is never reached, and a tar
    that was deleted or replaced meanwhile is noticed.

    Raises:
      UserError: the tar is gone, or is not the one that was indexed, or the
        file is a link to what is not in it.
    """
    size = int(self.sizes[i])
    if size < 0:
      raise UserError(
        f'{self.name(i)} is a link to what is not in {self.path}; pack the '
        'files themselves: tar --dereference'
      )
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
  indexes, problems = [], []
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for future in [pool.submit(_open, path) for path in paths]:
      try:
        indexes.append(future.result())
      except UserError as e:
        problems.append(str(e))
  if problems:
    more = [f'and {len(problems) - 10} more'] if len(problems) > 10 else []
    raise UserError('\n'.join(problems[:10] + more))
  return indexes


def _open(path: str) -> Index:
  try:
    stamp = _stamp(path)
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e}') from e
  kept = f'{path}.index.npz'
  # Whatever is wrong with a stored index: it can be made again.
  with contextlib.suppress(Exception):
    with np.load(kept, allow_pickle=False) as file:
      if tuple(file['stamp'].tolist()) == stamp:
        return Index(path, stamp, *(file[key] for key in _ARRAYS))
  index = _make(path, stamp)
  # The folder may be read-only.
  with contextlib.suppress(UserError), files.write_atomically(kept) as part:
    with open(part, 'wb') as file:
      arrays = {key: getattr(index, key) for key in _ARRAYS}
      np.savez(file, stamp=np.array(stamp), **arrays)
  return index


def _make(path: str, stamp: tuple[int, int]) -> Index:
  try:
    with open(path, 'rb') as file:
      start = file.read(2)
    if start in _COMPRESSED:
      raise UserError(
        f'{path} is compressed, and then nothing can be read without all '
        f'before it; unpack it first: {_COMPRESSED[start]} {path}'
      )
    with tarfile.open(path, 'r:') as tar:
      members = _members(tar)
      end = tar.offset
    # Python ends without a word where the next header is missing or damaged.
    if end >= stamp[0]:
      raise UserError(f'{path} is a broken tar: its end is missing')
    with open(path, 'rb') as file:
      file.seek(end)
      if any(block.strip(b'\0') for block in iter(lambda: file.read(_MB), b'')):
        raise UserError(
          f'{path} is a broken tar: there is more behind its end at byte '
          f'{end}. Either the header there is damaged, or several tars were '
          'joined by cat; then unpack it (tar --ignore-zeros -xf) and pack it '
          'again'
        )
  except (tarfile.TarError, OSError, EOFError) as e:
    raise UserError(f'{path} is not a tar, or a broken one: {e}') from e
  # Names in a tar need not be UTF-8.
  names = [name.encode(errors='surrogateescape') for name, _ in members]
  places = np.array([place for _, place in members], np.int64).reshape(-1, 2)
  return Index(path, stamp, np.array(names, 'S'), places[:, 0], places[:, 1])


def _members(tar: tarfile.TarFile) -> list[tuple[str, tuple[int, int]]]:
  """Returns name, and offset and size, of the files that are not hidden."""
  names, places, links = [], {}, {}
  for k, member in enumerate(tar):
    path = os.path.normpath(member.name)
    if member.isreg():
      places[path] = places[k] = (member.offset_data, member.size)
    elif member.islnk():  # to an earlier member
      links[path] = target = os.path.normpath(member.linkname)
      if target in places:
        places[path] = places[k] = places[target]
    elif member.issym():
      folder = os.path.dirname(path)
      links[path] = os.path.normpath(os.path.join(folder, member.linkname))
    else:
      continue
    if not os.path.basename(member.name).startswith('.'):
      names.append((k, member.name))

  def place(k: int, name: str) -> tuple[int, int]:
    path = os.path.normpath(name)
    for _ in range(_MAX_LINKS):
      path = links.get(path, path)
    return places.get(k) or places.get(path, _NOWHERE)

  return [(name, place(k, name)) for k, name in names]


def _stamp(file: str | int) -> tuple[int, int]:
  status = os.stat(file)
  return status.st_size, status.st_mtime_ns
