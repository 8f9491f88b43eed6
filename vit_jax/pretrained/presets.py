"""How each family of models is evaluated: one table.

What is published beside weights (accuracies) was measured so; another crop
moves top-1 by some tenths of a percent. Recipes say the same in their own
words; `tests/pretrained/test_presets.py` compares them with this table, and
docs/augmentations.md prints it.
"""

import dataclasses

from vit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preset:
  """How an image becomes what a model takes.

  Attributes:
    crop_ratio: side of the crop / shorter side of the resized image; None
      resizes both sides to the crop's, whatever the aspect ratio was.
    method: of resizing, as in `data/ops/resize.py`.
    normalize: arguments of the device op of that name.
    rules: of whom. 'torch' rounds sizes and margins as torchvision.
      'tensorflow' rounds them as TensorFlow, decodes JPEGs as it does by
      default, and antialiases no squeezed image. 'big_vision' does that and
      cuts resized images to whole levels.
    source: where it is said.
  """

  crop_ratio: float | None
  method: str
  normalize: str
  rules: str
  source: str


_RANGE = '-1, 1'
_IMAGENET = "'imagenet'"
_CLIP = "'clip'"
_TORCH, _TENSORFLOW, _BIG_VISION = 'torch', 'tensorflow', 'big_vision'

PRESETS = {
  'vision_transformer': Preset(
    None, 'bilinear', _RANGE, _TENSORFLOW, 'google-research/vision_transformer'
  ),
  'siglip': Preset(
    None,
    'bilinear',
    _RANGE,
    _BIG_VISION,
    'google-research/big_vision, SigLIP 1, 2',
  ),
  'big_vision': Preset(
    0.875,
    'area',
    _RANGE,
    _BIG_VISION,
    'google-research/big_vision, classifiers',
  ),
  'deit': Preset(
    0.875, 'bicubic', _IMAGENET, _TORCH, 'facebookresearch/deit, DeiT'
  ),
  'deit3': Preset(
    1.0, 'bicubic', _IMAGENET, _TORCH, 'facebookresearch/deit, DeiT III'
  ),
  'dino': Preset(0.875, 'bicubic', _IMAGENET, _TORCH, 'facebookresearch/dino'),
  'dinov2': Preset(
    1.0, 'bicubic', _IMAGENET, _TORCH, "DINOv2's models in timm, at 518"
  ),
  'mae': Preset(
    0.875, 'bicubic', _IMAGENET, _TORCH, 'facebookresearch/mae, up to 224'
  ),
  'mae-448': Preset(
    1.0, 'bicubic', _IMAGENET, _TORCH, 'facebookresearch/mae, above 224'
  ),
  'clip': Preset(1.0, 'bicubic', _CLIP, _TORCH, 'openai/CLIP'),
  'timm-augreg-224': Preset(
    0.9, 'bicubic', _RANGE, _TORCH, 'timm, ViT from AugReg at 224'
  ),
  'timm-augreg-384': Preset(
    1.0, 'bicubic', _RANGE, _TORCH, 'timm, ViT from AugReg at 384'
  ),
  'timm-deit-224': Preset(
    0.9, 'bicubic', _IMAGENET, _TORCH, 'timm, DeiT and DeiT III, both 1k, 224'
  ),
  'timm-deit-384': Preset(
    1.0, 'bicubic', _IMAGENET, _TORCH, 'timm, DeiT and DeiT III at 384'
  ),
  'timm-deit3-in22k': Preset(
    1.0, 'bicubic', _IMAGENET, _TORCH, 'timm, DeiT III from ImageNet-22k'
  ),
  'timm-mixer': Preset(
    0.875, 'bicubic', _RANGE, _TORCH, 'timm, Mixer from ImageNet-21k'
  ),
  'timm-flexivit': Preset(
    0.95, 'bicubic', _RANGE, _TORCH, 'timm, FlexiViT and its small ViTs'
  ),
  'timm-miil': Preset(
    0.875, 'bilinear', '0, 1', _TORCH, 'timm, ViT from ImageNet-21k-P (MIIL)'
  ),
}


def preprocess(family: str, size: int) -> dict[str, str]:
  """Returns 'ops' and 'device_ops' of evaluation at `size` pixels.

  `preprocess('deit', 224)` resizes the shorter side to 256 and crops 224.

  Raises:
    UserError: an unknown family.
  """
  if family not in PRESETS:
    raise UserError(f'unknown family {family!r}; there are {list(PRESETS)}')
  preset = PRESETS[family]
  method = f', method={preset.method!r}'
  if preset.method == 'bilinear':
    method = ''  # The ops' default.
  decode = 'decode' if preset.rules == _TORCH else "decode(dct='fast')"
  cut = ', truncate=True' if preset.rules == _BIG_VISION else ''
  if preset.crop_ratio is None:
    antialias = '' if preset.rules == _TORCH else ', antialias=False'
    ops = f'{decode}|resize({size}{method}{antialias}{cut})'
  else:
    resized, down, even = round(size / preset.crop_ratio), '', ''
    if preset.rules == _TORCH:
      resized = int(size / preset.crop_ratio)
      down, even = ", rounding='down'", ", rounding='even'"
    ops = (
      f'{decode}|resize_small({resized}{method}{down}{cut})'
      f'|central_crop({size}{even})'
    )
  return dict(ops=ops, device_ops=f'normalize({preset.normalize})')
