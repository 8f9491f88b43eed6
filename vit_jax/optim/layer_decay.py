"""Layer-wise learning-rate decay: the earlier a layer, the smaller its steps.

As BEiT (https://arxiv.org/abs/2106.08254) and MAE fine-tune: with L blocks,
what embeds is layer 0, block i (from 0) is layer i + 1, and what comes after
the blocks is layer L + 1. Layer l learns with `decay ** (L + 1 - l)` times the
rate of the run. timm differs in one place: it counts the norm of the tokens,
our `encoder/norm`, to the last block.
"""

import re
from collections.abc import Iterable

from vit_jax.errors import UserError

_BEFORE = re.compile(r'(registers|\w+_token|\w+_embedding)(/.*)?')
_BLOCK = re.compile(r'encoder/block_(\d+)/.*')
_AFTER = re.compile(r'(encoder/norm|norm|pooling|representation|head\w*)/.*')


def multipliers(names: Iterable[str], decay: float) -> dict[str, float]:
  """Returns what the learning rate of each parameter is multiplied with.

  For two blocks and a decay of 0.5: 1 for the head and the final norm, 0.5 for
  block 1, 0.25 for block 0, 0.125 for the patch embedding, the positions, the
  class token and registers.

  Args:
    names: of the parameters, such as `encoder/block_03/mlp/up/kernel`.
    decay: in (0, 1].

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
  layers, unknown = {}, []
  for name in names:
    if name in blocks:
      layers[name] = blocks[name] + 1
    elif _BEFORE.fullmatch(name):
      layers[name] = 0
    elif _AFTER.fullmatch(name):
      layers[name] = last
    else:
      unknown.append(name)
  if unknown or not blocks:
    raise UserError(
      'optimizer.layer_decay knows the blocks encoder/block_00, ... of a ViT, '
      'what embeds before them and what reads them, but not '
      f'{", ".join(unknown) or "a model without blocks"}; give '
      'learning_rate_mults instead'
    )
  return {name: decay ** (last - layer) for name, layer in layers.items()}
