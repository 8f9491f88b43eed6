"""Conversion of parameters between our names and layouts and others'.

Shapes: D width, N heads, K head size, h, w rows and columns of the patches.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import blocks, model_section, tokens
from vit_jax.pretrained.names._dialect import Dialect

Arrays = dict[str, np.ndarray]


def read(
  theirs: Mapping[str, np.ndarray],
  dialect: Dialect,
  *,
  known: Mapping[str, Any],
  num_heads: int | None = None,
  grid: tuple[int, int] | None = None,
  class_names: list[str] | None = None,
  model: Mapping[str, Any] | None = None,
) -> tuple[Arrays, dict[str, Any], Arrays]:
  """Returns our arrays with blocks apart, the model section, what is unmapped.

  `theirs` has names without prefix. With a known `pooling` other than 'token'
  their class token takes part in attention alone, and becomes our first
  register. `num_heads` is needed for torch's layout, which does not show it,
  and `grid` where it is not square. The user's `model` wins, see
  `model_section.override`.

  Raises:
    UserError: names, shapes or values that are not exactly those of the model,
      all of them in one message.
  """
  tokens.check(theirs, dialect)
  pooling = known.get('pooling') or _guess_pooling(theirs, dialect)
  grid = tokens.find_grid(theirs, dialect, grid)
  numbers = _block_numbers(theirs, dialect)
  depth = max(numbers, default=-1) + 1
  named, unmapped = tokens.read(theirs, dialect, grid, pooling)
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
        named |= _split(name, array, table[name], dialect, num_heads, pooling)
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
      array = named[parts[0]]
      if dialect.layout == 'torch':
        array = np.concatenate([_to_torch(n, named[n]) for n in parts])
      if name == dialect.leaf(dialect.head, 'kernel') and dialect.head_reads:
        array = _write_head(array, dialect, pooling)
      theirs[name] = array
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
  return theirs | tokens.write(ours, dialect, kept)


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


def _split(name, array, ours, dialect, num_heads, pooling) -> Arrays:
  """Returns our arrays of one of theirs; ValueError where it cannot be."""
  if dialect.layout == 'flax':
    return {ours[0]: array}
  if name == dialect.leaf(dialect.head, 'kernel') and dialect.head_reads:
    array = _read_head(array, dialect, pooling)
  if len(array) % len(ours):
    raise ValueError(f'{len(array)} rows are not {len(ours)} equal parts')
  parts = np.split(array, len(ours))
  return {
    name: _from_torch(name, part, num_heads)
    for name, part in zip(ours, parts, strict=True)
  }


def _read_head(array, dialect, pooling):
  reads = dialect.head_reads
  parts = dict(zip(reads, np.split(array, len(reads), axis=1), strict=True))
  used = parts.pop(pooling, None)
  if used is None or any(np.any(part) for part in parts.values()):
    raise UserError(
      f'{dialect.head} reads {" and ".join(reads)} together, which'
      ' models/vit.py does not do: set num_classes=None to read the encoder'
      ' alone'
    )
  return used


def _write_head(array, dialect, pooling):
  return np.concatenate(
    [
      array if read == pooling else np.zeros_like(array)
      for read in dialect.head_reads
    ],
    axis=1,
  )


def _from_torch(name: str, array: np.ndarray, num_heads: int) -> np.ndarray:
  """Returns a torch array in the layout of our `name`, or ValueError."""
  layer, leaf = name.rpartition('/')[::2]
  layer = layer.rpartition('/')[2]
  ndim = {'kernel': 4 if layer == 'patch_embedding' else 2, 'bias': 1}.get(leaf)
  if ndim is not None and array.ndim != ndim:
    raise ValueError(f'expected {ndim} dimensions')
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
