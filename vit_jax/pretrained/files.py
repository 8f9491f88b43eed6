"""Writing a file so that it is there whole or not at all."""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import time
from collections.abc import Iterator

from vit_jax.errors import UserError

_LOCKED_AFTER_SECONDS = 1


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a path to write to, which takes the name `path` at the end.

  Folders are made; a file that is there is replaced. If anything is raised, it
  stays as it was. What a killed process left of an earlier try is removed.

  Raises:
    UserError: the file cannot be written.
  """
  path = pathlib.Path(path).expanduser()
  # Processes on several machines may write it in one folder.
  part = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    with part.open('wb') as file:
      # Held until the end, also if the process is killed: see above.
      _try_lock(file)
      yield part
      os.replace(part, path)
  except OSError as e:
    raise UserError(f'cannot write {path}: {e.strerror or e}') from e
  finally:
    with contextlib.suppress(OSError):  # It is there only if something failed.
      part.unlink()


def _remove_abandoned(path: pathlib.Path) -> None:
  """Removes unfinished files for `path` that no process writes any more."""
  name = re.compile(rf'\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.part')
  for part in path.parent.iterdir():
    if name.fullmatch(part.name):
      # Another process may remove it first; what is not ours may stay.
      with contextlib.suppress(OSError), part.open('rb+') as file:
        # A new one is locked right after it was made, but not in one step.
        age_seconds = time.time() - os.fstat(file.fileno()).st_ctime
        if age_seconds > _LOCKED_AFTER_SECONDS and _try_lock(file):
          part.unlink()


def _try_lock(file) -> bool:
  """Locks an open file; returns False if another process holds it."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:  # Held, or a file system without locks.
    return False
  return True
