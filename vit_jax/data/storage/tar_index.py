"""An index of the files in a tar, for random access.

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
from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError

_COMPRESSED = {
  b'\x1f\x8b': 'gunzip',
  b'BZ': 'bunzip2',
  b'\xfd7': 'unxz',
  b'\x28\xb5': 'unzstd',
}
_NOWHERE = (-1, -1)  # place of a link to what is not in the tar
_THREADS = 16  # on a network disk all the time goes into waiting


@dataclasses.dataclass(frozen=True)
class Index:
  """The files of one tar, in their order; a link is what it leads to."""

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
    """Returns the content of file `i`. Any number of threads may read.

    The tar is opened each time: no limit of open files is met, and a tar that
    was deleted or replaced meanwhile is noticed.

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
  with contextlib.suppress(Exception):
    with np.load(kept, allow_pickle=False) as file:
      if tuple(file['stamp'].tolist()) == stamp:
        fields = (file[key] for key in ('names', 'offsets', 'sizes'))
        return Index(path, stamp, *fields)
  index = _make(path, stamp)
  with contextlib.suppress(OSError):  # a folder that may only be read
    _keep(index, kept)
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
      _check_end(path, tar.offset, stamp[0])
  except (tarfile.TarError, OSError, EOFError) as e:
    raise UserError(f'{path} is no tar, or a broken one: {e}') from e
  return Index(
    path,
    stamp,
    # What stands in a tar need not be UTF-8.
    np.array([n.encode(errors='surrogateescape') for n, _, _ in members], 'S'),
    np.array([offset for _, offset, _ in members], np.int64),
    np.array([size for _, _, size in members], np.int64),
  )


def _members(tar: tarfile.TarFile) -> list[tuple[str, int, int]]:
  """Returns name, offset and size of the files that are not hidden."""
  names, places, links = [], {}, {}
  for k, member in enumerate(tar):
    path = os.path.normpath(member.name)
    if member.isreg():
      places[path] = places[k] = (member.offset_data, member.size)
    elif member.islnk():
      links[path] = os.path.normpath(member.linkname)
    elif member.issym():
      folder = os.path.dirname(path)
      links[path] = os.path.normpath(os.path.join(folder, member.linkname))
    else:
      continue
    if not _hidden(member.name):
      names.append((k, member.name))

  ends = _ends(links)

  def place(k: int, name: str) -> tuple[int, int]:
    path = os.path.normpath(name)
    return places.get(k) or places.get(ends.get(path, path), _NOWHERE)

  return [(name, *place(k, name)) for k, name in names]


def _ends(links: dict[str, str]) -> dict[str, str]:
  """Returns the last path of the chain that starts at each link.

  A chain that is a circle ends at one of its links. Each link is followed once,
  however long the chains are.
  """
  ends = {}
  for path in links:
    passed = {}
    while path in links and path not in ends and path not in passed:
      passed[path] = None
      path = links[path]
    ends |= dict.fromkeys(passed, ends.get(path, path))
  return ends


def _check_end(path: str, end: int, size: int) -> None:
  """Raises unless nothing but empty blocks stands behind the last file.

  Python ends without a word where the next header is missing or damaged.
  """
  if end >= size:
    raise UserError(f'{path} is a broken tar: its end is missing')
  with open(path, 'rb') as file:
    file.seek(end)
    while block := file.read(1 << 20):
      if block.strip(b'\0'):
        raise UserError(
          f'{path} is a broken tar: there is more behind its end at byte '
          f'{end}. Either the header there is damaged, or several tars were '
          'joined by cat; then unpack it (tar --ignore-zeros -xf) and pack it '
          'again'
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
