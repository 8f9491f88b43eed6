"""Position tables: fixed sine-cosine ones, and resizing to another grid.

A table is grid-shaped, `[height, width, D]` for a grid of patches, and covers
the patches only: class and register tokens are learned vectors and need none.

Resizing is linear and works on one axis after the other, so that a method is a
function from (old, new) to a matrix `[new, old]`, in float64.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError


def sincos2d(
  height: int, width: int, dim: int, *, temperature: float = 10_000.0
) -> np.ndarray:
  """Returns big_vision's sine-cosine table, float32 `[height, width, dim]`.

  The channels are `[sin x, cos x, sin y, cos y]`, a quarter each, where x
  counts columns and y counts rows from 0. Frequencies fall geometrically from 1
  to exactly `1 / temperature`.

  Args:
    height: rows of the grid of patches.
    width: columns of the grid of patches.
    dim: channels of the model; a multiple of 4, and at least 8.
    temperature: the longest wavelength, divided by 2 pi.
  """
  _check_dim(dim, at_least=8)
  steps = np.arange(dim // 4) / (dim // 4 - 1)
  return _sincos2d(height, width, temperature**-steps)


def sincos2d_moco(
  height: int, width: int, dim: int, *, temperature: float = 10_000.0
) -> np.ndarray:
  """Returns the table of MAE, with the frequencies of MoCo v3.

  As `sincos2d`, but the frequencies `temperature ** (-4 i / dim)` stop one step
  short of `1 / temperature`; `dim` may be 4. MoCo v3's own code counts x down
  the rows: on a square grid, its table is this one transposed.
  """
  _check_dim(dim, at_least=4)
  steps = np.arange(dim // 4) / (dim // 4)
  return _sincos2d(height, width, temperature**-steps)


# The values of `ViT.position`: what makes the table, None where it is learned
# or absent.
TABLES: dict[str, Callable[..., np.ndarray] | None] = {
  'learned': None,
  'sincos2d': sincos2d,
  'sincos2d_moco': sincos2d_moco,
  'none': None,
}


def resize(
  table_HWD: jax.Array, grid: Sequence[int], *, method: str
) -> jax.Array:
  """Returns a float32 table `[h, w, D]` for another grid, within a trace.

  Equal to `pretrained.resample.resize_position`, which computes in float64, to
  about 1e-6 of the largest value.

  Args:
    table_HWD: the table.
    grid: (h, w).
    method: a key of RESIZE.
  """
  rows, columns = (
    RESIZE[method](old, new).astype(np.float32)
    for old, new in zip(table_HWD.shape, grid, strict=False)
  )
  return jnp.einsum(
    'hH,wW,HWD->hwD', rows, columns, table_HWD, precision='highest'
  )


def half_pixel(
  old: int, new: int, method: str, *, antialias: bool
) -> np.ndarray:
  """Returns `[new, old]` of a resize with pixel centres at half-integers.

  As Pillow, TensorFlow 2 and jax do it: weights outside the image are dropped
  and the rest adds up to one.

  Args:
    old: number of inputs.
    new: number of outputs.
    method: 'bilinear', or 'bicubic' with a = -0.5.
    antialias: whether the kernel widens where the number shrinks.
  """
  stretch = max(old / new, 1) if antialias else 1
  at = (np.arange(new) + 0.5) * old / new - 0.5
  distance = (np.arange(old) - at[:, None]) / stretch
  if method == 'bilinear':
    weights = np.maximum(1 - np.abs(distance), 0)
  else:
    weights = _cubic(distance, a=-0.5)
  return weights / weights.sum(axis=1, keepdims=True)


def _corners(old: int, new: int) -> np.ndarray:
  """Linear between neighbours; the first and the last keep their places.

  As `scipy.ndimage.zoom(order=1)`, which Google's code calls.
  """
  at = np.linspace(0, old - 1, new)
  distance = np.abs(at[:, None] - np.arange(old))
  return np.maximum(1 - distance, 0)


def _timm(old: int, new: int) -> np.ndarray:
  return half_pixel(old, new, 'bicubic', antialias=True)


def _torch(old: int, new: int, scale: float | None = None) -> np.ndarray:
  """Torch's bicubic: a = -0.75, no antialiasing.

  Args:
    old: number of inputs; those beyond the ends are copies of the ends.
    new: number of outputs.
    scale: output over input; None is `new / old`.
  """
  at = (np.arange(new) + 0.5) / (scale or new / old) - 0.5
  first = np.floor(at).astype(int)
  matrix = np.zeros((new, old))
  for tap in range(-1, 3):
    weight = _cubic(at - (first + tap), a=-0.75)
    index = np.clip(first + tap, 0, old - 1)
    np.add.at(matrix, (np.arange(new), index), weight)
  return matrix


def _dino(old: int, new: int) -> np.ndarray:
  """As torch's, but with the scale of a grid that is larger by 0.1.

  DINO and DINOv2 add 0.1 so that rounding never loses a row, and torch computes
  positions from the scale that it is given.
  """
  return _torch(old, new, (new + 0.1) / old)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic convolution kernel (https://doi.org/10.1109/TASSP.1981.1163711)."""
  x = np.abs(x)
  inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
  outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


# How code bases resize position tables: 'google' (vision_transformer,
# big_vision), 'timm', 'torch' (DeiT, DeiT-III, MAE, Hugging Face) and 'dino'
# (DINO, DINOv2). They differ visibly.
RESIZE: dict[str, Callable[[int, int], np.ndarray]] = {
  'google': _corners,
  'timm': _timm,
  'torch': _torch,
  'dino': _dino,
}


def _sincos2d(height, width, frequencies) -> np.ndarray:
  # In float64 until the end: at large x the phase loses digits in float32.
  y, x = np.mgrid[:height, :width]
  x, y = x[..., None] * frequencies, y[..., None] * frequencies
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=-1)
  return table.astype(np.float32)


def _check_dim(dim: int, at_least: int) -> None:
  if dim % 4 or dim < at_least:
    raise UserError(
      'a 2-D sine-cosine position table needs a width that is a multiple of 4'
      f' and at least {at_least}; got {dim}'
    )
