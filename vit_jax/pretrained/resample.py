"""Resizing of position tables, patch kernels and channels of loaded weights.

All resizing here is linear and works on one axis after the other, by a matrix
per axis (see `models/_position.py`) in float64.
"""

import math
from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import _position


def resize_position(
  table_HWD: np.ndarray, grid: Sequence[int], *, method: str = 'timm'
) -> np.ndarray:
  """Returns the position table `[h, w, D]` for another grid of patches.

  Args:
    table_HWD: the table, of patches only.
    grid: (h, w); need not be square, nor of the table's aspect ratio.
    method: how the code base of the weights does it, a key of
      `models._position.RESIZE`.

  Raises:
    UserError: an unknown method.
  """
  if method not in _position.RESIZE:
    raise UserError(
      f'unknown way to resize positions {method!r}; there are'
      f' {", ".join(_position.RESIZE)}'
    )
  if tuple(table_HWD.shape[:2]) == tuple(grid):
    return table_HWD
  table = table_HWD.astype(np.float64)
  for axis, size in enumerate(grid):
    table = _apply(
      _position.RESIZE[method](table.shape[axis], size), table, axis
    )
  return table.astype(table_HWD.dtype)


def resize_patch_kernel(kernel: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Returns the kernel `[h, w, C, D]` for patches of another size.

  FlexiViT's resize by pseudo-inverse (https://arxiv.org/abs/2212.08013, section
  3.4): a patch, resized, gets from the new kernel what it got from the old one.
  For larger patches exactly so; for smaller ones on average over white noise.
  Patches are resized bicubically, antialiased, as in timm.
  """
  if tuple(kernel.shape[:2]) == tuple(size):
    return kernel
  out = kernel.astype(np.float64)
  for axis, new in enumerate(size):
    matrix = _position.half_pixel(
      out.shape[axis], new, 'bicubic', antialias=True
    )
    out = _apply(np.linalg.pinv(matrix.T), out, axis)
  return out.astype(kernel.dtype)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """Returns the kernel `[h, w, channels, D]` for images of other channels.

  For one channel the sum over all, which sees in a grey image what it saw in
  the same image as RGB. Otherwise the channels are repeated in turn as often as
  needed, and scaled so that an image of equal channels gives what it gave. This
  is what timm does to RGB.
  """
  old = kernel.shape[2]
  if channels == old:
    return kernel
  if channels == 1:
    summed = kernel.sum(axis=2, keepdims=True, dtype=np.float64)
    return summed.astype(kernel.dtype)
  repeated = np.tile(kernel, (1, 1, math.ceil(channels / old), 1))
  scaled = repeated[:, :, :channels].astype(np.float64) * (old / channels)
  return scaled.astype(kernel.dtype)


def _apply(matrix: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
  return np.moveaxis(np.tensordot(matrix, array, axes=(1, axis)), 0, axis)
