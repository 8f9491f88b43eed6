"""Arrays of a torch state dict to ours and back: layouts and splits.

Shapes: D width, N heads, K head size.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import model_section, torch_tokens
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
    problems: by their name, what is unexpected or has an impossible shape or
      value.
  """

  params: Arrays
  aside: Arrays
  labels: dict[str, str]
  problems: dict[str, str]


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
  num_blocks, problems = depth(theirs)
  table, zeros = expand(dialect, num_blocks), _zeros(dialect, num_blocks)
  params, aside = torch_tokens.read(theirs, dialect, grid=grid, pooling=pooling)
  tokens = (dialect.class_token, dialect.registers, dialect.position)
  for name, array in theirs.items():
    if name in tokens:
      continue
    if name == dialect.mask_token:
      aside[name] = array
      continue
    if name in zeros:
      aside[name] = array
      if np.any(array):
        problems[name] = f'{name} is not zero: our norm there has no bias'
    elif name not in table:
      problems[name] = f'unexpected: {name} {array.shape}'
    else:
      try:
        if name == f'{dialect.head}.weight' and dialect.head_reads:
          array = _read_head(array, dialect, pooling)
        number = len(table[name])
        if len(array) % number:
          raise ValueError(f'{len(array)} rows are not {number} equal parts')
        parts = np.split(array, number)
        for ours, part in zip(table[name], parts, strict=True):
          params[ours] = _to_ours(ours, part, num_heads)
      except (ValueError, IndexError, TypeError) as e:
        problems[name] = f'{name} {theirs[name].shape}: {e}'
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
  num_blocks = model_section.depth(ours)
  table, theirs = expand(dialect, num_blocks), {}
  written = {'class_token', 'registers', 'position_embedding'}
  for name, parts in table.items():
    if parts[0] not in ours:
      continue
    array = np.concatenate([_to_torch(part, ours[part]) for part in parts])
    if name == f'{dialect.head}.weight' and dialect.head_reads:
      array = _write_head(array, dialect, pooling)
    theirs[name] = array
    written |= set(parts)
  for name, like in _zeros(dialect, num_blocks).items():
    if like in theirs:
      theirs[name] = np.zeros_like(theirs[like])
  if dialect.mask_token:
    width = theirs[dialect.anchor].shape[0]
    zeros = np.zeros((1, width), np.float32)
    theirs[dialect.mask_token] = (aside or {}).get(dialect.mask_token, zeros)
  homeless = sorted(set(ours) - written)
  if homeless:
    raise UserError(
      f'{dialect.name} has no name for these parameters: {", ".join(homeless)}'
    )
  return theirs | torch_tokens.write(ours, dialect, aside or {})


def guess_pooling(theirs: Mapping[str, np.ndarray], dialect: Dialect) -> str:
  """Returns the pooling that the arrays speak of, for lack of a config."""
  if any('pooling/probe' == dialect.leaves.get(name) for name in theirs):
    return 'map'
  # Where positions have a row for a class token, there must be one.
  can_lack = dialect.position_rows != 'class'
  if 'fc_norm.weight' in theirs or (
    can_lack and dialect.class_token not in theirs
  ):
    return 'mean'
  head = theirs.get(f'{dialect.head}.weight')
  two = head is not None and head.ndim == 2 and head.shape[1] % 2 == 0
  if dialect.head_reads and two:
    token, mean = np.split(head, 2, axis=1)
    return 'mean' if np.any(mean) and not np.any(token) else 'token'
  return 'token'


def _read_head(array, dialect, pooling):
  parts = dict(
    zip(
      dialect.head_reads,
      np.split(array, len(dialect.head_reads), axis=1),
      strict=True,
    )
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


def _zeros(dialect: Dialect, depth: int) -> dict[str, str]:
  return {
    name.replace('*', str(i)): like.replace('*', str(i))
    for name, like in dialect.zeros.items()
    for i in range(depth)
  }


def depth(theirs: Mapping[str, np.ndarray]) -> tuple[int, dict[str, str]]:
  """Returns the number of blocks, and a problem if their numbers have gaps."""
  numbers = {
    int(match.group(1))
    for name in theirs
    if (match := re.match(r'(?:blocks|encoder\.layers?)\.(\d{1,3})\.', name))
  }
  count = max(numbers, default=-1) + 1
  absent = sorted(set(range(count)) - numbers)
  if absent:
    return count, {'blocks': f'blocks {absent} of 0 to {count - 1} are missing'}
  return count, {}
