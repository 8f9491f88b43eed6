"""Tables of a code base's names for the parameters of a model, with ours."""

import dataclasses
from collections.abc import Mapping

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
      one in any case.
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
    names = dict(
      class_token=self.class_token,
      registers=self.registers,
      position_embedding=self.position,
    )
    return {ours: theirs for ours, theirs in names.items() if theirs}

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


def _tuple(names: Names) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else names
