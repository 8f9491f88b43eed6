"""The .npz files of vision_transformer and big_vision."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.pretrained import mapping, model_section
from vit_jax.pretrained.formats import _npz
from vit_jax.pretrained.weights import Weights

SUFFIXES = ('.npz',)


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
  arrays, note = _npz.read(path)
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
  names, module = model_section.to_write(weights, "Google's .npz")
  google = names.google
  style, unmapped = google.style_for(weights, dialect, module)
  google.check_writable(module, style, allow_note_only=allow_note_only)
  named, style, computed = google.prepare(weights, module, style)
  known = google.known(has_positions='position_embedding' in named)
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
  arrays = mapping.write(
    named, style.dialect(), pooling=module.pooling, unmapped=unmapped
  )
  _npz.write(path, arrays, note)


def _weights(path: str, arrays, note, model, grid) -> Weights:
  names, style = _detect(arrays)
  google, dialect = names.google, style.dialect()
  theirs, _ = mapping.without_unused(arrays, dialect)
  known = google.known(has_positions=dialect.position in theirs)
  named, section, unmapped = mapping.read(
    theirs,
    dialect,
    known=known | (note.get('model') or {}),
    grid=grid or note.get('grid'),
    model=model,
  )
  style = dataclasses.replace(
    style, class_row=len(unmapped.get('rows', ())) > 0
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
      dialect=dataclasses.asdict(style),
      unmapped=unmapped,
    ),
    trusted=model_section.trusted_keys(model),
  )


def _detect(arrays: Mapping[str, np.ndarray]) -> tuple[Any, Any]:
  """Returns the file of `names/` and the style of names that an .npz has."""
  for names in model_section.all_names():
    if style := names.google.detect(arrays):
      return names, style
  raise UserError(
    'the file does not hold a Vision Transformer of Google: expected'
    ' embedding/kernel, perhaps behind params/img/, params/, opt/target/ or'
    f' img/; it has {len(arrays)} arrays'
    + (f', such as {sorted(arrays)[:3]}' if arrays else '')
  )
