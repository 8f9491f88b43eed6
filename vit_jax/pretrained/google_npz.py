"""Weights in the .npz files of vision_transformer and big_vision, in and out.

What reading changes (see `google_position`) is kept in `Weights.source`, so
that weights that did not change since are written back bit by bit.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import (
  blocks,
  google_limits,
  google_names,
  google_position,
  model_section,
  npz,
  overrides,
)
from vit_jax.pretrained.google_limits import COMPUTED
from vit_jax.pretrained.google_names import DIALECTS, Dialect
from vit_jax.pretrained.google_position import UnclearError
from vit_jax.pretrained.weights import Weights

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
      `overrides.apply`.
    grid: (rows, columns) of the position table if it is not square.

  Raises:
    UserError: no readable file, another kind of model, or names and shapes that
      are not exactly those of the model; all of them in one message.
  """
  arrays, note = npz.read(path)
  try:
    return _weights(os.fspath(path), arrays, note, model, grid)
  except UserError as e:
    raise UserError(f'{os.fspath(path)}: {e}') from e


def write(
  weights: Weights,
  path: str | os.PathLike,
  *,
  dialect: str | Dialect | None = None,
  allow_note_only: bool = False,
) -> None:
  """Writes an .npz that Google's code, timm and `read` understand.

  Preprocessing, class names and what else a reader would guess wrong go into a
  note that only `read` sees. timm computes exact GELU and skips the
  representation layer whatever the weights were trained with.

  A fixed position table is written out, unless it is big_vision's and so is the
  dialect.

  Args:
    weights: of a ViT.
    path: of the file; replaced if it is there.
    dialect: a key of `google_names.DIALECTS`, or a Dialect. None is the one
      that the weights were read in, or else 'pre_linen', which timm reads
      ('big_vision' for map pooling).
    allow_note_only: whether the activation and epsilon may be others than
      Google's code computes. Only the note says which.

  Raises:
    UserError: the dialect's code base has no such model, or no name for some
      parameters; or the file cannot be written.
  """
  module = _vit(weights.model, trusted='model' in weights.trusted)
  dialect = _dialect(weights, dialect, module)
  google_limits.check_writable(module, dialect, allow_note_only=allow_note_only)
  named = blocks.unstack(trees.flatten(weights.params))
  if 'class_token' not in named:
    dialect = dataclasses.replace(dialect, class_row=False)
  fields = lookup.model_fields(weights.model, 'computes', 'structure')
  computed = {key: getattr(module, key) for key in fields}
  if 'position_embedding' not in named:
    is_theirs = computed['position'] == 'sincos2d'
    if not (is_theirs and dialect.position == 'pos_embedding'):
      named['position_embedding'] = google_position.fixed_table(
        computed['position'],
        weights.preprocess.get('image_size'),
        named['patch_embedding/kernel'],
      )
      computed['position'] = 'learned'
  _, implied = _section(named, dialect)
  implied = {key: getattr(_vit(implied), key) for key in fields}
  preprocess = _preprocess(dialect, _image_size(named), named)
  note = dict(
    model=_different(computed, implied),
    preprocess=_different(weights.preprocess, preprocess),
    class_names=weights.class_names,
  )
  if 'position_embedding' in named:
    rows, columns, _ = named['position_embedding'].shape
    note['grid'] = None if rows == columns else (rows, columns)
    named = google_position.join(named, dialect, weights.source)
  npz.write(path, _their_names(named, dialect), note)


def _weights(path: str, arrays, note, model, grid) -> Weights:
  dialect = google_names.detect(arrays)
  named, problems = _our_names(arrays, dialect)
  aside = {}
  try:
    if 'position_embedding' in named:
      grid = grid or note.get('grid')
      dialect, named, aside = google_position.split(named, dialect, grid)
    named, section = _section(named, dialect)
    image_size = _image_size(named)
    implied = _preprocess(dialect, image_size, named)
    section |= note.get('model') or {}
    named, section = overrides.apply(named, section, model)
    trusted = overrides.trusted(model)
    problems += _mismatches(named, section, dialect, bool(trusted))
  except UnclearError as e:
    problems.append(str(e))
  if problems:
    raise UserError(
      'it does not hold exactly the parameters of a ViT:'
      + model_section.listed(problems)
    )
  preprocess = implied | (note.get('preprocess') or {})
  return Weights(
    params=trees.unflatten(named),
    model=section,
    preprocess=preprocess | {'image_size': tuple(preprocess['image_size'])},
    class_names=note.get('class_names'),
    source=dict(
      format='google_npz',
      path=path,
      resize='google',
      dialect=dataclasses.asdict(dialect),
      **aside,
    ),
    trusted=overrides.trusted(model),
  )


