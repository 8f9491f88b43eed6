"""Evaluation presets of the families of published models.

What is published beside weights (accuracies) was measured so; another crop
moves top-1 by some tenths of a percent. Recipes say the same in their own
words; `tests/pretrained/test_presets.py` compares them with this table, and
docs/augmentations.md prints it.
"""

from typing import NamedTuple

from vit_jax.errors import UserError


class Preset(NamedTuple):
  """Preparation of an image for a family of models.

  Attributes:
    crop_ratio: side of the crop / shorter side of the resized image; None
      resizes both sides to the crop's, whatever the aspect ratio was.
    method: of resizing, as in `data/ops/resize.py`.
    normalize: arguments of the device op of that name.
    rules: of whom. 'torch' rounds sizes and margins as torchvision.
      'tensorflow' rounds them as TensorFlow, decodes JPEGs as it does by
      default, and antialiases no squeezed image. 'big_vision' does that and
      cuts resized images to whole levels.
  """

  crop_ratio: float | None
  method: str
  normalize: str
  rules: str


PRESETS = {
  # google-research/vision_transformer
  'vision_transformer': Preset(None, 'bilinear', '-1, 1', 'tensorflow'),
  # google-research/big_vision: SigLIP 1 and 2; classifiers
  'siglip': Preset(None, 'bilinear', '-1, 1', 'big_vision'),
  'big_vision': Preset(0.875, 'area', '-1, 1', 'big_vision'),
  # facebookresearch/deit: DeiT; DeiT III
  'deit': Preset(0.875, 'bicubic', "'imagenet'", 'torch'),
  'deit3': Preset(1.0, 'bicubic', "'imagenet'", 'torch'),
  # facebookresearch/dino; DINOv2's models in timm, at 518
  'dino': Preset(0.875, 'bicubic', "'imagenet'", 'torch'),
  'dinov2': Preset(1.0, 'bicubic', "'imagenet'", 'torch'),
  # facebookresearch/mae, up to 224
  'mae': Preset(0.875, 'bicubic', "'imagenet'", 'torch'),
}


def preprocess(
  family: str, size: int | tuple[int, int], *, channels: int = 3
) -> dict[str, str]:
  """Returns 'ops' and 'device_ops' of evaluation at `size` pixels.

  `preprocess('deit', 224)` resizes the shorter side to 256 and crops 224.

  Args:
    family: a key of PRESETS.
    size: of the images that the model takes, a side or (height, width).
    channels: of these images.

  Raises:
    UserError: an unknown family.
  """
  if family not in PRESETS:
    raise UserError(f'unknown family {family!r}; there are {list(PRESETS)}')
  preset = PRESETS[family]
  method = f', method={preset.method!r}'
  if preset.method == 'bilinear':
    method = ''  # The ops' default.
  # Images have three channels unless `decode` says otherwise.
  arguments = [str(channels)] * (channels in (1, 4))
  arguments += ["dct='fast'"] * (preset.rules != 'torch')
  decode = f'decode({", ".join(arguments)})' if arguments else 'decode'
  height, width = size if isinstance(size, tuple) else (size, size)
  short, size = min(height, width), height if height == width else size
  cut = ', truncate=True' if preset.rules == 'big_vision' else ''
  if preset.crop_ratio is None:
    antialias = '' if preset.rules == 'torch' else ', antialias=False'
    ops = f'{decode}|resize({size}{method}{antialias}{cut})'
  else:
    resized, down, even = round(short / preset.crop_ratio), '', ''
    if preset.rules == 'torch':
      resized = int(short / preset.crop_ratio)
      down, even = ", rounding='down'", ", rounding='even'"
    ops = (
      f'{decode}|resize_small({resized}{method}{down}{cut})'
      f'|central_crop({size}{even})'
    )
  return dict(ops=ops, device_ops=f'normalize({preset.normalize})')
