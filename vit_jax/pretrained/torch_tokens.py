"""Tokens and position tables of torch models to ours and back.

Our position table is of patches only. Most torch models have a row for the
class token too, and some for every prefix token: reading adds these rows to the
tokens, which gives the same model, and puts both aside, so that weights that
were not changed are written back bit by bit.

Shapes: h, w rows and columns of the grid of patches, P prefix tokens (class
token and registers), D width.
"""

import math
from collections.abc import Mapping

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained.torch_names import Dialect

Arrays = dict[str, np.ndarray]


def check(theirs: Mapping[str, np.ndarray], dialect: Dialect) -> None:
  """Raises UserError if patches, tokens or positions are no such arrays."""
  token = (3, '(1, tokens, width)')
  expected = {
    dialect.anchor: (4, '(width, channels, rows, columns)'),
    dialect.class_token: token,
    dialect.registers: token,
    dialect.position: token,
  }
  if dialect.position_rows == 'none':
    expected[dialect.position] = (2, '(tokens, width)')
  problems = [
    f'{name} {theirs[name].shape}: expected {shape}'
    for name, (ndim, shape) in expected.items()
    if name in theirs and theirs[name].ndim != ndim
  ]
  if not problems and dialect.anchor in theirs:
    width = theirs[dialect.anchor].shape[0]
    for name in (dialect.class_token, dialect.registers, dialect.position):
      shape = theirs[name].shape if name in theirs else (1, width)
      if shape[-1] != width or (len(shape) == 3 and shape[0] != 1):
        problems.append(f'{name} {shape}: expected 1 x tokens x {width}')
  if problems:
    raise UserError('; '.join(problems))


def find_grid(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  grid: tuple[int, int] | None,
) -> tuple[int, int] | None:
  """Returns (h, w) of the position table, or None without a table.

  Args:
    theirs: names without prefix.
    dialect: of the names.
    grid: what it should be; None if it is square.

  Raises:
    UserError: the table does not fit `grid`, or not exactly one square.
  """
  if dialect.position not in theirs:
    return None
  length = theirs[dialect.position].shape[-2]
  tokens = [
    theirs[name].shape[-2]
    for name in (dialect.class_token, dialect.registers)
    if name in theirs
  ]
  rows = {'all': {0, sum(tokens)}, 'class': {1}, 'none': {0}}
  rows = rows[dialect.position_rows]
  if grid is not None:
    if length - grid[0] * grid[1] not in rows:
      raise UserError(
        f'{dialect.position} has {length} rows, which are not those of'
        f' {grid[0]}x{grid[1]} patches'
      )
    return tuple(grid)
  squares = {
    n for r in rows if (n := math.isqrt(length - r)) ** 2 == length - r
  }
  if len(squares) != 1:
    raise UserError(
      f'{dialect.position} has {length} rows, which could be those of'
      f' {len(squares)} squares of patches: say grid=(rows, columns)'
    )
  return (squares.pop(),) * 2


def read(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  *,
  grid: tuple[int, int] | None,
  pooling: str,
) -> tuple[Arrays, Arrays]:
  """Returns our class token, registers and position table; what is aside.

  Args:
    theirs: the state dict, of which other arrays are ignored.
    dialect: of the names.
    grid: (h, w) of the position table; None where there is no table.
    pooling: 'token' makes their class token ours; with any other their class
      token takes part in attention alone, and becomes our first register.
  """
  names = [n for n in (dialect.class_token, dialect.registers) if n in theirs]
  aside = {name: theirs[name] for name in names}
  params, prefix = {}, None
  if grid is not None:
    # [1, L, D] or, as an embedding's weight, [L, D].
    table = theirs[dialect.position].reshape(
      -1, theirs[dialect.position].shape[-1]
    )
    split = len(table) - grid[0] * grid[1]
    aside['rows'] = table[:split]
    params['position_embedding'] = table[split:].reshape(*grid, -1)
  if names:
    prefix = _fold(aside, names)
    if pooling == 'token' and dialect.class_token in theirs:
      params['class_token'], prefix = prefix[:, :1], prefix[:, 1:]
    if prefix.shape[1]:
      params['registers'] = prefix
  return params, aside


def _fold(aside, names) -> np.ndarray:
  """Returns the prefix tokens [1, P, D] with their position rows added."""
  tokens = np.concatenate([aside[name] for name in names], axis=1)
  rows = aside.get('rows', ())
  if len(rows):
    tokens = tokens.astype(np.float32)
    tokens[0, : len(rows)] += rows.astype(np.float32)
  return tokens


def write(
  ours: Mapping[str, np.ndarray],
  dialect: Dialect,
  aside: Mapping[str, np.ndarray],
) -> Arrays:
  """Returns their tokens and position table: the inverse of `read`.

  Args:
    ours: our arrays, of which others are ignored.
    dialect: to write.
    aside: what `read` put aside, or empty. If a token has changed since, tokens
      are written as they are now, and their rows as zeros where the dialect
      must have them.
  """
  own = [ours[n] for n in ('class_token', 'registers') if n in ours]
  prefix = np.concatenate(own, axis=1) if own else None
  names = [n for n in (dialect.class_token, dialect.registers) if n in aside]
  rows, theirs = None, {}
  if names and prefix is not None and _same(_fold(aside, names), prefix):
    theirs = {name: aside[name] for name in names}
    rows = aside.get('rows')
  elif prefix is not None:
    has_class = 'class_token' in ours or dialect.position_rows == 'class'
    if has_class:
      theirs[dialect.class_token] = prefix[:, :1]
    if prefix.shape[1] > has_class:
      theirs[dialect.registers] = prefix[:, has_class:]
  if 'position_embedding' in ours:
    table = ours['position_embedding']
    table = table.reshape(-1, table.shape[-1])
    if rows is None:
      number = int(dialect.position_rows == 'class')
      rows = np.zeros((number, table.shape[-1]), table.dtype)
    table = np.concatenate([rows, table])
    flat = dialect.position_rows == 'none'
    theirs[dialect.position] = table if flat else table[None]
  return theirs


def _same(a, b) -> bool:
  return a.shape == b.shape and bool(np.all(a == b))
