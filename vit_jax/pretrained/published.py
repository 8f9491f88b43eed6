"""Published weights by short names: addresses, models, preprocessing.

The list is in published.txt. Addresses are those in the projects' own lists;
none was tried here. Checksums are what was published: nothing for Google's
files and the hub, the start of a SHA-256 in DeiT's file names, the start of an
MD5 in MAE's README.

timm calls weights `<architecture>.<tag>` and keeps them on the Hugging Face Hub
as `timm/<architecture>.<tag>`. timm_catalog.txt has the tag that it takes where
none is given, of timm 1.0.31 (`models/vision_transformer.py`, `deit.py`), for
the architectures that `models/vit.py` can be; with its tag any can be tried.

The MAE weights are licensed CC-BY-NC 4.0, not for commercial use.
"""

import dataclasses
import pathlib
import re
from typing import Any

from vit_jax.pretrained import presets
from vit_jax.pretrained.download import Remote

# Where AugReg's 52,268 checkpoints are (https://arxiv.org/abs/2106.10270), each
# named after its recipe, with that of the fine-tuning after `--`.
AUGREG = 'gs://vit_models/augreg/'
_FLOAT = r'\d+(?:\.\d+)?(?:e-?\d+)?'
_AUGREG_NAME = re.compile(
  rf'[A-Za-z0-9_]+-[a-z0-9_]+-\d+ep-lr_{_FLOAT}-aug_[a-z]+\d?-wd_{_FLOAT}'
  rf'-do_{_FLOAT}-sd_{_FLOAT}'
  rf'(--[a-z0-9_]+-steps_\d+k-lr_{_FLOAT}-res_\d+)?(\.npz)?'
)
_GOOGLE = 'https://storage.googleapis.com/'
_META = 'https://dl.fbaipublicfiles.com/'
_TANH = dict(activation='gelu_tanh', norm_epsilon=1e-6)
_EXACT = dict(activation='gelu', norm_epsilon=1e-6)
_SCALED = dict(layer_scale=1e-5, **_EXACT)
# Of a family: its preset, its way to resize positions, its model sections.
_FAMILIES: dict[str, tuple[str | None, str, dict[str, Any]]] = {
  # What the README of vision_transformer recommends.
  'augreg': ('vision_transformer', 'google', _TANH),
  # "An Image is Worth 16x16 Words", and the models trained with SAM.
  'vit': ('vision_transformer', 'google', _TANH),
  'sam': ('vision_transformer', 'google', _TANH),
  # The S/16 baseline (https://arxiv.org/abs/2205.01580), evaluated as the
  # reader says of big_vision, and SigLIP.
  'bv': (None, 'google', dict(pooling='mean', position='sincos2d', **_TANH)),
  'siglip': ('siglip', 'google', dict(pooling='map', **_TANH)),
  'siglip2': ('siglip', 'google', dict(pooling='map', **_TANH)),
  'dino': ('dino', 'dino', _EXACT),
  'dinov2': ('dinov2', 'dino', _SCALED),
  # With registers it was antialiased and without the offset.
  'dinov2reg': ('dinov2', 'timm', dict(num_registers=4, **_SCALED)),
  'deit': ('deit', 'torch', _EXACT),
  'deit3': ('deit3', 'torch', _SCALED),
  'mae': ('mae', 'torch', _EXACT),
}

# What `models/vit.py` does not have, by what timm calls the architecture.
_OTHER_MODELS = {
  r'vit_\w+_clip_\w+': "CLIP's norm before the first block",
  r'beit(v2)?_\w+': "BEiT's relative positions",
  r'beit3_\w+': "BEiT-3's norms inside attention and MLP",
  r'eva(02)?_\w+': "EVA's rotary positions, gated MLPs and attention",
  r'deit_\w+_distilled_\w+': "DeiT's distillation token",
  r'vit_s?relpos_\w+': 'relative positions',
  r'vit_\w+_(rope|dinov3)\w*': 'rotary positions',
  r'vit_giant_patch14_(reg4_)?dinov2': 'gated MLPs',
}
_FILE_SUFFIXES = ('npz', 'safetensors', 'pth', 'pt', 'bin')


@dataclasses.dataclass(frozen=True)
class Published:
  """Weights that someone published.

  Attributes:
    remotes: where they are; the same weights each, the preferred first.
    model: the model section; the file is checked to be of it.
    preprocess: as in `weights.Weights`, where the file does not have it.
    resize: of `models._position.RESIZE`.
  """

  remotes: tuple[Remote, ...]
  model: dict[str, Any]
  preprocess: dict[str, Any]
  resize: str


def is_augreg_name(name: str) -> bool:
  """Whether a name, with or without .npz, is that of an AugReg checkpoint."""
  return _AUGREG_NAME.fullmatch(name) is not None


def timm_refusal(name: str) -> str | None:
  """Returns why weights of timm cannot be loaded, None if they may be.

  With or without a tag, and with or without 'timm/'.
  """
  architecture, _, tag = name.removeprefix('timm/').partition('.')
  if tag in _FILE_SUFFIXES:
    return None
  for pattern, lacking in _OTHER_MODELS.items():
    if re.fullmatch(pattern, architecture):
      return f'models/vit.py does not have {lacking}'
  return None


def timm_name(name: str) -> str | None:
  """Returns '<architecture>.<tag>' for a name of timm, None for another."""
  name = name.removeprefix('timm/')
  if name in DEFAULT_TAGS:
    return f'{name}.{DEFAULT_TAGS[name]}'
  tagged = re.fullmatch(r'(vit|deit3?)_[a-z0-9_]+\.([a-z0-9_]+)', name)
  is_file = tagged and tagged[2] in _FILE_SUFFIXES
  return name if tagged and not is_file else None


def _published(
  name: str, classes: str, size: str, copy: str, file: str, more: str = ''
) -> Published:
  """Returns the weights of a line in published.txt."""
  family, variant = name.split('-')[:2]
  preset, resize, fields = _FAMILIES[family]
  model = dict(
    name='vit',
    variant=variant,
    num_classes=None if classes == '-' else int(classes),
    pooling='token',
  )
  key, is_field, value = more.partition('=')
  if is_field:
    model[key] = int(value)
  checksum = None if is_field else more or None
  copies = (
    () if copy == '-' else (Remote(f'hf://timm/{copy}/model.safetensors'),)
  )
  if resize == 'google':
    # Files of other folders share their names: they keep the folder.
    folder, _, path = file.partition('/')
    keeps = folder == 'vit_models' and not path.startswith('augreg/')
    remotes = (Remote(_GOOGLE + file, name=path if keeps else None), *copies)
  else:
    remotes = (*copies, Remote(_META + file, checksum))
  return Published(
    remotes=remotes,
    model=model | fields,
    preprocess=presets.preprocess(preset, int(size)) if preset else {},
    resize=resize,
  )


def _lines(file: str) -> list[str]:
  text = pathlib.Path(__file__).with_name(file).read_text()
  return [line for line in text.splitlines() if line[:1].isalpha()]


PUBLISHED = {
  line.split()[0]: _published(*line.split()) for line in _lines('published.txt')
}
DEFAULT_TAGS: dict[str, str] = dict(
  line.split('.') for line in _lines('timm_catalog.txt')
)
