"""Resampling weights along one axis."""

import functools
import math

import numpy as np


@functools.lru_cache(maxsize=256)
def kernel_taps(
  old: int, new: int, method: str, antialias: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Returns which pixels to sum along one axis, with which weights.

  `out[i] = sum_k weight[k, i] * in[index[k, i]]`; both are `[K, new]`. Weights
  outside the image are dropped and the rest sums to one.

  Args:
    old: pixels of the image.
    new: pixels of the result.
    method: 'bilinear', 'bicubic' or 'lanczos'.
    antialias: whether the kernel widens where the image shrinks.
  """
  scale = old / new
  center = (np.arange(new) + 0.5) * scale
  kernel, support = _KERNELS[method]
  stretch = max(scale, 1) if antialias else 1
  reach = support * stretch
  first = np.floor(center - reach).astype(np.int64)
  index = first + np.arange(math.ceil(2 * reach) + 1)[:, None]
  weight = kernel((index + 0.5 - center) / stretch)
  weight = np.where((index >= 0) & (index < old), weight, 0)
  weight /= weight.sum(0)
  used = np.any(weight != 0, axis=1)
  index, weight = np.clip(index[used], 0, old - 1), weight[used]
  return index, weight.astype(np.float32)


@functools.lru_cache(maxsize=256)
def area_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns indices and weights `[K, new]`; a weight is the length covered.

  Pixel i of the result covers `[i, i + 1] * old / new`. The weights sum to
  `old / new`, up to the rounding of float32 arithmetic, which is TensorFlow's.
  """
  scale = np.float32(old) / np.float32(new)
  edges = np.arange(new + 1, dtype=np.float32) * scale
  low, high = edges[:-1], edges[1:]
  first = np.floor(low).astype(np.int64)
  num = np.ceil(high).astype(np.int64) - first
  index = first + np.arange(num.max())[:, None]
  left = index.astype(np.float32)
  right = left + np.float32(1)
  weight = np.minimum(right, high) - np.maximum(left, low)
  weight = np.where((left < low) & (right > high), scale, weight)
  weight = np.where(index < first + num, weight, np.float32(0))
  return np.minimum(index, old - 1), weight


@functools.lru_cache(maxsize=256)
def neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the pixels before and after each centre, and where between it is.

  `out[i] = in[before[i]] + between[i] * (in[after[i]] - in[before[i]])`, in
  float32 arithmetic as TensorFlow's; all are `[new]`.
  """
  scale = np.float32(old) / np.float32(new)
  half = np.float32(0.5)
  position = (np.arange(new, dtype=np.float32) + half) * scale - half
  before = np.floor(position)
  between = position - before
  before = before.astype(np.int64)
  return np.maximum(before, 0), np.minimum(before + 1, old - 1), between


def _triangle(x: np.ndarray) -> np.ndarray:
  return np.maximum(1 - np.abs(x), 0)


def _keys_cubic(x: np.ndarray) -> np.ndarray:
  """Keys (1981), a = -0.5."""
  x = np.abs(x)
  inner = 1.5 * x**3 - 2.5 * x**2 + 1
  outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x < 1, inner, np.where(x < 2, outer, 0))


def _lanczos3(x: np.ndarray) -> np.ndarray:
  return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


_KERNELS = {
  'bilinear': (_triangle, 1),
  'bicubic': (_keys_cubic, 2),
  'lanczos': (_lanczos3, 3),
}
