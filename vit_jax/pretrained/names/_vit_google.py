"""Google's names for a ViT, in the files of vision_transformer and big_vision.

Neither file format says what a model computes, so that their code
(`models_vit.py`, `models/vit.py`) computes what it always does.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import model_section, presets
from vit_jax.pretrained.names._dialect import Dialect
from vit_jax.pretrained.names._vit_arrays import with_positions
from vit_jax.pretrained.weights import Weights

# In this order: a file with optimizer state has other names outside of these.
PREFIXES = ('params/img/', 'params/', 'opt/target/', 'img/', '')
POSITIONS = (
  'Transformer/posembed_input/pos_embedding',  # vision_transformer
  'Transformer/pos_embedding',  # big_vision before 2022
  'pos_embedding',  # big_vision
)
# What both code bases compute: flax's defaults.
COMPUTED = {'activation': 'gelu_tanh', 'norm_epsilon': 1e-6}
FIXED = {'position': 'sincos2d'}  # Without a table of positions.
_IMAGE_SIZE = (224, 224)  # Of models without a position table.
# Numbers of attention, second norm and MLP.
_NUMBERS = {'pre_linen': (1, 2, 3), 'linen': (0, 1, 0)}


@dataclasses.dataclass(frozen=True)
class Style:
  """Naming of the leaves in a file.

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

  @property
  def name(self) -> str:
    """The name of the most similar one of STYLES."""
    return self.numbering if self.position == POSITIONS[0] else 'big_vision'

  @property
  def is_contrastive(self) -> bool:
    """Whether the image tower of a contrastive model is read."""
    return self.prefix.endswith('img/')

  def dialect(self) -> Dialect:
    """Returns the names of all that a ViT can have.

    State of the training may be beside them, and beside an image tower the text
    tower and the scalars of a contrastive model.
    """
    other = rf'(?!{re.escape(self.prefix)})' if self.prefix else ''
    unused = (rf'{other}(opt|states?|chrono|extra)/.*',)
    if self.is_contrastive:
      unused += (rf'{other}(params/)?(txt/.*|t|b)',)
    block, our_block = 'encoderblock_*', 'block_*'
    if self.stacked:
      block, our_block = 'encoderblock', 'blocks'
    block, our_block = f'Transformer/{block}/', f'encoder/{our_block}/'
    head = self.map_head
    layers = {
      'embedding': 'patch_embedding',
      f'{block}LayerNorm_0': f'{our_block}norm_attention',
      **_parts(block, our_block, 'norm_mlp', *_NUMBERS[self.numbering]),
      'Transformer/encoder_norm': 'encoder/norm',
      **_parts(head, 'pooling/', 'norm', 0, 0, 0),
      'pre_logits': 'representation',
    }
    return Dialect(
      name='google',
      layers={self.prefix + theirs: ours for theirs, ours in layers.items()},
      leaves={f'{self.prefix}{head}probe': 'pooling/probe'},
      class_token=f'{self.prefix}cls',
      position=self.prefix + self.position,
      position_rows='class' if self.class_row else 'all',
      head=f'{self.prefix}head',
      layout='flax',
      stacked=self.stacked,
      unused=unused,
    )


STYLES = {
  'pre_linen': Style(
    numbering='pre_linen', position=POSITIONS[0], class_row=True
  ),
  'linen': Style(position=POSITIONS[0], class_row=True),
  'big_vision': Style(prefix='params/'),
}


def detect(names: Iterable[str]) -> Style | None:
  """Returns how a file names its leaves; None if it is not a ViT of Google's.

  Where both are possible, `class_row` is False: only shapes show it.
  """
  names = set(names)
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
  prefix = next((p for p in PREFIXES if f'{p}embedding/kernel' in names), None)
  if prefix is None:
    return None
  inside = {n.removeprefix(prefix) for n in names if n.startswith(prefix)}
  old = re.compile(
    r'Transformer/encoderblock_\d+/'
    '(MultiHeadDotProductAttention_1|LayerNorm_2|MlpBlock_3)/.*'
  )
  position = next((p for p in POSITIONS if p in inside), POSITIONS[-1])
  return Style(
    prefix=prefix,
    numbering='pre_linen' if any(map(old.fullmatch, inside)) else 'linen',
    position=position,
    # In vision_transformer's place the row is always there.
    class_row=position == POSITIONS[0] and 'cls' in inside,
    map_head='' if 'probe' in inside else 'MAPHead_0/',
    stacked=any(n.startswith('Transformer/encoderblock/') for n in inside),
  )


