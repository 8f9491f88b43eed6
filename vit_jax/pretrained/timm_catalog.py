"""timm's names of models, with the weights that timm takes by default.

timm calls weights `<architecture>.<tag>` and keeps them on the Hugging Face Hub
as `timm/<architecture>.<tag>`. Without a tag it takes the first that it lists:
the table here, of timm 1.0.31 (`models/vision_transformer.py`, `deit.py`). It
has the architectures with weights that `models/vit.py` can be; with its tag any
other can be tried.
"""

import re

_AUGREG = 'augreg_in21k_ft_in1k'
_SIGLIP = 'v2_webli'

DEFAULT_TAGS = {
  'vit_tiny_patch16_224': _AUGREG,
  'vit_tiny_patch16_384': _AUGREG,
  'vit_small_patch32_224': _AUGREG,
  'vit_small_patch32_384': _AUGREG,
  'vit_small_patch16_224': _AUGREG,
  'vit_small_patch16_384': _AUGREG,
  'vit_small_patch8_224': 'dino',
  'vit_base_patch32_224': _AUGREG,
  'vit_base_patch32_384': _AUGREG,
  'vit_base_patch16_224': 'augreg2_in21k_ft_in1k',
  'vit_base_patch16_384': _AUGREG,
  'vit_base_patch8_224': 'augreg2_in21k_ft_in1k',
  'vit_large_patch32_224': 'orig_in21k',
  'vit_large_patch32_384': 'orig_in21k_ft_in1k',
  'vit_large_patch16_224': _AUGREG,
  'vit_large_patch16_384': _AUGREG,
  'vit_huge_patch14_224': 'orig_in21k',
  'vit_base_patch16_224_miil': 'in21k',
  'vit_small_patch14_dinov2': 'lvd142m',
  'vit_base_patch14_dinov2': 'lvd142m',
  'vit_large_patch14_dinov2': 'lvd142m',
  'vit_small_patch14_reg4_dinov2': 'lvd142m',
  'vit_base_patch14_reg4_dinov2': 'lvd142m',
  'vit_large_patch14_reg4_dinov2': 'lvd142m',
  'vit_base_patch16_siglip_224': _SIGLIP,
  'vit_base_patch16_siglip_256': _SIGLIP,
  'vit_base_patch16_siglip_384': _SIGLIP,
  'vit_base_patch16_siglip_512': _SIGLIP,
  'vit_large_patch16_siglip_256': _SIGLIP,
  'vit_large_patch16_siglip_384': _SIGLIP,
  'vit_large_patch16_siglip_512': _SIGLIP,
  'vit_so400m_patch14_siglip_224': _SIGLIP,
  'vit_so400m_patch14_siglip_384': 'webli',
  'deit_tiny_patch16_224': 'fb_in1k',
  'deit_small_patch16_224': 'fb_in1k',
  'deit_base_patch16_224': 'fb_in1k',
  'deit_base_patch16_384': 'fb_in1k',
  'deit3_small_patch16_224': 'fb_in1k',
  'deit3_small_patch16_384': 'fb_in1k',
  'deit3_medium_patch16_224': 'fb_in1k',
  'deit3_base_patch16_224': 'fb_in1k',
  'deit3_base_patch16_384': 'fb_in1k',
  'deit3_large_patch16_224': 'fb_in1k',
  'deit3_large_patch16_384': 'fb_in1k',
  'deit3_huge_patch14_224': 'fb_in1k',
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


def refusal(name: str) -> str | None:
  """Returns why weights of timm cannot be loaded, None if they may be.

  Args:
    name: with or without its tag, and with or without 'timm/'.
  """
  architecture, _, tag = name.removeprefix('timm/').partition('.')
  if tag in _FILE_SUFFIXES:
    return None
  for pattern, lacking in _OTHER_MODELS.items():
    if re.fullmatch(pattern, architecture):
      return f'models/vit.py does not have {lacking}'
  return None


def resolve(name: str) -> str | None:
  """Returns '<architecture>.<tag>' for a name of timm, None for another.

  Args:
    name: with or without its tag, and with or without 'timm/'.
  """
  name = name.removeprefix('timm/')
  if name in DEFAULT_TAGS:
    return f'{name}.{DEFAULT_TAGS[name]}'
  tagged = re.fullmatch(r'(vit|deit3?)_[a-z0-9_]+\.([a-z0-9_]+)', name)
  is_file = tagged and tagged[2] in _FILE_SUFFIXES
  return name if tagged and not is_file else None
