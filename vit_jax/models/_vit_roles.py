"""The roles of a ViT's parameters, for optimizers that treat them apart."""

import re
from collections.abc import Iterable

from vit_jax.errors import UserError
from vit_jax.optim.roles import Roles

_BEFORE = re.compile(r'(registers|\w+_token|\w+_embedding)(/.*)?')
_BLOCK = re.compile(r'encoder/block_(\d+)/.*')
_AFTER = re.compile(r'(encoder/norm|norm|pooling|representation|head\w*)/.*')
_STACKED = re.compile(r'(.*/)?blocks/.*')  # Blocks of `scan`: [depth, ...].
_QKV = re.compile(r'((?:.*/)?attention/)(query|key|value)(/.*)')
# Kernels that are matrices, with the dimensions of their rows and columns.
_MATRICES = tuple(
  (re.compile(rf'(.*/)?{pattern}/kernel'), dims)
  for pattern, *dims in (
    (r'attention/(query|key|value)', -3, (-2, -1)),
    (r'attention/out', (-3, -2), -1),
    (r'mlp/\w+', -2, -1),
    (r'patch_embedding/convolution_\d+', (-4, -3, -2), -1),
    (r'patch_embedding/out', -2, -1),
  )
)


def layers(names: Iterable[str]) -> dict[str, int]:
  """Returns the number of each parameter's layer.

  As BEiT (https://arxiv.org/abs/2106.08254) and MAE fine-tune: with L blocks,
  what embeds is layer 0, block i (from 0) is layer i + 1, and what comes after
  the blocks is layer L + 1. timm differs in one place: it counts the norm of
  the tokens, our `encoder/norm`, to the last block.

  Raises:
    UserError: blocks that are stacked (`scan`), no blocks at all, or names
      whose place among the layers is not known; it lists them.
  """
  names = list(names)
  if any(name.startswith('encoder/blocks/') for name in names):
    raise UserError(
      'optimizer.layer_decay needs a learning rate for each block, but with '
      'scan the parameters of all blocks are stacked into one array: set '
      '--config.model.scan=False'
    )
  blocks = {n: int(m[1]) for n in names if (m := _BLOCK.fullmatch(n))}
  last = max(blocks.values(), default=-1) + 2
  found, unknown = {}, []
  for name in names:
    if name in blocks:
      found[name] = blocks[name] + 1
    elif _BEFORE.fullmatch(name):
      found[name] = 0
    elif _AFTER.fullmatch(name):
      found[name] = last
    else:
      unknown.append(name)
  if unknown or not blocks:
    raise UserError(
      'optimizer.layer_decay knows the blocks encoder/block_00, ... of a ViT, '
      'what embeds before them and what reads them, but not '
      f'{", ".join(unknown) or "a model without blocks"}; give '
      'learning_rate_mults instead'
    )
  return found


def _matrix(name: str) -> tuple | None:
  return next((dims for p, dims in _MATRICES if p.fullmatch(name)), None)


ROLES = Roles(
  layers=layers,
  matrix=_matrix,
  is_stacked=lambda name: bool(_STACKED.fullmatch(name)),
  # As NVIDIA's FusedLAMB under DeiT-III, where the three are one tensor.
  lamb_layer=lambda name: _QKV.sub(r'\1qkv\3', name),
)
