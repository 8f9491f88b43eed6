"""Folders of timm, written; `state_dict` reads them.

With the preprocessing in their config.json, which is the same for all models.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.pretrained import (
  evaluation as evaluation_lib,
  json_fields,
  model_section,
)
from vit_jax.pretrained.evaluation import Evaluation
from vit_jax.pretrained.formats import state_dict
from vit_jax.pretrained.weights import Weights

_KINDS = {
  **dict.fromkeys(('crop_mode', 'interpolation'), json_fields.TEXT),
  'input_size': json_fields.Kind(
    '[channels, height, width]',
    lambda v: (
      json_fields.list_of(json_fields.SIZE.fits, 3)(v)
      and json_fields.SIDES.fits(v[1:])
    ),
  ),
  'crop_pct': json_fields.POSITIVE,
  'mean': json_fields.CHANNELS,
  'std': json_fields.POSITIVE_CHANNELS,
}


def write(weights: Weights, path: str | os.PathLike) -> None:
  """Writes weights so that timm builds the same model.

  `timm.create_model('local-dir:<folder>', pretrained=True)` takes the folder.
  Preprocessing is written where it is known, but for antialiasing, which timm
  always does.

  Args:
    weights: of a model with a file in `names/`.
    path: of a folder, or of a single file if it ends in .safetensors.

  Raises:
    UserError: timm has no such model, or it cannot be written.
  """
  names, model = model_section.to_write(weights, 'timm')
  state_dict.write_files(path, *names.timm.write(weights, model))


def read_preprocessing(config: Mapping[str, Any]) -> dict[str, str]:
  """Returns the ops of the transform that timm makes of a pretrained_cfg.

  Raises:
    UserError: values that no such file has.
  """
  json_fields.check(config, _KINDS, 'the preprocessing in config.json')
  return evaluation_lib.to_ops(_evaluation(config))


def write_preprocessing(
  preprocess: Mapping[str, Any], channels: int, image_size: tuple[int, int]
) -> dict[str, Any]:
  """Returns the keys of a pretrained_cfg for our evaluation ops.

  Raises:
    UserError: ops that timm cannot express.
  """
  evaluation = evaluation_lib.from_ops(preprocess)
  config = dict(input_size=[channels, *image_size])
  if 'ops' in preprocess:
    resize = evaluation.resize or image_size
    large = evaluation_lib.pair(resize)
    crop = evaluation.crop or large
    methods = {ours: name for name, ours in evaluation_lib.METHODS.items()}
    config |= dict(
      interpolation=methods[evaluation.method],
      crop_pct=_share(crop[0], large[0]),
      crop_mode='center' if isinstance(resize, int) else 'squash',
    )
    back = _evaluation(config)
    crop_alone = evaluation.crop and not evaluation.resize
    if crop_alone or (back.resize, back.crop) != (resize, crop):
      raise UserError(
        f'timm cannot make images of {image_size[0]}x{image_size[1]} as'
        f' {preprocess["ops"]!r} does: give other evaluation ops, or none, with'
        ' dataclasses.replace(weights, preprocess=...)'
      )
  return config | json_fields.statistics(evaluation, channels)


def _evaluation(config: Mapping[str, Any]) -> Evaluation:
  normalize = Evaluation(mean=config.get('mean'), std=config.get('std'))
  size, share = config.get('input_size'), config.get('crop_pct')
  mode = config.get('crop_mode') or 'center'
  method = evaluation_lib.METHODS.get(config.get('interpolation', 'bicubic'))
  if None in (size, share, method) or mode not in ('center', 'squash'):
    return normalize
  crop = tuple(size[-2:])
  if mode == 'center' and crop[0] != crop[1]:
    return normalize  # timm fits the sides, no op of ours does.
  large = tuple(math.floor(side / share) for side in crop)
  return dataclasses.replace(
    normalize,
    resize=large[0] if mode == 'center' else large,
    crop=crop,
    method=method,
    crop_rounding='even',
  )


def _share(crop: int, large: int) -> float:
  """Returns the shortest p with floor(crop / p) == large, as timm computes."""
  for digits in range(1, 17):
    share = round(crop / large, digits)
    if share and math.floor(crop / share) == large:
      return share
  return crop / large
