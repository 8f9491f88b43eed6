"""Folders of Hugging Face's transformers, written; `state_dict` reads them.

With their preprocessor_config.json, which is the same for all models.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained import (
  evaluation as evaluation_lib,
  json_fields,
  model_section,
)
from vit_jax.pretrained.evaluation import Evaluation
from vit_jax.pretrained.formats import state_dict
from vit_jax.pretrained.weights import Weights

# Pillow's numbers of its methods.
_METHODS = ('nearest', 'lanczos', 'bilinear', 'bicubic', 'area', None)
_KINDS = {
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


def write(weights: Weights, path: str | os.PathLike) -> None:
  """Writes weights so that transformers builds the same model.

  `AutoModelForImageClassification.from_pretrained(<folder>)` takes the folder
  (`AutoModel` without a head). Preprocessing is written where it is known, but
  for antialiasing, which transformers always does.

  Args:
    weights: of a model with a file in `names/`.
    path: of a folder, or of a single file if it ends in .safetensors.

  Raises:
    UserError: transformers has no such model, or it cannot be written.
  """
  names, model = model_section.to_write(weights, 'huggingface')
  state_dict.write_files(path, *names.huggingface.write(weights, model))


def read_preprocessor(
  config: Mapping[str, Any], *, channels: int = 3
) -> dict[str, str]:
  """Returns the ops of a preprocessor_config.json, of any of its ages.

  Raises:
    UserError: values that no such file has.
  """
  json_fields.check(config, _KINDS, 'preprocessor_config.json')
  fields = {}
  mean, std = config.get('image_mean'), config.get('image_std')
  if config.get('do_normalize') is not False and mean:
    if std is None or not {np.size(mean), np.size(std)} <= {1, channels}:
      raise UserError(
        f'preprocessor_config.json: image_mean={mean} and image_std={std} must'
        f' have a number for each of {channels} channels'
      )
    fields = dict(mean=mean, std=std)
  size, crops = config.get('size'), config.get('do_center_crop')
  if json_fields.SIDE_OR_SIDES.fits(size):
    # Before transformers 4.26: both sides, or the shorter if there is a crop.
    height, width = evaluation_lib.pair(size)
    size = dict(height=height, width=width)
    if crops and isinstance(config['size'], int):
      size = dict(shortest_edge=height)
  resample = config.get('resample')
  method = _METHODS[2 if resample is None else resample]
  if method and size and config.get('do_resize') is not False:
    if 'longest_edge' not in size:
      side = size.get('shortest_edge')
      fields['resize'] = side or (size['height'], size['width'])
      fields['method'] = method
  if crops and (crop := config.get('crop_size')):
    if isinstance(crop, Mapping):
      crop = (crop['height'], crop['width'])
    fields['crop'] = evaluation_lib.pair(crop)
  return evaluation_lib.to_ops(Evaluation(**fields))


def write_preprocessor(
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
    image_processor_type='ViTImageProcessor',
    size=_size(resize or image_size),
  )
  for key, value in json_fields.statistics(evaluation, channels).items():
    config[f'image_{key}'] = value
  if isinstance(resize, int) or crop is not None:
    # The one of their processors that crops.
    config['image_processor_type'] = 'BitImageProcessor'
    config['do_center_crop'] = crop is not None
    if crop is not None:
      config['crop_size'] = _size(crop)
  return config


def _is_size(value: Any, *others: tuple[str, ...]) -> bool:
  """Whether a size is one of those that the versions of transformers wrote."""
  if not isinstance(value, Mapping):
    return json_fields.SIDE_OR_SIDES.fits(value)
  return any(
    set(keys) <= set(value)
    and all(json_fields.SIDE.fits(value[key]) for key in keys)
    for keys in (('height', 'width'), *others)
  )


def _size(size: int | tuple[int, int]) -> dict[str, int]:
  if isinstance(size, int):
    return dict(shortest_edge=size)
  return dict(height=size[0], width=size[1])
