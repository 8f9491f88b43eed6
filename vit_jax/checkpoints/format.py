"""Format of a checkpoint on disk: its folder and its metadata.

A checkpoint is the folder `<directory>/<step>` with two items written by orbax:
`state`, nested dicts under the names of the leaves, and `meta`, a JSON object:

    step, data_position (both the number of steps taken), config, metrics,
    leaves: {name: {dtype, shape, fingerprint}}, versions, processes, devices,
    logged (the rows of metrics.jsonl, see `metrics`; may be missing),
    checksum (of everything else in it)
"""

import hashlib
import json
import os
import platform
import re
import stat
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vit_jax.checkpoints.fingerprint import fingerprint
from vit_jax.errors import RunError
from vit_jax.files import MAX_JSON_BYTES
from vit_jax.printable import printable

# The folders in which tensorstore keeps the arrays; it reads parts of a file.
_ARRAYS = 'd'
_PACKAGES = ('vit_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')


class DamagedError(Exception):
  """A checkpoint whose bytes are not those that were written, and why."""


def absolute(directory: str | os.PathLike) -> epath.Path:
  """Returns the path as orbax wants it; `gs://...` stays as it is."""
  if '://' in os.fspath(directory):
    return epath.Path(directory)
  return epath.Path(os.path.abspath(os.path.expanduser(directory)))


def is_complete(directory: epath.Path, step: int) -> bool:
  """Whether the checkpoint was written to its end (it may be damaged)."""
  return ocp.step.is_path_finalized(directory / str(step))


def steps(directory: epath.Path) -> list[int]:
  """Returns the steps of the complete checkpoints, the newest first.

  Other files and folders, such as `12.orbax-checkpoint-tmp`, are not ours to
  judge and are ignored.
  """
  if not directory.is_dir():
    return []
  names = [p.name for p in directory.iterdir()]
  found = [int(n) for n in names if re.fullmatch(r'0|[1-9]\d*', n)]
  return sorted((s for s in found if is_complete(directory, s)), reverse=True)


def is_empty(directory: epath.Path, step: int) -> bool:
  """Whether the folder of the checkpoint holds nothing at all."""
  return not any((directory / str(step)).iterdir())


def as_json(value: Any) -> Any:
  """Returns `value` after a round trip through JSON."""
  return json.loads(json.dumps(value, default=str))


def make_meta(
  step: int,
  named: Mapping[str, jax.Array],
  config: Mapping[str, Any],
  metrics: Mapping[str, float],
  logged: Mapping[str, int] | None = None,
) -> dict[str, Any]:
  """Returns the meta of a state that is given as `{name: leaf}`."""
  numbers = fingerprint(dict(named))
  meta = as_json(
    dict(
      step=step,
      data_position=step,
      config=config,
      metrics=metrics,
      logged=logged,
      leaves={
        name: dict(
          dtype=str(x.dtype), shape=list(x.shape), fingerprint=numbers[name]
        )
        for name, x in named.items()
      },
      versions={'python': platform.python_version(), **_versions()},
      processes=jax.process_count(),
      devices=jax.device_count(),
    )
  )
  return dict(meta, checksum=_checksum(meta))


def read_meta(directory: epath.Path, step: int) -> dict[str, Any]:
  """Returns the meta of a checkpoint; raises DamagedError for a broken one."""
  path = directory / str(step) / 'meta' / 'metadata'
  try:
    # A run that is going on may be removing it.
    if is_empty(directory, step):
      raise DamagedError('its folder is empty')
    if problem := _wrong_file(directory / str(step)):
      raise DamagedError(problem)
    meta = json.loads(path.read_text())
    checksum = meta.pop('checksum')
    matches = _checksum(meta) == checksum and meta['step'] == step
  except PermissionError as e:
    raise RunError(f'cannot read the checkpoint: {shorten(e)}') from e
  except (DamagedError, MemoryError):
    raise
  except Exception as e:  # Among them RecursionError, of nested brackets.
    raise DamagedError(f'{path} is not readable ({shorten(e)})') from e
  if not matches:
    raise DamagedError(f'{path} does not match its checksum')
  # A checksum can be forged, or a program of another version may have made it.
  wrong = _wrong_fields(meta)
  if wrong:
    raise DamagedError(
      f'{path} is not of the expected form: {", ".join(wrong)}'
    )
  return meta


def shorten(error: BaseException) -> str:
  """Returns the first cause of an error in one line without tensorstore's spec.

  For example `ValueError: NOT_FOUND: Error reading local file "..."`.
  """
  while error.__cause__ is not None:
    error = error.__cause__
  text = ' '.join(str(error).partition('[tensorstore_spec')[0].split())
  text = text if len(text) <= 500 else text[:500] + ' ...'
  return f'{type(error).__name__}: {text}'


def _checksum(meta: Mapping[str, Any]) -> str:
  text = json.dumps(meta, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _wrong_file(path: epath.Path) -> str:
  """Returns what is wrong with the files of a checkpoint, or an empty text.

  A checkpoint may come from somebody else: a pipe in it would be waited for,
  and a device read, without end. Each must be a regular file or a folder, or a
  symlink to one. In a bucket there is nothing else.
  """
  if '://' in os.fspath(path):
    return ''
  waiting, seen = [os.fspath(path)], set()
  while waiting:
    folder = waiting.pop()
    with os.scandir(folder) as entries:
      for entry in entries:
        status = entry.stat()
        if stat.S_ISDIR(status.st_mode):
          # A symlink may lead to a folder above it.
          if (status.st_dev, status.st_ino) not in seen:
            waiting.append(entry.path)
          seen.add((status.st_dev, status.st_ino))
        elif not stat.S_ISREG(status.st_mode):
          return f'{printable(entry.path)} is not a regular file'
        elif (
          os.path.basename(folder) != _ARRAYS
          and status.st_size > MAX_JSON_BYTES
        ):
          return (
            f'{printable(entry.path)} has {status.st_size:,} bytes, and the'
            f' limit is max_bytes={MAX_JSON_BYTES:,}'
          )
  return ''


def _wrong_fields(meta: Mapping[str, Any]) -> list[str]:
  """Returns the names of the fields that are missing or of another type."""
  wrong = []
  for name, is_right in _FIELDS.items():
    try:
      wrong += [] if is_right(meta.get(name)) else [name]
    except (AttributeError, KeyError, TypeError):
      wrong.append(name)
  return wrong


def _is_number(value: Any) -> bool:
  # Python compares and prints no larger integer as a float.
  return type(value) is float or (type(value) is int and abs(value) < 2**64)


def _is_leaf(leaf: Any) -> bool:
  np.dtype(leaf['dtype'])
  return (
    'fingerprint' in leaf
    and isinstance(leaf['shape'], list)
    and all(type(n) is int and n >= 0 for n in leaf['shape'])
  )


# Whether a field has the expected form; an error means that it has not.
_FIELDS = {
  'step': lambda x: isinstance(x, int),
  'config': lambda x: isinstance(x, dict),
  'metrics': lambda x: all(map(_is_number, x.values())),
  'leaves': lambda x: all(map(_is_leaf, x.values())),
  'logged': lambda x: (
    x is None or all(type(x[k]) is int for k in ('rows', 'first', 'last'))
  ),
}


def _versions() -> dict[str, str]:
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:  # A source tree on PYTHONPATH.
      versions[package] = 'not installed'
  return versions
