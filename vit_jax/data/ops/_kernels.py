"""Numba kernels for resizing and shearing, bit-identical to Pillow and NumPy.

Imported by `resize.kernels` alone, as Numba is optional. The kernels are
compiled at import, or read from Numba's cache beside this file.
Integers are cast by hand: Numba widens a sum of two int32 to int64, and half
the speed is gone.
"""

import math

import numba
import numpy as np


def _array(dtype, num_dims: int, layout: str = 'C'):
  return numba.types.Array(dtype, num_dims, layout, readonly=True)


def _compile(*signatures):
  return numba.njit(
    list(signatures), nogil=True, cache=True, error_model='numpy'
  )


_IMAGE = _array(numba.uint8, 3)
_RESIZED = numba.uint8[:, :, ::1]
_SUMS = [
  numba.float32[:, :, ::1](
    _array(dtype, 3), _array(numba.int64, 2), _array(numba.float32, 2)
  )
  for dtype in (numba.uint8, numba.float32)
]
_PLACES, _PARTS = _array(numba.int64, 1), _array(numba.float32, 1)
_INTERPOLATED = [
  numba.float32[:, :, ::1](_array(dtype, 3), *(2 * (_PLACES, _PLACES, _PARTS)))
  for dtype in (numba.uint8, numba.float32)
]

# Pillow's fixed point for weights of uint8 (src/libImaging/Resample.c).
_BITS = np.int32(22)
_HALF = np.int32(1 << 21)
_ZERO, _MOST = np.int32(0), np.int32(255)
_ROWS = 16  # turned at once: 64 bytes, a line of the cache, for each pixel


@numba.njit(nogil=True, inline='always')
def _cubic(a, b, c, d, between):
  """Returns the byte `between` (0 .. 1) b and c: Pillow's BICUBIC."""
  a, b, c, d = float(a), float(b), float(c), float(d)
  second = 2 * (a - b) + c - d
  third = b - a - c + d
  value = b + between * (c - a + between * (second + between * third))
  return np.uint8(np.int32(min(max(value, 0.0), 255.0)))


