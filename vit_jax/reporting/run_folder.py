"""The workdir of a run: a local folder, and the config in it."""

import contextlib
import json
import os
import pathlib
from typing import Any

import jax

from vit_jax import files
from vit_jax.errors import RunError, UserError


def local_folder(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the absolute path of a workdir, `~` being the home folder.

  Raises:
    UserError: no path at all, or the address of a bucket.
  """
  if not str(workdir).strip() or '\0' in str(workdir):
    raise UserError(
      f'workdir {str(workdir)!r}: expected the path of a folder, such as '
      '--workdir=runs/first; is a variable of the shell not set?'
    )
  if '://' in str(workdir):
    raise UserError(
      f'workdir {str(workdir)!r}: metrics are appended to files, which an '
      'object store cannot do; mount the bucket (gcsfuse) and give its folder'
    )
  try:
    return pathlib.Path(workdir).expanduser().absolute()
  except RuntimeError as e:  # `~name` of a user that does not exist.
    raise UserError(f'workdir {str(workdir)!r}: {e}') from e


def write_config(
  workdir: str | os.PathLike[str], config: Any, restored_step: int | None = None
) -> None:
  """Writes `<workdir>/config.json` atomically, on process 0 only.

  Where a run continues with another config, the one that trained it until then
  is kept as `config.until_<restored_step>.json`. A config that no checkpoint
  came from is replaced.

  Args:
    config: a ConfigDict or nested mapping; what JSON does not know becomes its
      `repr`.
    restored_step: the step that this run continues from, or None.

  Raises:
    UserError: the folder cannot be written.
  """
  if jax.process_index() != 0:
    return
  path = make_writable(workdir) / 'config.json'
  config = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
  new = json.dumps(config, indent=2, default=repr).encode() + b'\n'
  with writing(path.parent, UserError):
    old = path.read_bytes() if path.exists() else None
    if old == new:
      return
    kept = path.with_name(f'config.until_{restored_step}.json')
    # If `kept` exists, `old` took over at this very step: it trained nothing.
    continues = restored_step is not None and not kept.exists()
    if old and continues and not _same_values(old, new):
      replace(kept, old)
    replace(path, new)


def make_writable(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Returns `local_folder` of a workdir, made if it is missing.

  Raises:
    UserError: it cannot be written.
  """
  workdir = local_folder(workdir)
  with writing(workdir, UserError):
    workdir.mkdir(parents=True, exist_ok=True)
  return workdir


@contextlib.contextmanager
def writing(workdir: pathlib.Path, error: type[Exception] = RunError):
  """Turns an OSError within it into `error`, with advice."""
  try:
    yield
  except OSError as e:
    advice = 'saved checkpoints are safe; the same command continues from them'
    if error is UserError:
      advice = 'give a workdir that you may write to'
    name = str(e.filename or workdir)
    raise error(f'cannot write {name!r}: {e.strerror}; {advice}') from e


def replace(path: pathlib.Path, data: bytes) -> None:
  """Replaces a file; a kill leaves the old or the new one, whole."""
  with files.write_atomically(path, error=None) as part:
    part.write_bytes(data)


def _same_values(one: bytes, other: bytes) -> bool:
  """Returns whether two JSON texts differ at most in the order of keys."""
  with contextlib.suppress(ValueError):
    return json.loads(one) == json.loads(other)
  return False
