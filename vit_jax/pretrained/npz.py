"""Arrays in an .npz file, with a note in its zip comment.

numpy and the readers built on it do not look at the comment of the archive, so
that the note disturbs none of them.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import files

_MARK = b'vit_jax '
_MAX_BYTES = 65535  # Of a zip comment.


def read(
  path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the arrays by name, and the note (empty if there is none).

  numpy does not know bfloat16 and stores it as two bytes of nothing in
  particular; such arrays become bfloat16 again.

  Raises:
    UserError: the file cannot be read, or holds Python objects.
  """
  path = pathlib.Path(path).expanduser()
  try:
    with zipfile.ZipFile(path) as archive:
      comment = archive.comment
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
    raise UserError(
      f'cannot read {path} as an .npz of arrays: {e}; if it was downloaded,'
      ' delete it and try again'
    ) from e
  arrays = {name: _with_bfloat16(array) for name, array in arrays.items()}
  note = {}
  if comment.startswith(_MARK):
    note = json.loads(comment.removeprefix(_MARK))
  return arrays, note


def write(
  path: str | os.PathLike,
  arrays: Mapping[str, np.ndarray],
  note: Mapping[str, Any],
) -> None:
  """Writes arrays and a note that JSON can hold; an empty one is left out.

  Of a note that is too long for a zip comment, `class_names` is left out.

  Raises:
    UserError: the file cannot be written.
  """
  note = {key: value for key, value in note.items() if value}
  comment = _comment(note)
  if len(comment) > _MAX_BYTES:
    comment = _comment({k: v for k, v in note.items() if k != 'class_names'})
  with files.writing(path) as part:
    with open(part, 'wb') as file:
      np.savez(file, **arrays)
    if comment:
      with zipfile.ZipFile(part, 'a') as archive:
        archive.comment = comment


def _comment(note: Mapping[str, Any]) -> bytes:
  return _MARK + json.dumps(note).encode() if note else b''


def _with_bfloat16(array: np.ndarray) -> np.ndarray:
  # A view needs contiguous memory, which arrays from a file are.
  return array.view(ml_dtypes.bfloat16) if array.dtype == 'V2' else array
