"""Arrays of a torch state dict to ours and back: layouts, splits, positions.

Our position table is of patches only. Most torch models have a row for the
class token too, and some for every prefix token: reading adds these rows to the
tokens, which gives the same model, and keeps both apart, so that writing into
the same dialect gives back what was read.

Shapes: h, w rows and columns of the grid of patches, P prefix tokens (class
token and registers), D width, N heads, K head size.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained.torch_names import Dialect, expand

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Converted:
  """What `read` makes of a state dict.

  Attributes:
    params: our arrays by our names.
    aside: what our parameters do not show: tokens and position rows as they
      were apart, under their names and 'rows', and arrays of zeros.
    labels: their name of each of ours, for messages.
    problems: names that are unexpected or have an impossible shape or value.
  """

  params: Arrays
  aside: Arrays
  labels: dict[str, str]
  problems: list[str]


def read(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  *,
  num_heads: int,
  grid: tuple[int, int] | None,
  pooling: str,
) -> Converted:
  """Returns our arrays for those of a state dict.

  Args:
    theirs: names without prefix, parts that are not the encoder's left out.
    dialect: of the names.
    num_heads: N, which a torch array does not show.
    grid: (h, w) of the position table; None where there is no table.
    pooling: 'token' makes their class token ours; with any other their class
      token takes part in attention alone, and becomes our first register.
  """
  depth, problems = _depth(theirs)
  table, zeros = expand(dialect, depth), _zeros(dialect, depth)
  params, aside = _read_tokens(theirs, dialect, grid, pooling)
  for name, array in theirs.items():
    if name in (dialect.class_token, dialect.registers, dialect.position):
      continue
    if name in zeros:
      aside[name] = array
      if np.any(array):
        problems.append(f'{name} is not zero: our norm there has no bias')
    elif name not in table:
      problems.append(f'unexpected: {name} {array.shape}')
    else:
      try:
        if name == f'{dialect.head}.weight' and dialect.head_reads:
          array = _read_head(array, dialect, pooling)
        parts = np.split(array, len(table[name]))
        for ours, part in zip(table[name], parts, strict=True):
          params[ours] = _to_ours(ours, part, num_heads)
      except ValueError as e:
        problems.append(f'{name} {array.shape}: {e}')
  labels = {ours: k for k, names in table.items() for ours in names}
  labels |= {
    'class_token': dialect.class_token,
    'registers': dialect.registers or dialect.class_token,
    'position_embedding': dialect.position,
  }
  return Converted(params, aside, labels, problems)


def write(
  ours: Mapping[str, np.ndarray],
  dialect: Dialect,
  *,
  pooling: str,
  aside: Mapping[str, np.ndarray] | None = None,
) -> Arrays:
  """Returns the state dict of our arrays, in the dialect's names, no prefix.

  Args:
    ours: our arrays by our names.
    dialect: to write.
    pooling: of our model.
    aside: what `read` put aside, if it read this dialect. Tokens that are still
      what they were then are written as they were.

  Raises:
    UserError: the dialect has no name for one of our arrays.
  """
  depth = len({name for name in ours if name.endswith('norm_mlp/scale')})
  table, theirs = expand(dialect, depth), {}
  written = {'class_token', 'registers', 'position_embedding'}
  for name, parts in table.items():
    if parts[0] not in ours:
      continue
    array = np.concatenate([_to_torch(part, ours[part]) for part in parts])
    if name == f'{dialect.head}.weight' and dialect.head_reads:
      array = _write_head(array, dialect, pooling)
    theirs[name] = array
    written |= set(parts)
  for name, like in _zeros(dialect, depth).items():
    if like in theirs:
      theirs[name] = np.zeros_like(theirs[like])
  homeless = sorted(set(ours) - written)
  if homeless:
    raise UserError(
      f'{dialect.name} has no name for these parameters: {", ".join(homeless)}'
    )
  return theirs | _write_tokens(ours, dialect, aside or {})


def guess_pooling(theirs: Mapping[str, np.ndarray], dialect: Dialect) -> str:
  """Returns the pooling that the arrays speak of, for lack of a config."""
  if any('pooling/probe' in ours for ours in _leaves_of(theirs, dialect)):
    return 'map'
  if dialect.class_token not in theirs or 'fc_norm.weight' in theirs:
    return 'mean'
  head = theirs.get(f'{dialect.head}.weight')
  if dialect.head_reads and head is not None and head.shape[1] % 2 == 0:
    token, mean = np.split(head, 2, axis=1)
    return 'mean' if np.any(mean) and not np.any(token) else 'token'
  return 'token'


def _leaves_of(theirs, dialect: Dialect):
  return [v for k, v in dialect.leaves.items() if k in theirs]


def find_grid(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  image_size: tuple[int, int] | None,
) -> tuple[int, int] | None:
  """Returns (h, w) of the position table, or None without a table.

  Raises:
    UserError: the table does not fit `image_size`, or it is not given and no
      one square grid fits.
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
  if image_size is not None:
    patch = theirs[dialect.anchor].shape[2:]
    grid = (image_size[0] // patch[0], image_size[1] // patch[1])
    if length - grid[0] * grid[1] not in rows:
      raise UserError(
        f'{dialect.position} has {length} rows, which is not for images of'
        f' {image_size[0]}x{image_size[1]} in patches of {patch[0]}x{patch[1]}'
      )
    return grid
  sides = {round((length - r) ** 0.5) for r in rows}
  sides = [side for side in sides if length - side**2 in rows]
  if len(sides) != 1:
    raise UserError(
      f'{dialect.position} has {length} rows, which may be of several grids or'
      ' of no square one: say image_size=(height, width)'
    )
  return (sides[0], sides[0])


def _read_tokens(theirs, dialect, grid, pooling) -> tuple[Arrays, Arrays]:
  """Returns our class token, registers and position table, and what is aside."""
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
    if pooling == 'token':
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


def _write_tokens(ours, dialect, aside) -> Arrays:
  own = [ours[n] for n in ('class_token', 'registers') if n in ours]
  prefix = np.concatenate(own, axis=1) if own else None
  names = [n for n in (dialect.class_token, dialect.registers) if n in aside]
  rows, theirs = aside.get('rows'), {}
  if names and prefix is not None and _same(_fold(aside, names), prefix):
    theirs = {name: aside[name] for name in names}
  elif prefix is not None:
    rows = None
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


def _read_head(array, dialect, pooling):
  parts = dict(
    zip(dialect.head_reads, np.split(array, len(dialect.head_reads), axis=1))
  )
  used = parts.pop(pooling, None)
  if used is None or any(np.any(part) for part in parts.values()):
    raise UserError(
      f'{dialect.head} reads {" and ".join(dialect.head_reads)} together, which'
      ' models/vit.py does not do: say num_classes=None to read the encoder'
      ' alone'
    )
  return used


def _write_head(array, dialect, pooling):
  parts = [
    array if read == pooling else np.zeros_like(array)
    for read in dialect.head_reads
  ]
  return np.concatenate(parts, axis=1)


def _to_ours(name: str, array: np.ndarray, num_heads: int) -> np.ndarray:
  """Returns a torch array in the layout of our `name`; ValueError if it cannot."""
  layer, leaf = name.rpartition('/')[::2]
  layer = layer.rpartition('/')[2]
  if leaf == 'bias' and layer in ('query', 'key', 'value'):
    return array.reshape(num_heads, -1)
  if leaf != 'kernel':
    return array
  if layer == 'patch_embedding':
    return array.transpose(2, 3, 1, 0)
  if layer in ('query', 'key', 'value'):
    return array.reshape(num_heads, -1, array.shape[1]).transpose(2, 0, 1)
  if layer == 'out':
    return array.T.reshape(num_heads, -1, array.shape[0])
  return array.T


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
  """Returns our array `name` in the layout of torch: the inverse."""
  layer, leaf = name.rpartition('/')[::2]
  layer = layer.rpartition('/')[2]
  if leaf == 'bias' and layer in ('query', 'key', 'value'):
    return array.reshape(-1)
  if leaf != 'kernel':
    return array
  if layer == 'patch_embedding':
    return array.transpose(3, 2, 0, 1)
  if layer in ('query', 'key', 'value'):
    return array.transpose(1, 2, 0).reshape(-1, array.shape[0])
  if layer == 'out':
    return array.reshape(-1, array.shape[-1]).T
  return array.T


def _zeros(dialect: Dialect, depth: int) -> dict[str, str]:
  return {
    name.replace('*', str(i)): like.replace('*', str(i))
    for name, like in dialect.zeros.items()
    for i in range(depth)
  }


def _depth(theirs) -> tuple[int, list[str]]:
  """Returns the number of blocks, and a problem if their numbers have gaps."""
  numbers = {
    int(match.group(1))
    for name in theirs
    if (match := re.match(r'(?:blocks|encoder\.layers?)\.(\d+)\.', name))
  }
  depth = max(numbers, default=-1) + 1
  absent = sorted(set(range(depth)) - numbers)
  if absent:
    return depth, [f'blocks {absent} of 0 to {depth - 1} are missing']
  return depth, []
