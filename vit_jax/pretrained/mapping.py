"""Conversion of parameters between our names and layouts and others'.

Our position table is of patches only. Other models may have a row for the class
token, or for every prefix token: reading adds these rows to the tokens, which
gives the same model, and keeps both in `unmapped`, so that weights that did not
change are written back bit by bit.

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
) -> tuple[Arrays, dict[str, Any], Arrays]:
  """Returns our arrays with blocks apart, the model section, what is unmapped.

  `theirs` has names without prefix. With a known `pooling` other than 'token'
  their class token takes part in attention alone, and becomes our first
  register. `num_heads` must be known for torch's layout, which does not show it;
  `grid` is needed where it is not square. The user's `model` wins, see
  `model_section.override`.

  Raises:
    UserError: names, shapes or values that are not exactly those of the model,
      all of them in one message.
  """
  check_tokens(theirs, dialect)
  pooling = known.get('pooling') or _guess_pooling(theirs, dialect)
  num_heads = known.get('num_heads')
  grid = _find_grid(theirs, dialect, grid)
  numbers = _block_numbers(theirs, dialect)
  depth = max(numbers, default=-1) + 1
  named, unmapped = _read_tokens(theirs, dialect, grid, pooling)
  problems: dict[str, str] = {}
  if absent := sorted(set(range(depth)) - numbers):
    problems['blocks'] = f'blocks {absent} of 0 to {depth - 1} are missing'
  table, zeros = dialect.table(depth), _zeros(dialect, depth)
  for name, array in theirs.items():
    if name in dialect.tokens.values():
      continue
    if name == dialect.mask_token:
      unmapped[name] = array
    elif name in zeros:
      unmapped[name] = array
      if np.any(array):
        problems[name] = f'{name} is not zero: our norm there has no bias'
    elif name not in table:
      problems[name] = f'unexpected: {name} {array.shape}'
    else:
      try:
        named |= dialect.read(name, array, table[name], num_heads, pooling)
      except (ValueError, IndexError, TypeError) as e:
        problems[name] = f'{name} {theirs[name].shape}: {e}'
  if dialect.stacked:
    stacked = [array for k, array in named.items() if '/blocks/' in k]
    if len({array.shape[:1] for array in stacked}) > 1:
      raise UserError('the stacks of blocks do not have the same depth')
    named = blocks.unstack(named)
  named, section, lines = _section(
    named,
    dialect,
    dict(known, pooling=pooling),
    labels=_labels(dialect, model_section.depth(named)),
    reported=set(problems),
    model=model,
  )
  lines = [*problems.values(), *lines]
  classes = section.get('num_classes')
  if classes and class_names and classes != len(class_names):
    lines.append(f'{len(class_names)} class names for {classes} classes')
  if lines:
    raise UserError(
      f'these are not exactly the parameters of models/{dialect.model}.py:'
      + model_section.listed(lines)
    )
  return named, section, unmapped


def without_unused(
  arrays: Mapping[str, np.ndarray], dialect: Dialect, prefix: str = ''
) -> tuple[Arrays, list[str]]:
  """Returns arrays by their names without prefix, and names of unused ones."""
  theirs, unused = {}, []
  for name, array in arrays.items():
    short = name.removeprefix(prefix)
    if short != dialect.mask_token and any(
      re.fullmatch(pattern, name) for pattern in dialect.unused
    ):
      unused.append(name)
    else:
      # DINOv2 trains with its blocks in chunks: blocks.<chunk>.<block>.
      theirs[re.sub(r'^blocks\.\d+\.(?=\d+\.)', 'blocks.', short)] = array
  return theirs, unused


def check_tokens(theirs: Mapping[str, np.ndarray], dialect: Dialect) -> None:
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


def write(
  ours: Mapping[str, np.ndarray],
  dialect: Dialect,
  *,
  pooling: str,
  unmapped: Any = None,
) -> Arrays:
  """Returns our arrays by the dialect's names and in its layout, no prefix.

  `ours` has blocks apart. `unmapped` is what `read` returned, if it read this
  dialect; it may come from a file, and be anything. Tokens that are still what
  they were then are written as they were; else their rows in the position table
  are zeros.

  Raises:
    UserError: the dialect has no name for one of our arrays.
  """
  if not isinstance(unmapped, Mapping):
    unmapped = {}
  kept = {k: v for k, v in unmapped.items() if isinstance(v, np.ndarray)}
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
    zeros = np.zeros((1, theirs[dialect.anchor].shape[0]), np.float32)
    theirs[dialect.mask_token] = kept.get(dialect.mask_token, zeros)
  return theirs | _write_tokens(ours, dialect, kept)


def _section(named, dialect, known, *, labels, reported, model):
  """Returns arrays and model section as the user wants them, and mismatches."""
  names = model_section.names_named(dialect.model)
  needed = [name for name in names.NEEDED if name not in named]
  absent = [labels.get(name, name) for name in needed]
  if absent:
    return named, {}, [f'missing: {n}' for n in absent if n not in reported]
  section = names.section(names.infer(named) | known)
  named, section = model_section.override(named, section, model)
  lines = model_section.problems(
    named,
    section,
    labels=labels,
    trusted=bool(model_section.trusted_keys(model)),
  )
  # Once for a block that is missing as a whole, and for a stack.
  present = {name.split('/')[1] for name in named if '/block_' in name}
  reported = tuple(f'missing: {name} ' for name in reported)
  kept = []
  for line in lines:
    block = re.search(r'encoder/(block_(\d+))', line)
    whole = block and line.startswith('missing') and block[1] not in present
    repeated = dialect.stacked and block and int(block[2])
    if not (whole or repeated or line.startswith(reported)):
      kept.append(line)
  return named, section, kept


def _labels(dialect: Dialect, depth: int) -> dict[str, str]:
  """Returns their name of each of ours, blocks apart."""
  labels = {}
  for theirs, names in dialect.table(depth).items():
    for ours in names:
      for i in range(depth if '/blocks/' in ours else 1):
        labels[ours.replace('/blocks/', f'/block_{i:02d}/')] = theirs
  return {'registers': dialect.class_token} | labels | dialect.tokens


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


def _read_tokens(
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


def _write_tokens(
  ours: Mapping[str, np.ndarray],
  dialect: Dialect,
  unmapped: Mapping[str, np.ndarray],
) -> Arrays:
  """Returns their tokens and position table: the inverse."""
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
