"""A code base's names for the parameters of a model, with ours, and layouts."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from vit_jax.errors import UserError

Arrays = dict[str, np.ndarray]
Names = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Dialect:
  """Names and layout of the parameters of a model in one code base.

  Names may have a `*` for the number of a block. Where the other side keeps
  several of our layers or arrays in one array, ours are a tuple, in the order
  of that array's rows.

  Attributes:
    name: 'timm', 'google', ...
    layers: their layers to ours; a layer has a weight and, mostly, a bias.
    leaves: their single arrays to ours.
    position: their name of the position table; '' for none, as below.
    head: their layer of the classifier.
    class_token: their name of it.
    registers: likewise.
    position_rows: which tokens the position table has rows for: 'all' or none
      of them, as the file has it; the 'class' token; or 'none'.
    layout: of the arrays, 'torch' or 'flax'.
    stacked: whether the blocks are stacked in one array; no name has a `*`.
    head_reads: what the classifier reads, one after the other.
    zeros: arrays that they have and we do not, so that they must be zero, and
      the array that they are as long as.
    mask_token: the array for masked patches of training, where their model has
      one in any case; zeros are written.
    unused: regexes for whole names of arrays that are not part of the model.
    model: the file of `names/` that the dialect belongs to.
  """

  name: str
  layers: Mapping[str, Names]
  leaves: Mapping[str, Names]
  position: str
  head: str
  class_token: str = ''
  registers: str = ''
  position_rows: str = 'class'
  layout: str = 'torch'
  stacked: bool = False
  head_reads: tuple[str, ...] = ()
  zeros: Mapping[str, str] = dataclasses.field(default_factory=dict)
  mask_token: str = ''
  unused: tuple[str, ...] = ()
  model: str = 'vit'

  @property
  def anchor(self) -> str:
    """A name that every file of this dialect has, after any prefix."""
    patches = next(k for k, v in self.layers.items() if v == 'patch_embedding')
    return self.leaf(patches, 'kernel')

  @property
  def tokens(self) -> dict[str, str]:
    """Our names of tokens and positions to theirs."""
    ours = ('class_token', 'registers', 'position_embedding')
    theirs = (self.class_token, self.registers, self.position)
    return {k: v for k, v in zip(ours, theirs, strict=True) if v}

  def leaf(self, layer: str, leaf: str) -> str:
    """Returns their name of our 'kernel', 'scale' or 'bias' of their layer."""
    if self.layout == 'flax':
      return f'{layer}/{leaf}'
    return f'{layer}.{"bias" if leaf == "bias" else "weight"}'

  def table(self, depth: int) -> dict[str, tuple[str, ...]]:
    """Returns `{their name: our names}` of every array but `tokens`.

    Optional parts of a model are included. With stacked blocks, our names are
    those of `blocks.stack`.
    """
    pairs = {k: _tuple(v) for k, v in self.leaves.items()}
    for theirs, ours in (self.layers | {self.head: 'head'}).items():
      ours = _tuple(ours)
      is_norm = 'norm' in ours[0].split('/')[-1]
      for leaf in ('scale' if is_norm else 'kernel', 'bias'):
        name = self.leaf(theirs, leaf)
        if name not in self.zeros:
          pairs[name] = tuple(f'{layer}/{leaf}' for layer in ours)
    return {
      theirs.replace('*', str(i)): tuple(
        name.replace('*', f'{i:02d}') for name in ours
      )
      for theirs, ours in pairs.items()
      for i in range(depth if '*' in theirs else 1)
    }

  def read(
    self,
    name: str,
    array: np.ndarray,
    ours: tuple[str, ...],
    num_heads: int | None,
    pooling: str,
  ) -> Arrays:
    """Returns our arrays of one of theirs; ValueError where it cannot be."""
    if self.layout == 'flax':
      return {ours[0]: array}
    if name == self.leaf(self.head, 'kernel') and self.head_reads:
      reads = self.head_reads
      parts = dict(zip(reads, np.split(array, len(reads), axis=1), strict=True))
      array = parts.pop(pooling, None)
      if array is None or any(np.any(part) for part in parts.values()):
        raise UserError(
          f'{self.head} reads {" and ".join(reads)} together, which'
          ' models/vit.py does not do: set num_classes=None to read the encoder'
          ' alone'
        )
    if len(array) % len(ours):
      raise ValueError(f'{len(array)} rows are not {len(ours)} equal parts')
    return {
      part: _from_torch(part, rows, num_heads)
      for part, rows in zip(ours, np.split(array, len(ours)), strict=True)
    }

  def write(
    self, name: str, named: Arrays, ours: tuple[str, ...], pooling: str
  ) -> np.ndarray:
    """Returns one of their arrays, made of ours: the inverse of `read`."""
    if self.layout == 'flax':
      return named[ours[0]]
    array = np.concatenate([_to_torch(part, named[part]) for part in ours])
    if name != self.leaf(self.head, 'kernel') or not self.head_reads:
      return array
    parts = [
      array if read == pooling else np.zeros_like(array)
      for read in self.head_reads
    ]
    return np.concatenate(parts, axis=1)


def _tuple(names: Names) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else names


def _from_torch(name: str, array: np.ndarray, num_heads: int) -> np.ndarray:
  """Returns a torch array in the layout of our `name`, or ValueError."""
  layer, leaf = name.split('/')[-2:]
  ndim = {'kernel': 4 if layer == 'patch_embedding' else 2, 'bias': 1}.get(leaf)
  if ndim is not None and array.ndim != ndim:
    raise ValueError(f'expected {ndim} dimensions')
  has_heads = layer in ('query', 'key', 'value')
  if leaf == 'bias' and has_heads:
    return array.reshape(num_heads, -1)
  if leaf != 'kernel':
    return array
  if layer == 'patch_embedding':
    return array.transpose(2, 3, 1, 0)
  array = array.T
  if has_heads:
    return array.reshape(len(array), num_heads, -1)
  if layer == 'out':
    return array.reshape(num_heads, -1, array.shape[1])
  return array


def _to_torch(name: str, array: np.ndarray) -> np.ndarray:
  """Returns our array `name` in the layout of torch: the inverse."""
  layer, leaf = name.split('/')[-2:]
  if leaf == 'bias':
    return array.reshape(-1)
  if leaf != 'kernel':
    return array
  if layer == 'patch_embedding':
    return array.transpose(3, 2, 0, 1)
  flat = (-1, array.shape[-1]) if layer == 'out' else (len(array), -1)
  return array.reshape(flat).T
