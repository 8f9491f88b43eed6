"""Conversion of tokens and position tables of other code bases.

Our position table is of patches only. Other models may have a row for the class
token, or for every prefix token: reading adds these rows to the tokens, which
gives the same model, and keeps both in `unmapped`, so that weights that did not
change are written back bit by bit.

Shapes: h, w rows and columns of the grid of patches, P prefix tokens (class
token and registers), D width.
"""

import math
from collections.abc import Mapping

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained.names._dialect import Dialect

Arrays = dict[str, np.ndarray]


def check(theirs: Mapping[str, np.ndarray], dialect: Dialect) -> None:
  """Raises UserError if patches, tokens or positions are not such arrays."""
  token = (3, '(1, tokens, width)')
  expected = dict.fromkeys(dialect.tokens.values(), token)
  if dialect.position_rows == 'none' and dialect.layout == 'torch':
    expected[dialect.position] = (2, '(tokens, width)')
  is_torch = dialect.layout == 'torch'
  expected[dialect.anchor] = (4, '(width, channels, rows, columns)')
  if not is_torch:
    expected[dialect.anchor] = (4, '(rows, columns, channels, width)')
  problems = [
    f'{name} {theirs[name].shape}: expected {shape}'
    for name, (ndim, shape) in expected.items()
    if name in theirs and theirs[name].ndim != ndim
  ]
  if not problems and dialect.anchor in theirs:
    width = theirs[dialect.anchor].shape[0 if is_torch else -1]
    for name in dialect.tokens.values():
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

  It is square where `grid` is None.

  Raises:
    UserError: the table does not fit `grid`, or not exactly one square.
  """
  if dialect.position not in theirs:
    return None
  length = theirs[dialect.position].shape[-2]
  names = (dialect.class_token, dialect.registers)
  tokens = sum(theirs[name].shape[-2] for name in names if name in theirs)
  rows = {'all': {0, tokens}, 'class': {1}, 'none': {0}}
  rows = rows[dialect.position_rows]
  found = f'{dialect.position} has {length} rows, which'
  say = 'set grid=(rows, columns)'
  if grid is not None:
    if length - grid[0] * grid[1] not in rows:
      raise UserError(
        f'{found} are not those of {grid[0]}x{grid[1]} patches; {say}'
      )
    return tuple(grid)
  patches = {length - row for row in rows if row < length}
  squares = {n for p in patches if (n := math.isqrt(p)) ** 2 == p}
  if len(squares) != 1:
    raise UserError(
      f'{found} could be those of {len(squares)} squares of patches: {say}'
    )
  return (squares.pop(),) * 2


def read(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  grid: tuple[int, int] | None,
  pooling: str,
) -> tuple[Arrays, Arrays]:
  """Returns our class token, registers and positions; what is unmapped."""
  names = [n for n in (dialect.class_token, dialect.registers) if n in theirs]
  unmapped = {name: theirs[name] for name in names}
  params = {}
  if grid is not None:
    # [1, L, D] or, as an embedding's weight, [L, D].
    table = theirs[dialect.position]
    table = table.reshape(-1, table.shape[-1])
    split = len(table) - grid[0] * grid[1]
    unmapped['rows'] = table[:split]
    params['position_embedding'] = table[split:].reshape(*grid, -1)
  if names:
    prefix = _fold(unmapped, names)
    if pooling == 'token' and dialect.class_token in theirs:
      params['class_token'], prefix = prefix[:, :1], prefix[:, 1:]
    if prefix.shape[1]:
      params['registers'] = prefix
  return params, unmapped


def write(
  ours: Mapping[str, np.ndarray],
  dialect: Dialect,
  unmapped: Mapping[str, np.ndarray],
) -> Arrays:
  """Returns their tokens and position table: the inverse of `read`."""
  own = [ours[n] for n in ('class_token', 'registers') if n in ours]
  names = [n for n in (dialect.class_token, dialect.registers) if n in unmapped]
  rows, theirs = None, {}
  if own:
    prefix = np.concatenate(own, axis=1)
    if names and _is_fold(unmapped, names, prefix):
      theirs = {name: unmapped[name] for name in names}
      rows = unmapped.get('rows')
    else:
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
    is_flat = dialect.position_rows == 'none' and dialect.layout == 'torch'
    theirs[dialect.position] = table if is_flat else table[None]
  return theirs


def _fold(unmapped, names) -> np.ndarray:
  """Returns the prefix tokens [1, P, D] with their position rows added."""
  tokens = np.concatenate([unmapped[name] for name in names], axis=1)
  rows = unmapped.get('rows', ())
  if len(rows):
    # In float32 also where both are shorter, as models add them.
    tokens = tokens.astype(np.float32)
    tokens[0, : len(rows)] += rows.astype(np.float32)
  return tokens


def _is_fold(unmapped, names, prefix: np.ndarray) -> bool:
  """Whether the prefix tokens are those that `_fold` made of `unmapped`."""
  try:
    folded = _fold(unmapped, names)
  except (ValueError, IndexError, TypeError):  # They may be from a file.
    return False
  return folded.shape == prefix.shape and np.array_equal(folded, prefix)
