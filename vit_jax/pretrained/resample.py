"""Position tables, patch kernels and channels for another size of input.

All resizing here is linear and works on one axis after the other, so that it is
a matrix per axis, made and applied in float64.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.data.ops import resize
from vit_jax.errors import UserError


def resize_position(
  table_HWD: np.ndarray, grid: Sequence[int], *, method: str = 'timm'
) -> np.ndarray:
  """Returns the position table `[h, w, D]` for another grid of patches.

  Args:
    table_HWD: the table, of patches only.
    grid: (h, w); need not be square, nor of the table's aspect ratio.
    method: how the code base of the weights does it, of METHODS: 'google'
      (vision_transformer, big_vision), 'timm', 'torch' (DeiT, DeiT-III, MAE,
      Hugging Face) or 'dino' (DINO, DINOv2). They differ visibly.

  Raises:
    UserError: an unknown method.
  """
  if method not in METHODS:
    raise UserError(
      f'unknown way to resize positions {method!r}; there are'
      f' {", ".join(METHODS)}'
    )
  if tuple(table_HWD.shape[:2]) == tuple(grid):
    return table_HWD
  table = table_HWD.astype(np.float64)
  for axis, size in enumerate(grid):
    table = _apply(METHODS[method](table.shape[axis], size), table, axis)
  return table.astype(table_HWD.dtype)


def resize_patch_kernel(
  kernel: np.ndarray, size: Sequence[int], *, method: str = 'bicubic'
) -> np.ndarray:
  """Returns the kernel `[h, w, C, D]` for patches of another size.

  FlexiViT's resize by pseudo-inverse (https://arxiv.org/abs/2212.08013, section
  3.4): a patch, resized, gets from the new kernel what it got from the old one.
  For larger patches exactly so; for smaller ones on average over white noise.

  Args:
    kernel: of the patch embedding.
    size: (h, w).
    method: how patches are taken to be resized. 'bicubic' with antialiasing, as
      in timm, or 'bilinear' without, as in big_vision.

  Raises:
    UserError: an unknown method.
  """
  if method not in ('bicubic', 'bilinear'):
    raise UserError(
      f"unknown way to resize patches {method!r}; it is 'bicubic' or 'bilinear'"
    )
  if tuple(kernel.shape[:2]) == tuple(size):
    return kernel
  out = kernel.astype(np.float64)
  for axis, new in enumerate(size):
    matrix = _half_pixel(out.shape[axis], new, method, method == 'bicubic')
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


def _corners(old: int, new: int) -> np.ndarray:
  """`[new, old]`: linear between neighbours, first and last stay in place.

  As `scipy.ndimage.zoom(order=1)`, which Google's code calls.
  """
  at = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
  distance = np.abs(at[:, None] - np.arange(old))
  return np.maximum(1 - distance, 0)


def _half_pixel(old: int, new: int, method: str, antialias: bool) -> np.ndarray:
  """`[new, old]` of how images are resized, with a = -0.5 for 'bicubic'."""
  columns = np.eye(old)[:, None]  # Each channel is one pixel of a column.
  size = (new, 1)
  return resize.resample(columns, size, method=method, antialias=antialias)[
    :, 0
  ]


def _timm(old: int, new: int) -> np.ndarray:
  return _half_pixel(old, new, 'bicubic', antialias=True)


def _torch(old: int, new: int, scale: float | None = None) -> np.ndarray:
  """`[new, old]` of torch's bicubic: a = -0.75, no antialiasing.

  Args:
    old: number of inputs; those beyond the ends are copies of the ends.
    new: number of outputs.
    scale: output over input; None is `new / old`.
  """
  at = (np.arange(new) + 0.5) / (scale or new / old) - 0.5
  first = np.floor(at).astype(int)
  matrix = np.zeros((new, old))
  for tap in range(-1, 3):
    weight = _cubic(at - (first + tap))
    index = np.clip(first + tap, 0, old - 1)
    np.add.at(matrix, (np.arange(new), index), weight)
  return matrix


def _dino(old: int, new: int) -> np.ndarray:
  """As torch's, but for a grid that is said to be 0.1 larger than it is.

  DINO and DINOv2 add 0.1 so that rounding never loses a row, and torch takes
  positions from the scale that it was given.
  """
  return _torch(old, new, (new + 0.1) / old)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
  x = np.abs(x)
  inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
  outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


METHODS: dict[str, Callable[[int, int], np.ndarray]] = {
  'google': _corners,
  'timm': _timm,
  'torch': _torch,
  'dino': _dino,
}
