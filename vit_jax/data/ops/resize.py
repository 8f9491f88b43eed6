"""resize: images of any dtype and any number of channels to a new size."""

import functools
import importlib.util
import math
import threading
from types import ModuleType

import numpy as np
from absl import logging
from PIL import Image

from vit_jax.data.ops._checks import size_of
from vit_jax.data.ops_language import Op, image_op
from vit_jax.errors import UserError

# 8192 x 8192. Nobody trains on larger images; a mistyped size makes them.
_MAX_PIXELS = 2**26
METHODS = ('nearest', 'area', 'bilinear', 'bicubic', 'lanczos')
_PILLOW = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}
_IMPORTING = threading.Lock()


def resize(
  size: int | tuple[int, int],
  *,
  method: str = 'bilinear',
  antialias: bool = True,
  truncate: bool = False,
) -> Op:
  """Resizes the image to `size`; the aspect ratio is not kept.

  Args:
    size: an int (square) or `(height, width)`.
    method: 'nearest', 'area', 'bilinear', 'bicubic' or 'lanczos'; see
      `resample`.
    antialias: whether shrinking averages over all the pixels it covers.
    truncate: whether integers are cut to whole levels and not rounded, as
      big_vision does after each resize.
  """
  size = size_of(size)
  check_method(method, antialias=antialias)
  look = dict(method=method, antialias=antialias, truncate=truncate)
  return image_op(lambda image, rng: resample(image, size, **look))


def check_method(method: str, *, antialias: bool) -> None:
  """Raises UserError unless `resample` takes the two."""
  if method not in METHODS:
    raise UserError(f'unknown method {method!r}; there are {METHODS}')
  if method == 'area' and not antialias:
    raise UserError(
      "method='area' always antialiases; antialias=False goes with bilinear, "
      'bicubic and lanczos'
    )


def resample(
  image: np.ndarray,
  size: tuple[int, int],
  *,
  method: str = 'bilinear',
  antialias: bool = True,
  truncate: bool = False,
) -> np.ndarray:
  """Returns `image`, `[H, W, C]` of any real dtype, resized to `size`.

  All methods put pixel centres at half-integers, as Pillow, TensorFlow 2,
  torch (`align_corners=False`) and jax do. 'bicubic' is Keys' cubic with
  a = -0.5 (Pillow, TensorFlow, jax; torch and OpenCV use -0.75), 'lanczos' has
  three lobes, 'area' is the mean over the covered source area, also where the
  image grows, as in TensorFlow (OpenCV and torch differ there), 'nearest' takes
  the pixel under the centre.

  With `antialias` the kernel widens by the shrinking factor, as in Pillow and
  in torchvision; without it a fixed small number of source pixels is read per
  output pixel, which aliases when the image shrinks. Growing is the same, and
  so is 'nearest'; 'area' always antialiases.

  uint8 images become what Pillow makes of them, across first and then down,
  rounded after each: within one level of the exact result for 'bilinear' and,
  because of clipping between the two, within a few at hard edges for 'bicubic'
  and 'lanczos'. Up to version 12 Pillow itself had that order, with which the
  published numbers were made; since 13 it takes tall images down first, which
  makes other pixels. Other dtypes, 'area', `antialias=False` and `truncate` are
  computed in floating point. Integers are then clipped to the range of their
  dtype and rounded, or cut to the next level towards zero with `truncate`.

  'area', and 'bilinear' with `antialias=False`, are TensorFlow's to the bit in
  float32; so are uint8 images with `truncate`, where an area of 255 may become
  254, as there.

  Where Numba is installed (the extra `fast`) uint8 images take a third of the
  time, with the same result.

  Raises:
    UserError: the image is empty, or the result would be far too large.
  """
  if 0 in image.shape:
    raise UserError(f'cannot resize an empty image of shape {image.shape}')
  if image.shape[:2] == tuple(size):
    return image
  check_growth(image.shape[:2], size)
  if method == 'nearest':
    # floor((i + 1/2) * old / new) in integers: exact where it is a tie.
    rows, columns = (
      (2 * np.arange(new) + 1) * old // (2 * new)
      for old, new in zip(image.shape, size, strict=False)
    )
    return image[rows][:, columns]
  shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
  if (
    image.dtype == np.uint8
    and method in _PILLOW
    and (antialias or not shrinks)
    and not truncate
  ):
    return _as_pillow(image, size, method)
  if method == 'area':
    out = _area(image, size)
  elif method == 'bilinear' and not antialias:
    out = _interpolated(image, size)
  else:
    out = image
    # The axis that shrinks more goes first: less work for the second.
    for axis in sorted((0, 1), key=lambda a: size[a] / image.shape[a]):
      old, new = image.shape[axis], size[axis]
      if old != new:
        taps = _kernel_taps(old, new, method, antialias)
        out = _summed(out, axis, *taps)
  if np.issubdtype(image.dtype, np.integer):
    info = np.iinfo(image.dtype)
    out = np.clip(out if truncate else np.rint(out), info.min, info.max)
  return out.astype(image.dtype)


