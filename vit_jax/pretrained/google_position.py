"""Google's position tables to ours and back.

Theirs is flat, `[1, rows * columns, D]`, and in vision_transformer's files has
one more row in front, which is added to the class token. Ours is a grid of the
patches alone, `[rows, columns, D]`, so that the row goes into the token.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import _position
from vit_jax.pretrained.google_names import POSITIONS, Dialect

Arrays = dict[str, np.ndarray]


class UnclearError(Exception):
  """A file from which a reader cannot go on; says why in one line."""


def split(
  named: Mapping[str, np.ndarray],
  dialect: Dialect,
  grid: tuple[int, int] | None,
) -> tuple[Dialect, Arrays, Arrays]:
  """Returns the dialect with its `class_row` known, our arrays, what is lost.

  Args:
    named: arrays by our names but with their position table.
    dialect: in which `class_row` is still unknown.
    grid: (rows, columns) of the patches; None if they are a square.

  Raises:
    UnclearError: the table fits no grid.
  """
  table = named['position_embedding']
  name = dialect.prefix + dialect.position
  if table.ndim != 3 or table.shape[0] != 1:
    raise UnclearError(f'{name} {table.shape}: expected (1, patches, width)')
  length, token = table.shape[1], named.get('class_token')
  if token is not None and token.shape != (1, 1, table.shape[2]):
    raise UnclearError(
      f'{dialect.prefix}cls {token.shape}: expected (1, 1, {table.shape[2]})'
    )
  can_have_row = token is not None
  # In vision_transformer's place the row is always there.
  must_have_row = can_have_row and dialect.position == POSITIONS[0]
  for has_row in (False, True):
    if (has_row and not can_have_row) or (must_have_row and not has_row):
      continue
    patches = length - has_row
    sides = grid or (math.isqrt(patches),) * 2
    if patches and math.prod(sides) == patches:
      break
  else:
    with_token = ' and the class token' if can_have_row else ''
    wanted = f'{grid[0]}x{grid[1]}' if grid else 'a square of'
    raise UnclearError(
      f'{name} {table.shape} has {length} rows, which are not those of {wanted}'
      f' patches{with_token}; say grid=(rows, columns)'
    )
  named = dict(named)
  named['position_embedding'] = table[0, has_row:].reshape(*sides, -1)
  if not has_row:
    return dialect, named, {}
  aside = dict(class_token=token, class_position=table[:, :1])
  named['class_token'] = _sum(**aside)
  return dataclasses.replace(dialect, class_row=True), named, aside


def join(
  named: Mapping[str, np.ndarray], dialect: Dialect, aside: Mapping[str, Any]
) -> Arrays:
  """Returns the arrays with their position table: the inverse of `split`.

  Args:
    named: our arrays, with a position table.
    dialect: to write; with `class_row`, there is a class token.
    aside: what `split` gave. If the class token has changed since, it is
      written as it is now, with zeros for its row.
  """
  named, table = dict(named), named['position_embedding']
  table = table.reshape(1, -1, table.shape[-1])
  if dialect.class_row:
    token = named['class_token']
    row = np.zeros((1, 1, table.shape[-1]), table.dtype)
    before = [aside.get(k) for k in ('class_token', 'class_position')]
    # They may be from a file, and anything.
    known = all(getattr(b, 'shape', None) == token.shape for b in before)
    if known and np.array_equal(_sum(*before), token):
      named['class_token'], row = before
    table = np.concatenate([row, table], axis=1)
  named['position_embedding'] = table
  return named


def fixed_table(
  position: str, image_size: Any, kernel: np.ndarray
) -> np.ndarray:
  """Returns the table that a model without a learned one adds to its patches.

  Args:
    position: of the model.
    image_size: (height, width), or None if it is unknown.
    kernel: of the patch embedding.

  Raises:
    UserError: the image size is unknown.
  """
  if image_size is None:
    raise UserError(
      'the format needs a position table, the model has none, and nothing tells'
      " the grid that it is for: set preprocess['image_size']"
    )
  sides = [image_size[i] // kernel.shape[i] for i in range(2)]
  make = _position.TABLES[position]
  if make is None:
    return np.zeros((*sides, kernel.shape[-1]), np.float32)
  return make(*sides, kernel.shape[-1])


def _sum(class_token: np.ndarray, class_position: np.ndarray) -> np.ndarray:
  # In float32 also where both are shorter, as models add them.
  return class_token.astype(np.float32) + class_position.astype(np.float32)
