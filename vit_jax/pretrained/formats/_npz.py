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

from vit_jax import bounded_npz, files
from vit_jax.pretrained import json_fields

_MARK = b'vit_jax '
_MAX_COMMENT_BYTES = 65535  # Of a zip comment.

# Trained weights hardly compress at all; zeros do, by up to 1,032 times.
MAX_RATIO = 20
SMALL_BYTES = 64 * 2**20
MAX_BYTES = 128 * 2**30  # A ViT-22B in float32 has 82 GiB.


def read(
  path: str | os.PathLike,
  *,
  max_ratio: float = MAX_RATIO,
  max_bytes: int = MAX_BYTES,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the arrays by name, and the note, which may be empty.

  All arrays together may have `max_bytes` and, over SMALL_BYTES, `max_ratio`
  times the size of the file.

  numpy does not know bfloat16 and stores it as two bytes of nothing in
  particular; such arrays become bfloat16 again.

  Raises:
    UserError: the file cannot be read, holds Python objects, inflates to more
      than the limits, or is encrypted.
  """
  path = pathlib.Path(path).expanduser()
  size = files.check_regular(path)
  try:
    with zipfile.ZipFile(path) as archive:
      comment = archive.comment
      members = check_archive(
        archive, size, max_ratio=max_ratio, max_bytes=max_bytes
      )
      arrays = {
        _array_name(member): bounded_npz.read_array(
          archive, member, allow_empty=False
        )
        for member in members
      }
  except bounded_npz.BROKEN as e:
    raise files.unreadable(path, e, kind='an .npz of arrays') from e
  # A view needs contiguous memory, which arrays from a file are.
  arrays = {
    name: array.view(ml_dtypes.bfloat16) if array.dtype == 'V2' else array
    for name, array in arrays.items()
  }
  note = {}
  if comment.startswith(_MARK):
    text = comment.removeprefix(_MARK)
    note = json_fields.parse_description(text, f'the note in {path}')
  return arrays, note


def check_archive(
  archive: zipfile.ZipFile,
  size: int,
  *,
  max_ratio: float = MAX_RATIO,
  max_bytes: int = MAX_BYTES,
) -> list[zipfile.ZipInfo]:
  """Returns the members of a zip file, if they can be read within limits.

  Raises:
    ValueError: they are encrypted, in another compression than zlib's, twice
      there, or larger than the limits.
  """
  members = archive.infolist()
  bounded_npz.check_members(
    members,
    size,
    max_ratio=max_ratio,
    max_bytes=max_bytes,
    small_bytes=SMALL_BYTES,
  )
  return members


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
  if len(comment) > _MAX_COMMENT_BYTES:
    comment = _comment({k: v for k, v in note.items() if k != 'class_names'})
  with files.write_atomically(path) as part:
    with open(part, 'wb') as file:
      np.savez(file, **arrays)
    if comment:
      with zipfile.ZipFile(part, 'a') as archive:
        archive.comment = comment


def _array_name(member: zipfile.ZipInfo) -> str:
  if not member.filename.endswith('.npy'):
    raise ValueError(f'{member.filename!r} in it is not an array')
  return member.filename.removesuffix('.npy')


def _comment(note: Mapping[str, Any]) -> bytes:
  return _MARK + json.dumps(note).encode() if note else b''
