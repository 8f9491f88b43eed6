"""Conversion of parameters between our names and layouts and others'.

Our position table is of patches only. Other models may have a row for the class
token, or for every prefix token: reading adds these rows to the tokens, which
gives the same model, and writing gives zeros where there must be rows.

Shapes: h, w rows and columns of the patches, P prefix tokens (class token and
registers), D width.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import blocks, model_section
from vit_jax.pretrained.names._dialect import Arrays, Dialect


def read(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  *,
  known: Mapping[str, Any],
  grid: tuple[int, int] | None = None,
  class_names: list[str] | None = None,
  model: Mapping[str, Any] | None = None,
) -> tuple[Arrays, dict[str, Any]]:
  """Returns our arrays with blocks apart, and the model section.

  Args:
    theirs: arrays by names without prefix.
    dialect: of these names.
    known: fields of the model. With a `pooling` other than 'token' their class
      token takes part in attention alone, and becomes our first register.
      `num_heads` must be among them for torch's layout, which does not show it.
    grid: (rows, columns) of the position table if it is not square.
    class_names: of the classifier's outputs.
    model: fields that the user gave, which win; see `model_section.override`.

  Raises:
    UserError: names, shapes or values that are not exactly those of the model,
      all of them in one message.
  """
  check_tokens(theirs, dialect)
  pooling = known.get('pooling') or _guess_pooling(theirs, dialect)
  numbers = _block_numbers(theirs, dialect)
  depth = max(numbers, default=-1) + 1
  named = _read_tokens(theirs, dialect, grid, pooling)
  problems: dict[str, str] = {}
  if absent := sorted(set(range(depth)) - numbers):
    problems['blocks'] = f'blocks {absent} of 0 to {depth - 1} are missing'
  table, zeros = dialect.table(depth), _zeros(dialect, depth)
  for name, array in theirs.items():
    if name in dialect.tokens.values():
      continue
    if name in zeros:
      if np.any(array):
        problems[name] = f'{name} is not zero: our norm there has no bias'
    elif name not in table:
      problems[name] = f'unexpected: {name} {array.shape}'
    else:
      try:
        named |= dialect.read(
          name, array, table[name], known.get('num_heads'), pooling
        )
      except (ValueError, IndexError, TypeError) as e:
        problems[name] = f'{name} {theirs[name].shape}: {e}'
  if dialect.stacked:
    stacked = [array for k, array in named.items() if '/blocks/' in k]
    if len({array.shape[:1] for array in stacked}) > 1:
      raise UserError('the stacks of blocks do not have the same depth')
    named = blocks.unstack(named)
  section, lines = {}, list(problems.values())
  if not absent:
    known = dict(known, pooling=pooling)
    named, section, more = _section(named, dialect, known, set(problems), model)
    lines += more
  classes = section.get('num_classes')
  if classes and class_names and classes != len(class_names):
    lines.append(f'{len(class_names)} class names for {classes} classes')
  if lines:
    raise UserError(
      f'these are not exactly the parameters of models/{dialect.model}.py:'
      + model_section.listed(lines)
    )
  return named, section


def without_unused(
  arrays: Mapping[str, np.ndarray], dialect: Dialect, prefix: str = ''
) -> tuple[Arrays, list[str]]:
  """Returns arrays by their names without prefix, and names of unused ones."""
  theirs, unused = {}, []
  for name, array in arrays.items():
    if any(re.fullmatch(pattern, name) for pattern in dialect.unused):
      unused.append(name)
    else:
      # DINOv2 trains with its blocks in chunks: blocks.<chunk>.<block>.
      short = name.removeprefix(prefix)
      theirs[re.sub(r'^blocks\.\d+\.(?=\d+\.)', 'blocks.', short)] = array
  return theirs, unused


def check_tokens(theirs: Mapping[str, np.ndarray], dialect: Dialect) -> None:
  """Raises UserError if patches, tokens or positions are not such arrays."""
  expected = dict.fromkeys(dialect.tokens.values(), '(1, tokens, width)')
  expected[dialect.anchor] = '(rows, columns, channels, width)'
  if dialect.layout == 'torch':
    expected[dialect.anchor] = '(width, channels, rows, columns)'
    if dialect.position_rows == 'none':
      expected[dialect.position] = '(tokens, width)'
  found = {name: theirs[name].shape for name in expected if name in theirs}
  problems = [
    f'{name} {shape}: expected {expected[name]}'
    for name, shape in found.items()
    if len(shape) != len(expected[name].split(','))
  ]
  patches = found.pop(dialect.anchor, None)
  if patches and not problems:
    width = patches[0 if dialect.layout == 'torch' else -1]
    problems = [
      f'{name} {shape}: expected 1 x tokens x {width}'
      for name, shape in found.items()
      if shape[-1] != width or (len(shape) == 3 and shape[0] != 1)
    ]
  if problems:
    raise UserError('; '.join(problems))


def write(
  ours: Mapping[str, np.ndarray], dialect: Dialect, *, pooling: str
) -> Arrays:
  """Returns our arrays by the dialect's names and in its layout, no prefix.

  `ours` has blocks apart.

  Raises:
    UserError: the dialect has no name for one of our arrays.
  """
  depth = model_section.depth(ours)
  named = blocks.stack(ours) if dialect.stacked else ours
  theirs: Arrays = {}
  written = set(dialect.tokens)
  for name, parts in dialect.table(depth).items():
    if parts[0] in named:
      theirs[name] = dialect.write(name, named, parts, pooling)
      written |= set(parts)
  if homeless := sorted(set(named) - written):
    raise UserError(
      f'{dialect.name} has no names for these parameters; write another format,'
      f' such as .safetensors: {", ".join(homeless)}'
    )
  for name, like in _zeros(dialect, depth).items():
    if like in theirs:
      theirs[name] = np.zeros_like(theirs[like])
  if dialect.mask_token:
    width = theirs[dialect.anchor].shape[0]
    theirs[dialect.mask_token] = np.zeros((1, width), np.float32)
  return theirs | _write_tokens(ours, dialect)


def _section(named, dialect: Dialect, known, reported: set[str], model):
  """Returns arrays and model section as the user wants them, and mismatches.

  Mismatches are with names of the file, without those `reported` already.
  """
  names = model_section.names_named(dialect.model)
  depth = model_section.depth(named)
  labels = {'registers': dialect.class_token}
  for theirs, parts in dialect.table(depth).items():
    for ours in parts:
      for i in range(depth if '/blocks/' in ours else 1):
        labels[ours.replace('/blocks/', f'/block_{i:02d}/')] = theirs
  labels |= dialect.tokens
  needed = [labels.get(n, n) for n in names.NEEDED if n not in named]
  if needed:
    return named, {}, [f'missing: {n}' for n in needed if n not in reported]
  section = names.section(names.infer(named) | known)
  named, section = model_section.override(named, section, model)
  lines = model_section.problems(
    named,
    section,
    labels=labels,
    trusted=bool(model_section.trusted_keys(model)),
  )
  said = tuple(f'missing: {name} ' for name in reported)
  lines = [line for line in lines if not line.startswith(said)]
  if dialect.stacked:  # Once for all blocks.
    lines = [x for x in lines if not re.search(r'encoder/block_(?!00)', x)]
  return named, section, lines


def _block_numbers(theirs, dialect: Dialect) -> set[int]:
  name = next((name for name in dialect.layers if '*' in name), None)
  if name is None:
    return set()
  block = re.compile(re.escape(name.partition('*')[0]) + r'(\d{1,3})[./]')
  return {int(match[1]) for match in map(block.match, theirs) if match}


def _zeros(dialect: Dialect, depth: int) -> dict[str, str]:
  return {
    name.replace('*', str(i)): like.replace('*', str(i))
    for name, like in dialect.zeros.items()
    for i in range(depth)
  }


def _guess_pooling(theirs: Mapping[str, np.ndarray], dialect: Dialect) -> str:
  """Returns the pooling that the arrays imply, for lack of a config."""
  if any('pooling/probe' == dialect.leaves.get(name) for name in theirs):
    return 'map'
  # Where positions have a row for a class token, there must be one.
  can_lack = dialect.position_rows != 'class'
  if 'fc_norm.weight' in theirs or (
    can_lack and dialect.class_token not in theirs
  ):
    return 'mean'
  head = theirs.get(dialect.leaf(dialect.head, 'kernel'))
  two = head is not None and head.ndim == 2 and head.shape[1] % 2 == 0
  if dialect.head_reads and two:
    token, mean = np.split(head, 2, axis=1)
    return 'mean' if np.any(mean) and not np.any(token) else 'token'
  return 'token'


def _find_grid(
  length: int, num_tokens: int, dialect: Dialect, grid: tuple[int, int] | None
) -> tuple[int, int]:
  """Returns (h, w) of a position table; square where `grid` is None."""
  rows = {'all': {0, num_tokens}, 'class': {1}, 'none': {0}}
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


def _read_tokens(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  grid: tuple[int, int] | None,
  pooling: str,
) -> Arrays:
  """Returns our class token, registers and positions."""
  names = [n for n in (dialect.class_token, dialect.registers) if n in theirs]
  params, rows, prefix = {}, (), None
  if names:
    prefix = np.concatenate([theirs[name] for name in names], axis=1)
  if dialect.position in theirs:
    # [1, L, D] or, as an embedding's weight, [L, D].
    table = theirs[dialect.position]
    table = table.reshape(-1, table.shape[-1])
    num_tokens = prefix.shape[1] if names else 0
    grid = _find_grid(len(table), num_tokens, dialect, grid)
    rows, table = np.split(table, [len(table) - grid[0] * grid[1]])
    params['position_embedding'] = table.reshape(*grid, -1)
  if names:
    if len(rows):
      # In float32 also where both are shorter, as models add them.
      prefix = prefix.astype(np.float32)
      prefix[0, : len(rows)] += rows.astype(np.float32)
    if pooling == 'token' and dialect.class_token in theirs:
      params['class_token'], prefix = prefix[:, :1], prefix[:, 1:]
    if prefix.shape[1]:
      params['registers'] = prefix
  return params


def _write_tokens(ours: Mapping[str, np.ndarray], dialect: Dialect) -> Arrays:
  """Returns their tokens and position table: the inverse."""
  own = [ours[n] for n in ('class_token', 'registers') if n in ours]
  theirs, is_class = {}, dialect.position_rows == 'class'
  if own:
    prefix = np.concatenate(own, axis=1)
    has_class = 'class_token' in ours or is_class
    if has_class:
      theirs[dialect.class_token] = prefix[:, :1]
    if prefix.shape[1] > has_class:
      theirs[dialect.registers] = prefix[:, has_class:]
  if 'position_embedding' in ours:
    table = ours['position_embedding']
    table = table.reshape(-1, table.shape[-1])
    table = np.pad(table, ((int(is_class), 0), (0, 0)))
    is_flat = dialect.position_rows == 'none' and dialect.layout == 'torch'
    theirs[dialect.position] = table if is_flat else table[None]
  return theirs
