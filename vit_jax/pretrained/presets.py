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
    torch: whether sizes and margins are rounded as torchvision does; otherwise
      as TensorFlow, and then a squeezed image is not antialiased.
    source: where it is said.
  """

  crop_ratio: float | None
  method: str
  normalize: str
  torch: bool
  source: str


_RANGE = '-1, 1'
_IMAGENET = "'imagenet'"
_CLIP = "'clip'"

PRESETS = {
  'vision_transformer': Preset(
    None, 'bilinear', _RANGE, False, 'google-research/vision_transformer'
  ),
  'siglip': Preset(
    None, 'bilinear', _RANGE, False, 'google-research/big_vision, SigLIP 1, 2'
  ),
  'big_vision': Preset(
    0.875, 'area', _RANGE, False, 'google-research/big_vision, classifiers'
  ),
  'deit': Preset(
    0.875, 'bicubic', _IMAGENET, True, 'facebookresearch/deit, DeiT'
  ),
  'deit3': Preset(
    1.0, 'bicubic', _IMAGENET, True, 'facebookresearch/deit, DeiT III'
  ),
  'dino': Preset(0.875, 'bicubic', _IMAGENET, True, 'facebookresearch/dino'),
  'dinov2': Preset(
    1.0, 'bicubic', _IMAGENET, True, "DINOv2's models in timm, at 518"
  ),
  'mae': Preset(
    0.875, 'bicubic', _IMAGENET, True, 'facebookresearch/mae, up to 224'
  ),
  'mae-448': Preset(
    1.0, 'bicubic', _IMAGENET, True, 'facebookresearch/mae, above 224'
  ),
  'clip': Preset(1.0, 'bicubic', _CLIP, True, 'openai/CLIP'),
  'timm-augreg-224': Preset(
    0.9, 'bicubic', _RANGE, True, 'timm, ViT from AugReg at 224'
  ),
  'timm-augreg-384': Preset(
    1.0, 'bicubic', _RANGE, True, 'timm, ViT from AugReg at 384'
  ),
  'timm-deit-224': Preset(
    0.9, 'bicubic', _IMAGENET, True, 'timm, DeiT and DeiT III, both 1k, 224'
  ),
  'timm-deit-384': Preset(
    1.0, 'bicubic', _IMAGENET, True, 'timm, DeiT and DeiT III at 384'
  ),
  'timm-deit3-in22k': Preset(
    1.0, 'bicubic', _IMAGENET, True, 'timm, DeiT III from ImageNet-22k'
  ),
  'timm-mixer': Preset(
    0.875, 'bicubic', _RANGE, True, 'timm, Mixer from ImageNet-21k'
  ),
  'timm-flexivit': Preset(
    0.95, 'bicubic', _RANGE, True, 'timm, FlexiViT and its small ViTs'
  ),
  'timm-miil': Preset(
    0.875, 'bilinear', '0, 1', True, 'timm, ViT from ImageNet-21k-P (MIIL)'
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
  if preset.crop_ratio is None:
    antialias = '' if preset.torch else ', antialias=False'
    ops = f'decode|resize({size}{method}{antialias})'
  else:
    resized, down, even = round(size / preset.crop_ratio), '', ''
    if preset.torch:
      resized = int(size / preset.crop_ratio)
      down, even = ", rounding='down'", ", rounding='even'"
    ops = (
      f'decode|resize_small({resized}{method}{down})|central_crop({size}{even})'
    )
  return dict(ops=ops, device_ops=f'normalize({preset.normalize})')
