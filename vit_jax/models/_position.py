"""Where a patch is in the image: fixed sine-cosine tables.

A table is grid-shaped, `[height, width, D]` for a grid of patches, and covers
the patches only: class and register tokens are learned vectors and need none.
"""

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


def _sincos2d(height, width, frequencies) -> np.ndarray:
  # In float64 until the end: at large x the phase loses digits in float32.
  y, x = np.mgrid[:height, :width]
  x, y = x[..., None] * frequencies, y[..., None] * frequencies
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=-1)
  return table.astype(np.float32)


def _check_dim(dim: int, at_least: int) -> None:
  if dim % 4 or dim < at_least:
    raise UserError(
      f'a 2-D sine-cosine position table needs a width that is a multiple of 4'
      f' and at least {at_least}; got {dim}'
    )
