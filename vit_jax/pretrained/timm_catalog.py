"""timm's names of models, with the weights that timm takes by default.

timm calls weights `<architecture>.<tag>` and keeps them on the Hugging Face Hub
as `timm/<architecture>.<tag>`. Without a tag it takes the first that it lists:
timm_catalog.txt, of timm 1.0.31 (`models/vision_transformer.py`, `deit.py`). It
has the architectures with weights that `models/vit.py` can be; with its tag any
other can be tried.
"""

import pathlib
import re

_LINES = pathlib.Path(__file__).with_suffix('.txt').read_text().splitlines()
DEFAULT_TAGS: dict[str, str] = dict(
  line.split('.') for line in _LINES if line[:1].isalpha()
)

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


def refusal(name: str) -> str | None:
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


def resolve(name: str) -> str | None:
  """Returns '<architecture>.<tag>' for a name of timm, None for another."""
  name = name.removeprefix('timm/')
  if name in DEFAULT_TAGS:
    return f'{name}.{DEFAULT_TAGS[name]}'
  tagged = re.fullmatch(r'(vit|deit3?)_[a-z0-9_]+\.([a-z0-9_]+)', name)
  is_file = tagged and tagged[2] in _FILE_SUFFIXES
  return name if tagged and not is_file else None
