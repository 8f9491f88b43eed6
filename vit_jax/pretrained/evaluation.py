"""Conversion of evaluation preprocessing between numbers and ops.

The config files beside torch weights have numbers, ours the text of the op
languages (`data/ops_language.py`, `data/device_ops_language.py`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data import ops_language
from vit_jax.data.device_ops.normalize import STATISTICS
from vit_jax.errors import UserError
from vit_jax.pretrained import json_fields

# Of resizing, by Pillow's names, which both sides write.
METHODS = {'box': 'area'} | {
  name: name for name in ('nearest', 'bilinear', 'bicubic', 'lanczos')
}


@dataclasses.dataclass(frozen=True)
class Facts:
  """Facts about weights beyond their arrays.

  Attributes:
    model: fields of `models/vit.ViT`, those that are known.
    image_size: (height, width) that the position table is for, or None.
    preprocess: as in `Weights`.
    class_names: as in `Weights`.
  """

  model: dict[str, Any] = dataclasses.field(default_factory=dict)
  image_size: tuple[int, int] | None = None
  preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
  class_names: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Preparation of an image for a model.

  Attributes:
    resize: to what an image is resized first: the length of the shorter side
      or, as (height, width), both sides whatever the aspect ratio was.
    crop: (height, width) of the centre that is cut out then, or None.
    method: of resizing, as `data/ops/resize.METHODS` has it.
    crop_rounding: of half an odd margin, as `central_crop` has it: 'even' in
      timm, 'down' in Hugging Face. Both round the longer side down.
    mean: per channel or for all, of pixels in 0 .. 1.
    std: likewise.
  """

  resize: int | tuple[int, int] | None = None
  crop: tuple[int, int] | None = None
  method: str = 'bicubic'
  crop_rounding: str = 'down'
  mean: float | Sequence[float] | None = None
  std: float | Sequence[float] | None = None


def to_ops(evaluation: Evaluation) -> dict[str, str]:
  """Returns 'ops' and 'device_ops' as in `Weights.preprocess`, where known.

  Raises:
    UserError: sizes of over `json_fields.MAX_SIDE`, or not as many means as
      standard deviations.
  """
  ops = {}
  sides = [
    side
    for size in (evaluation.resize, evaluation.crop, 1)
    if size is not None
    for side in pair(size)
  ]
  if not 1 <= min(sides) <= max(sides) <= json_fields.MAX_SIDE:
    raise UserError(
      f'the config resizes images to {evaluation.resize} and crops'
      f' {evaluation.crop} pixels; the limit is MAX_SIDE={json_fields.MAX_SIDE}'
    )
  if None not in (evaluation.mean, evaluation.std) and np.shape(
    evaluation.mean
  ) != np.shape(evaluation.std):
    raise UserError(
      f'the config has mean={evaluation.mean} and std={evaluation.std}; give as'
      ' many of one as of the other'
    )
  if evaluation.resize is not None:
    arguments = f'{_text(evaluation.resize)}, method={evaluation.method!r}'
    if isinstance(evaluation.resize, int):
      ops['ops'] = f"decode|resize_small({arguments}, rounding='down')"
    else:
      ops['ops'] = f'decode|resize({arguments})'
    if evaluation.crop not in (None, evaluation.resize):
      size, rounding = _text(evaluation.crop), evaluation.crop_rounding
      even = '' if rounding == 'down' else f', rounding={rounding!r}'
      ops['ops'] += f'|central_crop({size}{even})'
  if evaluation.mean is not None and evaluation.std is not None:
    ops['device_ops'] = _normalize(evaluation.mean, evaluation.std)
  return ops


def from_ops(preprocess: Mapping[str, Any]) -> Evaluation:
  """Returns what ops say as numbers: the inverse of `to_ops`.

  Whether resizing antialiases is left out: timm and Hugging Face always do. So
  is how the longer side and levels are rounded, and how JPEGs are decoded.

  Raises:
    UserError: ops that are not a resize, a central crop and a normalize, and
      that these config files cannot express.
  """
  fields = {}
  for segment in ops_language.segments(preprocess.get('ops', '')):
    arguments = {**dict(enumerate(segment.args)), **segment.kwargs}
    size = arguments.pop(0, arguments.pop('size', None))
    method = arguments.pop('method', 'bilinear')
    arguments.pop('antialias', None)
    arguments.pop('truncate', None)
    rounding = arguments.pop('rounding', 'down')
    if segment.name in ('decode', 'onehot'):
      continue
    if arguments or size is None:
      raise _inexpressible(segment)
    if segment.name == 'resize_small' and not fields:
      fields = dict(resize=size, method=method)
    elif segment.name == 'resize' and not fields:
      fields = dict(resize=pair(size), method=method)
    elif segment.name == 'central_crop' and 'crop' not in fields:
      fields |= dict(crop=pair(size), crop_rounding=rounding)
    else:
      raise _inexpressible(segment)
  for segment in ops_language.segments(preprocess.get('device_ops', '')):
    if segment.name != 'normalize' or 'mean' in fields:
      raise _inexpressible(segment)
    fields |= _statistics(segment)
  return Evaluation(**fields)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
  """Returns (height, width) of a size that may be the side of a square."""
  return (size, size) if isinstance(size, int) else tuple(size)


def _statistics(segment) -> dict[str, Any]:
  """Returns mean and std of `normalize(...)`, numbers or one per channel."""
  kwargs = dict(segment.kwargs)
  if kwargs.pop('max_value', None) not in (None, 255):
    raise _inexpressible(segment)
  if 'mean' in kwargs:
    return dict(mean=kwargs['mean'], std=kwargs['std'])
  low, high = (*segment.args, None)[:2]
  low, high = kwargs.get('low', low), kwargs.get('high', high)
  if isinstance(low, str):
    mean, std = STATISTICS[low]
    return dict(mean=mean, std=std)
  return dict(mean=-low / (high - low), std=1 / (high - low))


def _normalize(mean, std) -> str:
  given = np.array([mean, std]).reshape(2, -1)
  if np.all(given == 0.5):
    return 'normalize(-1, 1)'
  for name, known in STATISTICS.items():
    if given.shape == np.shape(known) and np.allclose(
      given, known, rtol=0, atol=1e-6
    ):
      return f'normalize({name!r})'
  mean, std = np.array([mean, std]).tolist()
  return f'normalize(mean={mean}, std={std})'


def _inexpressible(segment) -> UserError:
  return UserError(
    f'the config files of timm and Hugging Face cannot express {segment.text!r}'
    ' in the preprocessing; they know resize, resize_small and central_crop,'
    ' then normalize. Give other evaluation ops, or none, with'
    ' dataclasses.replace(weights, preprocess=...)'
  )


def _text(size: int | tuple[int, int]) -> str:
  if isinstance(size, tuple) and size[0] == size[1]:
    size = size[0]
  return str(size)
