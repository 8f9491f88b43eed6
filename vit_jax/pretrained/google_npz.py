"""Weights in the .npz files of vision_transformer and big_vision, in and out.

vision_transformer adds the position table after it has put the class token in
front, so that the table's first row belongs to the token; reading adds that row
to the token. What this loses is kept in `Weights.source`, so that weights that
did not change since are written back bit by bit.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import blocks, given, google_names, model_section, npz
from vit_jax.pretrained.google_names import DIALECTS, POSITIONS, Dialect
from vit_jax.pretrained.weights import Weights

# What Google's ViTs compute; their files do not say so.
COMPUTED = {'activation': 'gelu_tanh', 'norm_epsilon': 1e-6}
# What a file does not say and a reader would not guess.
_UNSAID = (*COMPUTED, 'pooling', 'position', 'final_norm')
_IMAGE_SIZE = (224, 224)  # Of models that have no position table to tell it.


def read(
  path: str | os.PathLike,
  *,
  model: Mapping[str, Any] | None = None,
  grid: tuple[int, int] | None = None,
) -> Weights:
  """Returns the weights of a ViT from an .npz in any of Google's dialects.

  Optimizer state and the text tower of a contrastive model may lie beside the
  weights; they are left there.

  Args:
    path: of the file.
    model: keys of the model section that win over what the file tells; see
      `given.apply`.
    grid: (rows, columns) of the position table if it is not square.

  Raises:
    UserError: no readable file, another kind of model, or names and shapes that
      are not exactly those of the model; all of them in one message.
  """
  arrays, said = npz.read(path)
  dialect = google_names.detect(arrays)
  named, problems = _our_names(arrays, dialect)
  source = dict(format='google_npz', path=os.fspath(path), resize='google')
  try:
    if 'position_embedding' in named:
      dialect, named, aside = _split_position(named, dialect, grid)
      source |= aside
    named = blocks.unstack(named)
    section = _section(named, dialect) | said.get('model', {})
    named, section = given.apply(named, section, model)
    image_size = _image_size(named)
    problems += model_section.problems(
      named, section, image_size=image_size, labels=_labels(named, dialect)
    )
  except _Unclear as e:
    problems.append(str(e))
  if problems:
    raise UserError(
      f'{path} does not hold exactly the parameters of a ViT:\n  '
      + '\n  '.join(problems)
    )
  preprocess = _preprocess(dialect, image_size, named)
  return Weights(
    params=trees.unflatten(named),
    model=section,
    preprocess=preprocess | said.get('preprocess', {}),
    class_names=said.get('class_names'),
    source=source | dict(dialect=dataclasses.asdict(dialect)),
  )


def write(
  weights: Weights,
  path: str | os.PathLike,
  *,
  dialect: str | Dialect | None = None,
) -> None:
  """Writes an .npz that Google's code, timm and `read` understand.

  What the weights' model computes, their preprocessing and the class names go
  into the comment of the zip archive, where they are not what a reader assumes
  anyway. No other reader looks there: timm computes exact GELU whatever the
  weights were trained with.

  A fixed position table is written out, unless it is big_vision's own and the
  dialect big_vision's.

  Args:
    weights: of a ViT.
    path: of the file; replaced if it is there.
    dialect: a key of `google_names.DIALECTS`, or a dialect. None is the one
      that the weights were read in, or else 'pre_linen', which timm reads.

  Raises:
    UserError: the dialect has no name for some parameters, or the file cannot
      be written.
  """
  dialect = _dialect(weights, dialect)
  named = trees.flatten(weights.params)
  if 'class_token' not in named:
    dialect = dataclasses.replace(dialect, class_row=False)
  section = _section(named, dialect)
  section = {k: v for k, v in weights.model.items() if section.get(k) != v}
  said = {'model': {k: section[k] for k in _UNSAID if k in section}}
  named = _with_position(named, weights, dialect)
  if 'position_embedding' in named:
    said['model'].pop('position', None)
    named = _join_position(named, weights.source, dialect)
  preprocess = _preprocess(dialect, _image_size(weights_named(weights)), named)
  named = blocks.stack(named) if dialect.stacked else named
