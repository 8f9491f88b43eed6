"""The .npz files of vision_transformer and big_vision.

What they cannot say is in a note in the zip comment, which numpy and the
readers built on it do not look at.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax import bounded_npz, files, lookup
from vit_jax.errors import UserError
from vit_jax.pretrained import json_fields, mapping, model_section
from vit_jax.pretrained.weights import Weights

SUFFIXES = ('.npz',)
_MARK = b'vit_jax '
_MAX_COMMENT_BYTES = 65535  # Of a zip comment.

# Trained weights hardly compress at all; zeros do, by up to 1,032 times.
MAX_RATIO = 20
SMALL_BYTES = 64 * 2**20
MAX_BYTES = 128 * 2**30  # A ViT-22B in float32 has 82 GiB.


def matches(path: str | os.PathLike) -> bool:
  """Whether `read` can read this path."""
  return pathlib.PurePath(path).suffix == '.npz' and os.path.isfile(path)


def read(
  path: str | os.PathLike,
  *,
  model: Mapping[str, Any] | None = None,
  grid: tuple[int, int] | None = None,
) -> Weights:
  """Returns the weights from an .npz in any of Google's dialects.

  Optimizer state and the text tower of a contrastive model may be beside the
  weights; they are left there.

  Args:
    path: of the file.
    model: keys of the model section that replace those of the file; see
      `model_section.override`.
    grid: (rows, columns) of the position table if it is not square.

  Raises:
    UserError: no readable file, another kind of model, or names and shapes that
      are not exactly those of the model; all of them in one message.
  """
  arrays, note = read_arrays(path)
  try:
    return _weights(os.fspath(path), arrays, note, model, grid)
  except UserError as e:
    raise UserError(f'{os.fspath(path)}: {e}') from e


def write(
  weights: Weights,
  path: str | os.PathLike,
  *,
  dialect: str | None = None,
  allow_note_only: bool = False,
) -> None:
  """Writes an .npz that Google's code, timm and `read` understand.

  Preprocessing, class names and what else a reader would guess wrong go into a
  note that only `read` sees. timm computes exact GELU and skips the
  representation layer whatever the weights were trained with.

  A fixed position table is written out, unless it is big_vision's and so is the
  dialect.

  Args:
    weights: of a model with a file in `names/`.
    path: of the file; replaced if it is there.
    dialect: 'pre_linen', 'linen' or 'big_vision'. None is the one that the
      weights were read in, or else 'pre_linen', which timm reads ('big_vision'
      for map pooling).
    allow_note_only: whether the activation and epsilon may be others than
      Google's code computes. Only the note says which.

  Raises:
    UserError: the dialect's code base has no such model, or no name for some
      parameters; or the file cannot be written.
  """
  names, module = model_section.to_write(weights, 'google')
  google = names.google
  style, named, computed = google.prepare(
    weights, module, dialect, allow_note_only=allow_note_only
  )
  known = google.COMPUTED
  if 'position_embedding' not in named:
    known = known | google.FIXED
  section = names.section(names.infer(named) | known)
  implied = lookup.build('models', section, 'Model')
  preprocess = google.evaluation(style, named)
  note = dict(
    model={k: v for k, v in computed.items() if getattr(implied, k) != v},
    preprocess={
      k: v for k, v in weights.preprocess.items() if preprocess.get(k) != v
    },
    class_names=weights.class_names,
  )
  if 'position_embedding' in named:
    rows, columns, _ = named['position_embedding'].shape
    note['grid'] = None if rows == columns else (rows, columns)
  arrays = mapping.write(named, style.dialect(), pooling=module.pooling)
  write_arrays(path, arrays, note)


def read_arrays(
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
  size, arrays = files.check_regular(path), {}
  try:
    with zipfile.ZipFile(path) as archive:
      comment = archive.comment
      members = check_members(
        archive, size, max_ratio=max_ratio, max_bytes=max_bytes
      )
      for member in members:
        if not member.filename.endswith('.npy'):
          raise ValueError(f'{member.filename!r} in it is not an array')
        array = bounded_npz.read_array(archive, member, allow_empty=False)
        # A view needs contiguous memory, which arrays from a file are.
        array = array.view(ml_dtypes.bfloat16) if array.dtype == 'V2' else array
        arrays[member.filename.removesuffix('.npy')] = array
  except bounded_npz.BROKEN as e:
    raise files.unreadable(path, e, kind='an .npz of arrays') from e
  note = {}
  if comment.startswith(_MARK):
    text = comment.removeprefix(_MARK)
    note = json_fields.parse_description(text, f'the note in {path}')
  return arrays, note


def check_members(
  archive: zipfile.ZipFile, size: int, **limits
) -> list[zipfile.ZipInfo]:
  """Returns the members of a zip file, if `bounded_npz` lets them be read."""
  limits = dict(max_ratio=MAX_RATIO, max_bytes=MAX_BYTES) | limits
  members = archive.infolist()
  bounded_npz.check_members(members, size, small_bytes=SMALL_BYTES, **limits)
  return members


def _weights(path: str, arrays, note, model, grid) -> Weights:
  detected = model_section.detect('google', arrays)
  if detected is None:
    raise UserError(
      'the file does not hold a Vision Transformer of Google: expected'
      ' embedding/kernel, perhaps behind params/img/, params/, opt/target/ or'
      f' img/; it has {len(arrays)} arrays'
      + (f', such as {sorted(arrays)[:3]}' if arrays else '')
    )
  names, style = detected
  google, dialect = names.google, style.dialect()
  theirs, _ = mapping.without_unused(arrays, dialect)
  known = google.COMPUTED
  if dialect.position not in theirs:
    known = known | google.FIXED
  named, section = mapping.read(
    theirs,
    dialect,
    known=known | (note.get('model') or {}),
    grid=grid or note.get('grid'),
    model=model,
  )
  preprocess = google.evaluation(style, named)
  preprocess |= note.get('preprocess') or {}
  return Weights(
    params=named,
    model=section,
    preprocess=preprocess | {'image_size': tuple(preprocess['image_size'])},
    class_names=note.get('class_names'),
    source=dict(
      format='google_npz',
      path=path,
      resize='google',
      dialect=style.name,
    ),
    trusted=model_section.trusted_keys(model),
  )


def write_arrays(
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
  comment = _MARK + json.dumps(note).encode()
  if len(comment) > _MAX_COMMENT_BYTES:
    del note['class_names']
    comment = _MARK + json.dumps(note).encode()
  with files.write_atomically(path) as part:
    with open(part, 'wb') as file:
      np.savez(file, **arrays)
    if note:
      with zipfile.ZipFile(part, 'a') as archive:
        archive.comment = comment