@numba.njit(nogil=True, error_model='numpy')
def _weights(old, new, cubic):
  """Returns, for each output: the first input, how many, and their weights.

  Each output's weights are padded with zeros to a multiple of four.
  """
  scale = old / new
  stretch = max(scale, 1.0)
  support = (2.0 if cubic else 1.0) * stretch
  most = 2 * math.ceil(support) + 1
  first, count = np.empty(new, np.int64), np.empty(new, np.int64)
  weights = np.zeros((new, (most + 3) // 4 * 4), np.int32)
  exact = np.empty(most)
  for i in range(new):
    center = (i + 0.5) * scale
    low = max(0, int(center - support + 0.5))
    high = min(old, int(center + support + 0.5))
    total = 0.0
    for k in range(high - low):
      x = abs((k + low - center + 0.5) * (1.0 / stretch))
      weight = max(1.0 - x, 0.0)
      if cubic and x < 1.0:
        weight = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
      elif cubic:
        weight = (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2.0 else 0.0
      exact[k] = weight
      total += weight
    for k in range(high - low):
      scaled = (exact[k] / total if total != 0 else exact[k]) * (1 << _BITS)
      weights[i, k] = int(scaled + (0.5 if scaled >= 0 else -0.5))
    first[i], count[i] = low, high - low
  return first, count, weights


@numba.njit(nogil=True, error_model='numpy')
def _sum_rows(rows, first, count, weights, totals, out):
  """Sets each row of `out` to a weighted sum of rows, rounded and clipped."""
  last = rows.shape[0] - 1
  for i in range(out.shape[0]):
    totals[:] = _HALF
    for k in range(0, count[i], 4):
      # The weights beyond `count` are zero.
      a, b = first[i] + k, min(first[i] + k + 1, last)
      c, d = min(first[i] + k + 2, last), min(first[i] + k + 3, last)
      p, q = weights[i, k], weights[i, k + 1]
      r, s = weights[i, k + 2], weights[i, k + 3]
      for j in range(out.shape[1]):
        totals[j] = (
          totals[j]
          + np.int32(rows[a, j]) * p
          + np.int32(rows[b, j]) * q
          + np.int32(rows[c, j]) * r
          + np.int32(rows[d, j]) * s
        )
    for j in range(out.shape[1]):
      out[i, j] = np.uint8(min(max(totals[j] >> _BITS, _ZERO), _MOST))


@_compile(_RESIZED(_array(numba.uint8, 3, 'A'), numba.int64, numba.boolean))
def resize_across(image: np.ndarray, width: int, cubic: bool) -> np.ndarray:
  """Returns uint8 `[H, width, 3]` of uint8 `[H, W, 3]`, antialiased.

  Sixteen rows at a time are turned so that the sums run along memory, with
  four bytes a pixel. The image may have any strides; `cubic` is Keys' with
  a = -0.5, else the kernel is a triangle.
  """
  first, count, weights = _weights(image.shape[1], width, cubic)
  out = np.empty((image.shape[0], width, 3), np.uint8)
  turned = np.empty((image.shape[1], _ROWS), np.uint32)
  summed = np.empty((width, _ROWS), np.uint32)
  totals = np.empty(4 * _ROWS, np.int32)
  for top in range(0, image.shape[0], _ROWS):
    rows = min(_ROWS, image.shape[0] - top)
    for x in range(image.shape[1]):
      for y in range(rows):
        turned[x, y] = (
          np.uint32(image[top + y, x, 0])
          | np.uint32(image[top + y, x, 1]) << np.uint32(8)
          | np.uint32(image[top + y, x, 2]) << np.uint32(16)
        )
    _sum_rows(
      turned.view(np.uint8),
      first,
      count,
      weights,
      totals,
      summed.view(np.uint8),
    )
    for y in range(rows):
      for x in range(width):
        pixel = summed[x, y]
        out[top + y, x, 0] = np.uint8(pixel)
        out[top + y, x, 1] = np.uint8(pixel >> np.uint32(8))
        out[top + y, x, 2] = np.uint8(pixel >> np.uint32(16))
  return out


@_compile(_RESIZED(_IMAGE, numba.int64, numba.boolean))
def resize_down(image: np.ndarray, height: int, cubic: bool) -> np.ndarray:
  """Returns uint8 `[height, W, 3]` of a contiguous image: `resize_across`."""
  first, count, weights = _weights(image.shape[0], height, cubic)
  row = 3 * image.shape[1]
  out = np.empty((height, row), np.uint8)
  totals = np.empty(row, np.int32)
  flat = image.reshape(image.shape[0], row)
  _sum_rows(flat, first, count, weights, totals, out)
  return out.reshape(height, image.shape[1], 3)


@_compile(*_SUMS)
def sum_across(
  image: np.ndarray, index: np.ndarray, weight: np.ndarray
) -> np.ndarray:
  """Returns float32 `[H, new, C]`, sums of columns with weights `[K, new]`.

  The image is uint8 or float32, contiguous.
  """
  height, _, channels = image.shape
  num, new = index.shape
  flat = image.reshape(height, -1)
  out = np.empty((height, new * channels), np.float32)
  columns = np.empty((num, new * channels), np.int64)
  factors = np.empty((num, new * channels), np.float32)
  for k in range(num):
    for j in range(new * channels):
      columns[k, j] = index[k, j // channels] * channels + j % channels
      factors[k, j] = weight[k, j // channels]
  for y in range(height):
    for k in range(num):
      for j in range(new * channels):
        product = np.float32(flat[y, columns[k, j]]) * factors[k, j]
        out[y, j] = product if k == 0 else out[y, j] + product
  return out.reshape(height, new, channels)


@_compile(*_SUMS)
def sum_down(
  image: np.ndarray, index: np.ndarray, weight: np.ndarray
) -> np.ndarray:
  """Returns float32 `[new, W, C]`, the weighted sums of rows: `sum_across`."""
  _, width, channels = image.shape
  num, new = index.shape
  flat = image.reshape(len(image), -1)
  out = np.empty((new, width * channels), np.float32)
  for i in range(new):
    for k in range(num):
      y, factor = index[k, i], weight[k, i]
      for j in range(width * channels):
        product = np.float32(flat[y, j]) * factor
        out[i, j] = product if k == 0 else out[i, j] + product
  return out.reshape(new, width, channels)


@_compile(*_INTERPOLATED)
def interpolate(
  image: np.ndarray,
  above: np.ndarray,
  below: np.ndarray,
  down: np.ndarray,
  left: np.ndarray,
  right: np.ndarray,
  across: np.ndarray,
) -> np.ndarray:
  """Returns float32 `[h, w, C]`, each pixel between four, across first.

  The image is uint8 or float32, contiguous. Rows `above` and `below`, and how
  far `down` between them, are `[h]`; columns likewise `[w]`.
  """
  channels = image.shape[2]
  width = len(left) * channels
  flat = image.reshape(image.shape[0], -1)
  out = np.empty((len(above), width), np.float32)
  first, second = np.empty(width, np.int64), np.empty(width, np.int64)
  between = np.empty(width, np.float32)
  for j in range(width):
    x, channel = j // channels, j % channels
    first[j] = left[x] * channels + channel
    second[j] = right[x] * channels + channel
    between[j] = across[x]
  # The lower row is often the next one's upper row.
  lines = np.empty((2, width), np.float32)
  held = np.full(2, -1, np.int64)
  for i in range(len(above)):
    if held[1] == above[i]:
      lines[0], held[0] = lines[1], held[1]
    for k in range(2):
      y = above[i] if k == 0 else below[i]
      if held[k] != y:
        held[k] = y
        for j in range(width):
          start = np.float32(flat[y, first[j]])
          end = np.float32(flat[y, second[j]])
          lines[k, j] = start + between[j] * (end - start)
    for j in range(width):
      out[i, j] = lines[0, j] + down[i] * (lines[1, j] - lines[0, j])
  return out.reshape(len(above), len(left), channels)


@_compile(
  _RESIZED(_IMAGE, numba.float64, numba.float64, _array(numba.uint8, 1))
)
def shift_rows(
  image: np.ndarray, slope: float, offset: float, fill: np.ndarray
) -> np.ndarray:
  """Returns the image whose (x, y) is the old (x + slope y + offset, y).

  Pillow's bicubic AFFINE transform (a = -1, no antialiasing, cut and not
  rounded) of the matrix (1, slope, offset, 0, 1, 0), in its order of float64
  operations.

  The image is contiguous, `fill` uint8 `[3]`. Positions are those of pixel
  centres, from 1/2 on.
  """
  height, width = image.shape[:2]
  flat = image.reshape(height, 3 * width)
  out = np.empty((height, width, 3), np.uint8)
  flat_out = out.reshape(height, 3 * width)
  between = np.empty(3 * width)
  for y in range(height):
    shift = slope * (y + 0.5) + offset
    whole = math.floor(shift)
    for x in range(width):
      position = x + 0.5 + slope * (y + 0.5) + offset - 0.5
      for channel in range(3):
        between[3 * x + channel] = position - math.floor(position)
    # All four neighbours of [low, high) are inside, and `whole` pixels away
    # unless rounding decides: then there is no such range.
    low = min(max(1 - whole, 0), width)
    high = max(min(width - 2 - whole, width), low)
    if 0 < shift - whole < 1e-9 or shift - whole > 1 - 1e-9:
      high = low
    start = 3 * (whole - 1)
    for i in range(3 * low, 3 * high):
      flat_out[y, i] = _cubic(
        flat[y, i + start],
        flat[y, i + start + 3],
        flat[y, i + start + 6],
        flat[y, i + start + 9],
        between[i],
      )
    for x in range(width):
      if low <= x < high:
        continue
      position = x + 0.5 + slope * (y + 0.5) + offset
      if position < 0 or position >= width:
        for channel in range(3):
          out[y, x, channel] = fill[channel]
        continue
      left = math.floor(position - 0.5)
      for channel in range(3):
        out[y, x, channel] = _cubic(
          image[y, max(left - 1, 0), channel],
          image[y, max(left, 0), channel],
          image[y, min(left + 1, width - 1), channel],
          image[y, min(left + 2, width - 1), channel],
          between[3 * x],
        )
  return out