def _our_names(
  arrays: Mapping[str, np.ndarray], dialect: Dialect
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns arrays by our names, and a line for each name that has no place."""
  pattern = re.escape(dialect.prefix) + r'Transformer/encoderblock_(\d{1,3})/.*'
  numbers = {int(m[1]) for m in map(re.compile(pattern).match, arrays) if m}
  depth = max(numbers, default=-1) + 1
  table = google_names.table(dialect, depth)
  named, problems = {}, []
  for name, array in arrays.items():
    if name in table:
      named[table[name]] = array
    elif not google_names.is_beside(name, dialect):
      problems.append(f'unexpected: {name} {array.shape}')
  if absent := sorted(set(range(depth)) - numbers):
    problems.append(f'blocks {absent} of 0 to {depth - 1} are missing')
  return named, problems


def _their_names(
  named: Mapping[str, np.ndarray], dialect: Dialect
) -> dict[str, np.ndarray]:
  """Returns arrays by the names of the dialect."""
  depth = model_section.depth(named)
  named = blocks.stack(named) if dialect.stacked else named
  names = {v: k for k, v in google_names.table(dialect, depth).items()}
  homeless = [name for name in named if name not in names]
  if homeless:
    raise UserError(
      'Google has no names for these parameters; write another format, such as'
      f' .safetensors: {", ".join(homeless)}'
    )
  return {names[name]: array for name, array in named.items()}


def _section(
  named: Mapping[str, np.ndarray], dialect: Dialect
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns arrays with blocks apart, and the section that they speak of."""
  stacked = [array for k, array in named.items() if '/blocks/' in k]
  if len({array.shape[:1] for array in stacked}) > 1:
    raise UnclearError('the stacks of blocks do not have the same depth')
  named = blocks.unstack(named)
  block = 'encoder/block_00/'
  needed = {
    'patch_embedding/kernel': 4,
    f'{block}attention/query/kernel': 3,
    f'{block}mlp/up/kernel': 2,
  }
  labels = _labels(named, dialect)
  unclear = [
    f'{labels.get(name, name)}: expected {ndim} dimensions, got '
    + str(named[name].shape if name in named else 'no such array')
    for name, ndim in needed.items()
    if name not in named or named[name].ndim != ndim
  ]
  if unclear:
    raise UnclearError('\n  '.join(unclear))
  fields = model_section.infer(named)
  if 'position_embedding' not in named:
    fields['position'] = 'sincos2d'
  return named, model_section.compact(fields) | COMPUTED


def _mismatches(named, section, dialect, trusted: bool) -> list[str]:
  labels = _labels(named, dialect)
  lines = model_section.problems(named, section, labels=labels, trusted=trusted)
  # A block that is missing as a whole, and a stack, are told of once.
  present = {name.split('/')[1] for name in named if '/block_' in name}
  told = []
  for line in lines:
    block = re.search(r'encoder/(block_(\d+))', line)
    if line.startswith('missing') and block and block[1] not in present:
      continue
    if dialect.stacked and block and int(block[2]):
      continue
    told.append(line)
  return told


def _labels(named, dialect: Dialect) -> dict[str, str]:
  """Returns `{our name: theirs}`, ours with blocks apart."""
  labels, depth = {}, model_section.depth(named)
  for theirs, ours in google_names.table(dialect, depth).items():
    for i in range(depth if '/blocks/' in ours else 1):
      labels[ours.replace('/blocks/', f'/block_{i:02d}/')] = theirs
  return labels


def _dialect(
  weights: Weights, dialect: str | Dialect | None, module: vit.ViT
) -> Dialect:
  if isinstance(dialect, Dialect):
    return dialect
  if dialect is None and weights.source.get('format') == 'google_npz':
    return google_names.dialect_of(weights.source.get('dialect'))
  if dialect is None:
    dialect = 'big_vision' if module.pooling == 'map' else 'pre_linen'
  if dialect not in DIALECTS:
    raise UserError(
      f'unknown dialect {dialect!r}; there are {", ".join(DIALECTS)}'
    )
  return DIALECTS[dialect]


def _vit(section: Mapping[str, Any], *, trusted: bool = False) -> vit.ViT:
  module = lookup.build(
    'models', section, 'Model', where='the model section', trusted=trusted
  )
  if not isinstance(module, vit.ViT):
    raise UserError(
      f"Google's .npz files are for models/vit.py; got {section['name']!r}"
    )
  return module


def _image_size(named: Mapping[str, np.ndarray]) -> tuple[int, int]:
  """Returns (height, width) of the images that the position table is for."""
  table = named.get('position_embedding')
  if table is None:
    return _IMAGE_SIZE
  patch = named['patch_embedding/kernel'].shape
  return table.shape[0] * patch[0], table.shape[1] * patch[1]


def _preprocess(dialect: Dialect, image_size, named) -> dict[str, Any]:
  """Returns how the dialect's code base evaluates.

  vision_transformer and the contrastive models of big_vision squeeze an image
  into a square, without antialiasing as TensorFlow 1 did; big_vision's
  classifiers resize the shorter side to 8/7 of the crop.
  """
  height, width = image_size
  size = str(height) if height == width else f'({height}, {width})'
  channels = named['patch_embedding/kernel'].shape[2]
  # JPEGs as TensorFlow decodes them; only big_vision cuts to whole levels.
  channels = f'{channels}, ' if channels in (1, 4) else ''
  decode = f"decode({channels}dct='fast')"
  is_contrastive = dialect.prefix.endswith('img/')
  is_big_vision = dialect.position == 'pos_embedding' or is_contrastive
  cut = ', truncate=True' if is_big_vision else ''
  ops = f'{decode}|resize({size}, antialias=False{cut})'
  if is_big_vision and not is_contrastive:
    small = round(min(image_size) * 8 / 7)
    ops = (
      f"{decode}|resize_small({small}, method='area'{cut})|central_crop({size})"
    )
  return dict(image_size=image_size, ops=ops, device_ops='normalize(-1, 1)')


def _different(given: Mapping[str, Any], implied: Mapping[str, Any]):
  """Returns the entries of `given` that are not as in `implied`."""
  return {k: v for k, v in given.items() if implied.get(k) != v}
