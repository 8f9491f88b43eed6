"""Reading and writing of the preprocessor_config.json of Hugging Face."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import evaluation as evaluation_lib, json_fields
from vit_jax.pretrained.evaluation import Evaluation

# Pillow's numbers of its methods.
_METHODS = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'area', None)


_CONFIG = {
  **dict.fromkeys(
    ('do_resize', 'do_center_crop', 'do_normalize'), json_fields.FLAG
  ),
  'image_mean': json_fields.CHANNELS,
  'image_std': json_fields.POSITIVE_CHANNELS,
  'size': json_fields.Kind(
    'a number of pixels, or height and width, or shortest_edge',
    lambda v: _is_size(v, ('shortest_edge',), ('longest_edge',)),
  ),
  'crop_size': json_fields.Kind(
    'a number of pixels, or height and width', lambda v: _is_size(v)
  ),
  'resample': json_fields.Kind(
    f'a number of 0 to {len(_METHODS) - 1}',
    lambda v: type(v) is int and 0 <= v < len(_METHODS),
  ),
}


def read(config: Mapping[str, Any], *, channels: int = 3) -> Evaluation:
  """Returns what a preprocessor_config.json says, of any of its ages.

  Raises:
    UserError: values that no such file has.
  """
  json_fields.check(config, _CONFIG, 'preprocessor_config.json')
  fields = {}
  if config.get('do_normalize') is not False and config.get('image_mean'):
    mean, std = config['image_mean'], config.get('image_std')
    sizes = {np.size(mean), np.size(std)}
    if std is None or not sizes <= {1, channels}:
      raise UserError(
        f'preprocessor_config.json: image_mean={mean} and image_std={std} must'
        f' have a number for each of {channels} channels'
      )
    fields = dict(mean=mean, std=std)
  size = config.get('size')
  if json_fields.SIDE_OR_SIDES.fits(size):
    # Before transformers 4.26: both sides, or the shorter if there is a crop.
    both = not config.get('do_center_crop') or not isinstance(size, int)
    height, width = evaluation_lib.pair(size)
    size = dict(height=height, width=width)
    size = size if both else dict(shortest_edge=height)
  resample = config.get('resample')
  method = _METHODS[2 if resample is None else resample]
  if method and size and config.get('do_resize') is not False:
    if 'longest_edge' not in size:
      side = size.get('shortest_edge')
      fields['resize'] = side or (size['height'], size['width'])
      fields['method'] = method
  if config.get('do_center_crop') and config.get('crop_size'):
    crop = config['crop_size']
    if isinstance(crop, Mapping):
      crop = (crop['height'], crop['width'])
    fields['crop'] = evaluation_lib.pair(crop)
  return Evaluation(**fields)


def _is_size(value: Any, *others: tuple[str, ...]) -> bool:
  """Whether a size is one of those that the versions of transformers wrote."""
  if not isinstance(value, Mapping):
    return json_fields.SIDE_OR_SIDES.fits(value)
  return any(
    set(keys) <= set(value)
    and all(json_fields.SIDE.fits(value[key]) for key in keys)
    for keys in (('height', 'width'), *others)
  )


def write(
  preprocess: Mapping[str, Any], channels: int, image_size: tuple[int, int]
) -> dict[str, Any]:
  """Returns the preprocessor_config.json for our evaluation ops.

  Raises:
    UserError: ops that it cannot express.
  """
  evaluation = evaluation_lib.from_ops(preprocess)
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