def check_growth(old: tuple[int, int], new: tuple[int, int]) -> None:
  """Raises UserError where an op would make an image that is far too large.

  Args:
    old: (height, width) of the image. Large images may be made smaller.
    new: (height, width) that it would have.
  """
  # Pillow resizes across before it resizes down.
  most = max(old[0], new[0]) * new[1]
  if most > max(_MAX_PIXELS, old[0] * old[1]):
    raise UserError(
      f'an image of {old[0]} x {old[1]} (height x width) would become'
      f' {new[0]} x {new[1]}, and an op makes none over max_pixels='
      f'{_MAX_PIXELS:,}: is the size right?'
    )


def kernels() -> ModuleType | None:
  """Returns the module `_kernels`, or None to use Pillow instead.

  Numba is in the extra `fast`. The pixels are the same with it and without. It
  compiles for some seconds when it is used for the first time, and keeps the
  result on disk.
  """
  # One thread at a time: otherwise each would log a failure of its own.
  with _IMPORTING:
    return _imported()


@functools.cache
def _imported() -> ModuleType | None:
  if importlib.util.find_spec('numba') is None:
    return None
  try:
    from vit_jax.data.ops import _kernels
  except Exception as e:  # Another NumPy, nowhere to write, a full disk.
    logging.warning(
      'images are resized by slower code, to the same pixels: Numba does not '
      'work here (%s: %s)',
      type(e).__name__,
      e,
    )
    return None
  return _kernels


def _as_pillow(
  image: np.ndarray, size: tuple[int, int], method: str
) -> np.ndarray:
  """Resizes uint8 of any number of channels, across and then down."""
  height, width = size
  compiled = kernels()
  if compiled and image.shape[2] == 3 and method != 'lanczos':
    cubic = method == 'bicubic'
    if image.shape[1] != width:
      image = compiled.resize_across(image, width, cubic)
    if image.shape[0] != height:
      contiguous = np.ascontiguousarray(image)
      image = compiled.resize_down(contiguous, height, cubic)
    return image

  def one(plane):
    picture = Image.fromarray(plane)
    picture = picture.resize((width, picture.height), _PILLOW[method])
    return np.asarray(picture.resize((width, height), _PILLOW[method]))

  # Pillow knows three channels; of other images each goes by itself.
  if image.shape[2] == 3:
    return one(image)
  planes = [one(image[:, :, c]) for c in range(image.shape[2])]
  return np.stack(planes, axis=-1)


def _area(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns the mean over the area that each pixel covers, across first."""
  out, covered = image, np.float32(1)
  for axis in (1, 0):
    old, new = image.shape[axis], size[axis]
    if old != new:
      out = _summed(out, axis, *_area_taps(old, new))
      covered *= np.float32(old) / np.float32(new)
  return out * (np.float32(1) / covered)


def _interpolated(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns the image interpolated between four pixels, across first."""
  rows = _neighbours(image.shape[0], size[0])
  columns = _neighbours(image.shape[1], size[1])
  compiled = kernels()
  if compiled and image.dtype in (np.uint8, np.float32):
    return compiled.interpolate(np.ascontiguousarray(image), *rows, *columns)
  (above, below, down), (left, right, across) = rows, columns
  across, down = across[:, None], down[:, None, None]
  lines = []
  for line in (image[above], image[below]):
    line = line.astype(np.result_type(image, np.float32), copy=False)
    start = line[:, left]
    lines.append(start + across * (line[:, right] - start))
  return lines[0] + down * (lines[1] - lines[0])


def _summed(
  image: np.ndarray, axis: int, index: np.ndarray, weight: np.ndarray
) -> np.ndarray:
  """Returns `[H, W, C]` with one axis resized: a weighted sum of rows."""
  compiled = kernels()
  if compiled and image.dtype in (np.uint8, np.float32):
    summed = (compiled.sum_down, compiled.sum_across)[axis]
    return summed(np.ascontiguousarray(image), index, weight)
  # Rows are gathered in long runs, which is several times faster.
  rows = np.ascontiguousarray(np.moveaxis(image, axis, 0))
  out = rows[index[0]] * weight[0, :, None, None]
  for k in range(1, len(index)):
    out += rows[index[k]] * weight[k, :, None, None]
  return np.moveaxis(out, 0, axis)


@functools.lru_cache(maxsize=256)
def _kernel_taps(
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
def _area_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
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
def _neighbours(
  old: int, new: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
