"""Writing a file so that it is there whole or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

from vit_jax.errors import UserError


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a path to write to, which takes the name `path` at the end.

  Folders are made; a file that is there is replaced. If anything is raised, it
  stays as it was.

  Raises:
    UserError: the file cannot be written.
  """
  path = pathlib.Path(path).expanduser()
  # Processes on several machines may be at it in one folder.
  part = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.part')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield part
    os.replace(part, path)
  except OSError as e:
    raise UserError(f'cannot write {path}: {e.strerror or e}') from e
  finally:
    with contextlib.suppress(OSError):  # It is there only if something failed.
      part.unlink()
