"""Blocks of parameters, one by one or stacked for a scan.

Trees are flat here, `{name: array}` as `trees.flatten` gives them. Apart is
`encoder/block_00/mlp/up/kernel` and so on; stacked is
`encoder/blocks/mlp/up/kernel` with a leading axis, one entry per block.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.printable import printable

MAX_DEPTH = 999  # Names from files are not believed beyond this.
_APART = re.compile(r'((?:.+/)?)block_(\d{2,3})/(.+)')
_STACKED = re.compile(r'((?:.+/)?)blocks/(.+)')


def unstack(named: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `named` with all stacks of blocks taken apart, as views.

  Raises:
    UserError: a stack of more than MAX_DEPTH blocks.
  """
  out = {}
  for name, array in named.items():
    match = _STACKED.fullmatch(name)
    if not match:
      out[name] = array
      continue
    folder, rest = match.groups()
    if not array.shape or array.shape[0] > MAX_DEPTH:
      raise UserError(
        f'{printable(name, max_length=80)} {array.shape} is not a stack of '
        f'blocks: the first axis is one of at most MAX_DEPTH={MAX_DEPTH} blocks'
      )
    for i in range(array.shape[0]):
      out[f'{folder}block_{i:02d}/{rest}'] = array[i]
  return out


def stack(named: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `named` with the blocks of every folder stacked.

  Raises:
    UserError: blocks of one folder that are not alike, or numbers left out.
  """
  out, stacks, problems = {}, {}, []
  for name, array in named.items():
    if match := _APART.fullmatch(name):
      folder, number, rest = match.groups()
      leaves = stacks.setdefault(folder, {})
      leaves.setdefault(rest, {})[int(number)] = array
    else:
      out[name] = array
  for folder, leaves in stacks.items():
    depth = 1 + max(map(max, leaves.values()))
    for rest, arrays in leaves.items():
      missing = sorted(set(range(depth)) - set(arrays))
      shapes = {array.shape for array in arrays.values()}
      if missing:
        problems.append(f'{rest} is missing in blocks {missing} of {folder}')
      elif len(shapes) > 1:
        problems.append(f'{rest} has shapes {sorted(shapes)} in {folder}')
      else:
        parts = [arrays[i] for i in range(depth)]
        out[f'{folder}blocks/{rest}'] = np.stack(parts)
  if problems:
    raise UserError('these blocks cannot be stacked: ' + '; '.join(problems))
  return out


def is_stacked(names) -> bool:
  """Whether any of the names is that of a stack of blocks."""
  return any(_STACKED.fullmatch(name) for name in names)
