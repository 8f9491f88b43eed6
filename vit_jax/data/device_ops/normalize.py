"""Normalization of pixels, by a range or by mean and standard deviation."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.device_ops_language import ImageOp
from vit_jax.errors import UserError

# Mean and standard deviation per channel of images in 0 .. 1.
STATISTICS = {
  # Of the ImageNet training set: torchvision, timm, DeiT, DINO, MAE, Swin.
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  # The range -1 .. 1: Inception, ViT, AugReg, big_vision, SigLIP.
  'inception': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  # Of OpenAI's CLIP.
  'clip': (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
  ),
}


def normalize(
  low: float | str | None = None,
  high: float | None = None,
  *,
  mean: float | Sequence[float] | None = None,
  std: float | Sequence[float] | None = None,
  max_value: float | None = None,
) -> ImageOp:
  """Makes images float32, by a range or by mean and standard deviation.

  `normalize(-1, 1)` maps 0 .. `max_value` onto low .. high, ends exact.
  `normalize('imagenet')` is `(image / max_value - mean) / std` with the named
  `STATISTICS`; `normalize(mean=0.5, std=0.25)` or one number per channel gives
  them directly.

  Args:
    low: the value that 0 becomes, or the name of statistics.
    high: the value that `max_value` becomes.
    mean: per channel or for all, of images in 0 .. 1.
    std: likewise.
    max_value: the largest input; None is 255 and asks for uint8 images. Other
      dtypes need it (65535 for uint16, 1 for floats that are in 0 .. 1).

  Raises:
    UserError: not exactly one of the three forms; when tracing, another number
      of channels, or images that are not uint8 and no `max_value`.
  """
  forms = (
    isinstance(low, str) and high is None and mean is None and std is None,
    _is_number(low) and _is_number(high) and mean is None and std is None,
    low is None and high is None and mean is not None and std is not None,
  )
  if not any(forms):
    raise UserError(
      "expected normalize(low, high), normalize('name') or "
      f'normalize(mean=..., std=...); names are {list(STATISTICS)}'
    )
  if isinstance(low, str):
    if low not in STATISTICS:
      raise UserError(
        f'unknown statistics {low!r}; there are {list(STATISTICS)}'
      )
    mean, std = STATISTICS[low]
  elif low is not None:
    if low == high:
      raise UserError(f'normalize({low}, {high}) makes all images the same')
    # x * (high - low) + low, written so that both ends are exact.
    return _image_op(lambda x: x * (high - low) + low, max_value)
  mean, std = np.broadcast_arrays(np.float32(mean), np.float32(std))
  if not np.all(std > 0):
    raise UserError(f'std must be positive; got {std}')

  def standardize(x):
    if mean.ndim and mean.shape != x.shape[-1:]:
      raise UserError(
        f'mean and std {mean.tolist()} are for {mean.size} channels; the '
        f'images have {x.shape[-1]}'
      )
    per_channel = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean.reshape(per_channel)) / std.reshape(per_channel)

  return _image_op(standardize, max_value)


def _image_op(
  fn: Callable[[jax.Array], jax.Array], max_value: float | None
) -> ImageOp:
  """Returns the op that applies `fn` to images in 0 .. 1, float32."""

  def op(image):
    if max_value is None and image.dtype != jnp.uint8:
      raise UserError(
        f'the images are {image.dtype}, not uint8: are they normalized '
        'already? Otherwise set max_value='
      )
    return fn(image.astype(jnp.float32) / (max_value or 255))

  return ImageOp(evaluate=op)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
