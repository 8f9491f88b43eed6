"""The preprocessor_config.json of Hugging Face, in and out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.pretrained import torch_config
from vit_jax.pretrained.torch_config import Evaluation

# Pillow's numbers of its methods.
_METHODS = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'area', None)


def read(config: Mapping[str, Any]) -> Evaluation:
  """Returns what a preprocessor_config.json says, of any of its ages."""
  fields = {}
  if config.get('do_normalize', True) and config.get('image_mean'):
    fields = dict(mean=config['image_mean'], std=config['image_std'])
  size = config.get('size')
  if isinstance(size, int):
    # Before transformers 4.26: both sides, or the shorter if there is a crop.
    both = not config.get('do_center_crop')
    size = dict(height=size, width=size) if both else dict(shortest_edge=size)
  method = _METHODS[config.get('resample', 2)]
  if method and size and config.get('do_resize', True):
    if 'longest_edge' not in size:
      side = size.get('shortest_edge')
      fields['resize'] = side or (size['height'], size['width'])
      fields['method'] = method
  if config.get('do_center_crop') and config.get('crop_size'):
    crop = config['crop_size']
    crop = (crop, crop) if isinstance(crop, int) else crop
    crop = (crop['height'], crop['width']) if isinstance(crop, dict) else crop
    fields['crop'] = tuple(crop)
  return Evaluation(**fields)


def write(
  preprocess: Mapping[str, Any], channels: int, image_size: tuple[int, int]
) -> dict[str, Any]:
  """Returns the preprocessor_config.json for our evaluation ops.

  Raises:
    UserError: ops that it cannot express.
  """
  evaluation = torch_config.from_ops(preprocess)
  resize, crop = evaluation.resize, evaluation.crop
  config = dict(
    do_resize=resize is not None,
    resample=_METHODS.index(evaluation.method),
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=evaluation.mean is not None,
  )
  for key in ('mean', 'std'):
    value = getattr(evaluation, key)
    if value is not None:
      value = [value] * channels if np.ndim(value) == 0 else list(value)
      config[f'image_{key}'] = value
  if isinstance(resize, int) or crop is not None:
    # The one of their processors that crops.
    config['image_processor_type'] = 'BitImageProcessor'
    config['do_center_crop'] = crop is not None
    config['size'] = _size(resize or image_size)
    if crop is not None:
      config['crop_size'] = _size(crop)
  else:
    config['image_processor_type'] = 'ViTImageProcessor'
    config['size'] = _size(resize or image_size)
  return config


def _size(size: int | tuple[int, int]) -> dict[str, int]:
  if isinstance(size, int):
    return dict(shortest_edge=size)
  return dict(height=size[0], width=size[1])