def prepare(
  weights: Weights,
  model: vit.ViT,
  dialect: str | None,
  *,
  allow_note_only: bool,
) -> tuple[Style, dict[str, np.ndarray], dict[str, Any]]:
  """Returns the style to write, our arrays, and fields of the model.

  Without a dialect it is that in which they were read, or else that of timm. A
  fixed position table is among the arrays, unless it is big_vision's in a file
  of big_vision.
  """
  if dialect is None:
    dialect = 'big_vision' if model.pooling == 'map' else 'pre_linen'
    read = weights.source.get('dialect')
    if weights.source.get('format') == 'google_npz' and isinstance(read, str):
      dialect = read
  if dialect not in STYLES:
    raise UserError(
      f'unknown dialect {dialect!r}; there are {", ".join(STYLES)}'
    )
  style = STYLES[dialect]
  _check_writable(model, style, allow_note_only)
  named = dict(weights.params)
  if 'class_token' not in named:
    style = dataclasses.replace(style, class_row=False)
  fields = (*model.FIELDS['computes'], *model.FIELDS['structure'])
  computed = {key: getattr(model, key) for key in fields}
  if 'position_embedding' not in named:
    if {'position': model.position} != FIXED or style.position != POSITIONS[-1]:
      named = with_positions(weights, model)
      computed['position'] = 'learned'
  return style, named, computed


def _check_writable(
  model: vit.ViT, style: Style, allow_note_only: bool
) -> None:
  """Raises UserError for a model that Google's code does not have."""
  problems = []
  if model.stem is not None:
    problems.append("stem='conv': Google's ViT has no convolutional stem")
  if model.pooling == 'map' and style.position == POSITIONS[0]:
    problems.append(
      "pooling='map', which vision_transformer does not have and would ignore"
      " without an error (big_vision has it: format='big_vision_npz')"
    )
  if not model.qkv_bias:
    problems.append('qkv_bias=False, where Google always has biases')
  noted = [
    f'{key}={getattr(model, key)!r}, where Google computes {value!r}'
    for key, value in COMPUTED.items()
    if getattr(model, key) != value
  ]
  if problems:
    raise UserError(
      f"Google's .npz cannot express {'; '.join(problems + noted)}. Write"
      ' another format, such as .safetensors'
    )
  if noted and not allow_note_only:
    raise UserError(
      f"Google's .npz cannot express {'; '.join(noted)}: their code would give"
      ' other outputs without an error. Write another format, such as'
      ' .safetensors, or, for readers that take the note of vit_jax, say'
      ' allow_note_only=True (--allow_note_only)'
    )


def evaluation(style: Style, named: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns how the code base evaluates, as `Weights.preprocess`.

  Of big_vision, contrastive models are evaluated as SigLIP.
  """
  is_old = style.position != POSITIONS[-1]
  family = 'vision_transformer' if is_old else 'big_vision'
  family = 'siglip' if style.is_contrastive else family
  size = model_section.image_size(named) or _IMAGE_SIZE
  channels = model_section.num_channels(named)
  ops = presets.preprocess(family, size, channels=channels)
  return dict(image_size=size, **ops)


def _parts(theirs, ours, our_norm, attention, norm, mlp) -> dict[str, str]:
  layers = {
    f'MultiHeadDotProductAttention_{attention}/{part}': f'attention/{part}'
    for part in ('query', 'key', 'value', 'out')
  } | {
    f'LayerNorm_{norm}': our_norm,
    f'MlpBlock_{mlp}/Dense_0': 'mlp/up',
    f'MlpBlock_{mlp}/Dense_1': 'mlp/down',
  }
  return {theirs + k: ours + v for k, v in layers.items()}
