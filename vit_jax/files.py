"""Bounded reading of small files (JSON, safetensors headers), atomic writing.

Reading never waits for a pipe, reads a device, or allocates what a number in a
file claims. Imports neither jax nor numpy, so that recipes can use it.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

import safetensors

from vit_jax.errors import UserError
from vit_jax.printable import printable

MAX_JSON_BYTES = 16 * 2**20  # The names of 21,843 classes are 0.5 MB.
MAX_JSON_NESTING = 64  # Ours have 5.
# safetensors itself has 100 MB; a ViT-G in float32 has a header of 0.1 MB.
MAX_HEADER_BYTES = 32 * 2**20


@contextlib.contextmanager
def write_atomically(
  path: str | os.PathLike, *, error: type[Exception] | None = UserError
) -> Iterator[pathlib.Path]:
  """Yields a temporary path whose file replaces `path` at the end.

  Folders are created. If anything is raised, the process is killed or the
  machine loses power, `path` stays as it was. Several processes may write it at
  once; the last one wins. The temporary file of a killed process is reused by
  the next call for the same path.

  Raises:
    UserError: the file cannot be written; `error` chooses another type, and
      None keeps the OSError.
  """
  path = pathlib.Path(path).expanduser()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    part, file = _open_temporary(path)
    with file:  # Holds the lock until the end, also if the process is killed.
      try:
        yield part
        _sync(part)
        os.replace(part, path)
      except BaseException:
        part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Some mounted buckets cannot.
      _sync(path.parent)
  except OSError as e:
    if error is None:
      raise
    raise error(f'cannot write {path}: {e.strerror or e}') from e


def check_regular(path: str | os.PathLike) -> int:
  """Returns the size of a file in bytes; symlinks are followed.

  Raises:
    UserError: there is no such file, or it is a folder, a pipe or a device.
  """
  try:
    status = os.stat(path)
  except (OSError, ValueError) as e:  # ValueError: a NUL in the path.
    raise unreadable(path, e) from e
  if not stat.S_ISREG(status.st_mode):
    raise UserError(
      f'cannot read {printable(path)}: it is {_kind(status.st_mode)}; give the'
      ' path of a regular file'
    )
  return status.st_size


def parse_json(text: str | bytes, where: str) -> Any:
  """Returns the value of a JSON text, which `where` names in messages.

  Raises:
    UserError: it is not JSON, or is nested deeper than MAX_JSON_NESTING.
  """
  too_nested = UserError(
    f'{where} has JSON that is nested deeper than '
    f'max_nesting={MAX_JSON_NESTING}; if it was downloaded, delete it and try '
    'again'
  )
  try:
    value = json.loads(text)
  except RecursionError as e:
    raise too_nested from e
  except ValueError as e:
    raise UserError(
      f'{where} is not valid JSON: {printable(e, max_length=200)}; if it was'
      ' downloaded, delete it and try again'
    ) from e
  level = [value]
  for _ in range(MAX_JSON_NESTING + 1):  # The last one for no container.
    level = [child for parent in level for child in _children(parent)]
    if not level:
      return value
  raise too_nested


def read_json(
  path: str | os.PathLike, *, max_bytes: int = MAX_JSON_BYTES
) -> Any:
  """Returns the value of a JSON file.

  Raises:
    UserError: no regular file of at most `max_bytes`, or no JSON; see
      `parse_json`.
  """
  size = check_regular(path)
  if size > max_bytes:
    raise UserError(
      f'cannot read {printable(path)}: it has {size:,} bytes, and the limit for'
      f' JSON is max_bytes={max_bytes:,}; give the file that belongs there'
    )
  try:
    text = pathlib.Path(path).read_bytes()
  except OSError as e:
    raise unreadable(path, e) from e
  return parse_json(text, printable(path))


def read_json_object(path: str | os.PathLike, **limits) -> dict[str, Any]:
  """Returns the object in a JSON file; see `read_json`.

  Raises:
    UserError: also where it holds a list or a single value.
  """
  return check_object(read_json(path, **limits), printable(path))


def check_object(value: Any, where: str) -> dict[str, Any]:
  """Returns `value` if it is a JSON object, and raises UserError otherwise."""
  if not isinstance(value, dict):
    raise UserError(
      f'{where} must be a JSON object; got {printable(value, max_length=80)}'
    )
  return value


def read_safetensors_header(
  path: str | os.PathLike,
) -> tuple[dict[str, tuple[str, list[int]]], dict[str, str]]:
  """Returns types and shapes of arrays by name, and the metadata.

  A type is for example 'F32'. No array of the .safetensors is read.

  Raises:
    UserError: no regular file, or no header of safetensors in it.
  """
  path = os.path.expanduser(path)
  check_regular(path)
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      slices = {name: file.get_slice(name) for name in file.keys()}
      entries = {k: (x.get_dtype(), x.get_shape()) for k, x in slices.items()}
      return entries, file.metadata() or {}
  except (OSError, safetensors.SafetensorError) as e:
    raise unreadable(path, e, kind='.safetensors') from e


def unreadable(
  path: str | os.PathLike, e: BaseException, *, kind: str = ''
) -> UserError:
  """Returns the error for a file that cannot be opened or is broken.

  Args:
    path: of the file.
    e: why, of which the message gets one line.
    kind: what it should have been, such as 'an .npz of arrays'.
  """
  reason = getattr(e, 'strerror', None) or str(e) or type(e).__name__
  return UserError(
    f'cannot read {printable(path)}{kind and f" as {kind}"}:'
    f' {printable(" ".join(reason.split()), max_length=300)}; if it was'
    ' downloaded, delete it and try again'
  )


def _open_temporary(path: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
  """Returns an empty file beside `path` that no other process writes."""
  part = path.with_name(f'.{path.name}.part')
  file = open(part, 'ab')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Its writer may have renamed it since we opened it.
    is_ours = os.path.samestat(os.fstat(file.fileno()), os.stat(part))
  except OSError:  # Locked by a writer, or a file system without locks.
    is_ours = False
  if is_ours:
    file.truncate(0)
    return part, file
  file.close()
  part = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')
  return part, open(part, 'wb')


def _sync(path: pathlib.Path) -> None:
  """Waits until the content of a file or folder is on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _children(value: Any) -> list[Any]:
  if isinstance(value, dict):
    return list(value.values())
  return value if isinstance(value, list) else []


def _kind(mode: int) -> str:
  kinds = {
    stat.S_IFDIR: 'a folder',
    stat.S_IFIFO: 'a pipe',
    stat.S_IFCHR: 'a device',
    stat.S_IFBLK: 'a device',
    stat.S_IFSOCK: 'a socket',
  }
  return kinds.get(stat.S_IFMT(mode), 'no regular file')
