"""The names that Google's code bases give to the leaves of a ViT.

One `Dialect` says how a file names its leaves, and `table` gives all of its
names with ours. Nothing is renumbered: a name is in the table or it is not.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.errors import UserError

# In this order: a file with optimizer state has other names outside of these.
PREFIXES = ('params/img/', 'params/', 'opt/target/', 'img/', '')

# What may lie beside the weights: state of the training, and beside an image
# tower the text tower and the scalars of a contrastive model.
_TRAINING = re.compile('(opt|states?|chrono|extra)/.*')
_TOWERS = re.compile('(params/)?(txt/.*|t|b)')

POSITIONS = (
  'Transformer/posembed_input/pos_embedding',  # vision_transformer
  'Transformer/pos_embedding',  # big_vision before 2022
  'pos_embedding',  # big_vision
)


@dataclasses.dataclass(frozen=True)
class Dialect:
  """How a file names its leaves.

  Attributes:
    prefix: before every name.
    numbering: of the parts of a block: 'linen' counts each class from 0;
      'pre_linen' counts all of them together, as flax did until 2020 and as
      the published files of vision_transformer and timm's reader of them do.
    position: the name of the position table, of POSITIONS.
    class_row: whether the table's first row is added to the class token.
    map_head: before the names of attention pooling; '' in some old files.
    stacked: whether blocks are stacked for a scan.
  """

  prefix: str = ''
  numbering: str = 'linen'
  position: str = 'pos_embedding'
  class_row: bool = False
  map_head: str = 'MAPHead_0/'
  stacked: bool = False


DIALECTS = {
  'pre_linen': Dialect(
    numbering='pre_linen', position=POSITIONS[0], class_row=True
  ),
  'linen': Dialect(position=POSITIONS[0], class_row=True),
  'big_vision': Dialect(prefix='params/'),
}

# Numbers in attention, second norm and MLP.
_NUMBERS = {'pre_linen': (1, 2, 3), 'linen': (0, 1, 0)}

_ATTENTION = {
  f'{part}/{leaf}': f'{part}/{leaf}'
  for part in ('query', 'key', 'value', 'out')
  for leaf in ('kernel', 'bias')
}
_NORM = {'scale': 'scale', 'bias': 'bias'}
_MLP = {
  'Dense_0/kernel': 'up/kernel',
  'Dense_0/bias': 'up/bias',
  'Dense_1/kernel': 'down/kernel',
  'Dense_1/bias': 'down/bias',
}
_OUTSIDE = {
  'embedding/kernel': 'patch_embedding/kernel',
  'embedding/bias': 'patch_embedding/bias',
  'cls': 'class_token',
  'Transformer/encoder_norm/scale': 'encoder/norm/scale',
  'Transformer/encoder_norm/bias': 'encoder/norm/bias',
  'pre_logits/kernel': 'representation/kernel',
  'pre_logits/bias': 'representation/bias',
  'head/kernel': 'head/kernel',
  'head/bias': 'head/bias',
}


def table(dialect: Dialect, depth: int) -> dict[str, str]:
  """Returns `{name in the file: our name}` of all that a ViT can have.

  With stacked blocks, our names are those of `blocks.stack`.
  """
  names = dict(_OUTSIDE)
  names[dialect.position] = 'position_embedding'
  attention, norm, mlp = _NUMBERS[dialect.numbering]
  block = _nested(
    ('LayerNorm_0/', 'norm_attention/', _NORM),
    (f'MultiHeadDotProductAttention_{attention}/', 'attention/', _ATTENTION),
    (f'LayerNorm_{norm}/', 'norm_mlp/', _NORM),
    (f'MlpBlock_{mlp}/', 'mlp/', _MLP),
  )
  if dialect.stacked:
    names |= _nested(('Transformer/encoderblock/', 'encoder/blocks/', block))
  else:
    names |= _nested(
      *(
        (f'Transformer/encoderblock_{i}/', f'encoder/block_{i:02d}/', block)
        for i in range(depth)
      )
    )
  head = _nested(
    ('MultiHeadDotProductAttention_0/', 'attention/', _ATTENTION),
    ('LayerNorm_0/', 'norm/', _NORM),
    ('MlpBlock_0/', 'mlp/', _MLP),
  )
  names |= _nested((dialect.map_head, 'pooling/', {'probe': 'probe'} | head))
  return {dialect.prefix + theirs: ours for theirs, ours in names.items()}


def detect(names: Iterable[str]) -> Dialect:
  """Returns the dialect of a file with these names.

  Whether the table has a class row only its shape can tell: it is left False.

  Raises:
    UserError: the file holds another kind of model, or none that we know.
  """
  names = set(names)
  prefix = next((p for p in PREFIXES if f'{p}embedding/kernel' in names), None)
  _refuse_others(names, prefix)
  inside = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
  old = re.compile(
    r'Transformer/encoderblock_\d+/'
    '(MultiHeadDotProductAttention_1|LayerNorm_2|MlpBlock_3)/.*'
  )
  return Dialect(
    prefix=prefix,
    numbering='pre_linen' if any(map(old.fullmatch, inside)) else 'linen',
    position=next((p for p in POSITIONS if p in inside), POSITIONS[-1]),
    map_head='' if 'probe' in inside else 'MAPHead_0/',
    stacked=any(n.startswith('Transformer/encoderblock/') for n in inside),
  )


def dialect_of(fields: Any) -> Dialect:
  """Returns the dialect with these attributes, which may be from a file.

  Raises:
    UserError: no such dialect.
  """
  kinds = {f.name: type(f.default) for f in dataclasses.fields(Dialect)}
  fits = isinstance(fields, Mapping) and all(
    type(value) is kinds.get(key) for key, value in fields.items()
  )
  dialect = Dialect(**fields) if fits else None
  if (
    dialect is None
    or dialect.numbering not in _NUMBERS
    or dialect.position not in POSITIONS
  ):
    raise UserError(
      'the source of these weights names no dialect of Google; say which format'
      ' to write, google_npz or big_vision_npz'
    )
  return dialect


def is_beside(name: str, dialect: Dialect) -> bool:
  """Whether a name belongs to something else than the model's weights."""
  if dialect.prefix and name.startswith(dialect.prefix):
    return False
  one_of_two = dialect.prefix.endswith('img/') and _TOWERS.fullmatch(name)
  return bool(one_of_two or _TRAINING.fullmatch(name))


def _nested(*folders: tuple[str, str, dict[str, str]]) -> dict[str, str]:
  """Puts tables into folders: `(their folder, our folder, table)`."""
  return {
    their_folder + theirs: our_folder + ours
    for their_folder, our_folder, names in folders
    for theirs, ours in names.items()
  }


def _refuse_others(names: set[str], prefix: str | None) -> None:
  for pattern, what in (
    ('conv_root/kernel', 'a hybrid of ResNet and ViT'),
    ('stem/kernel', 'an MLP-Mixer'),
    ('(resnet/)?root_block/.*', 'a BiT ResNet'),
    ('root/.*', 'a BiT ResNet'),
  ):
    regex = re.compile(f'({"|".join(PREFIXES)}){pattern}')
    if any(map(regex.fullmatch, names)):
      raise UserError(
        f'the file holds {what}, for which there is no reader yet; those for'
        ' Vision Transformers start at embedding/kernel'
      )
  if prefix is None:
    raise UserError(
      'the file does not hold a Vision Transformer of Google: expected'
      ' embedding/kernel, perhaps behind one of'
      f' {", ".join(p for p in PREFIXES if p)}; it has {len(names)} arrays'
      + (f', such as {sorted(names)[:3]}' if names else '')
    )
