"""resize: images of any dtype and any number of channels to a new size."""

import numpy as np
from PIL import Image

from vit_jax.data.ops import _compiled, _taps
from vit_jax.data.ops._checks import check_growth, image_of, size_of
from vit_jax.data.ops_language import Example, Op
from vit_jax.errors import UserError

METHODS = ('nearest', 'area', 'bilinear', 'bicubic', 'lanczos')
_PILLOW = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}


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

  def op(example: Example, rng: np.random.Generator) -> Example:
    del rng
    image = image_of(example)
    image = resample(
      image, size, method=method, antialias=antialias, truncate=truncate
    )
    return example | {'image': image}

  return op


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
        taps = _taps.kernel_taps(old, new, method, antialias)
        out = _summed(out, axis, *taps)
  if np.issubdtype(image.dtype, np.integer):
    info = np.iinfo(image.dtype)
    out = np.clip(out if truncate else np.rint(out), info.min, info.max)
  return out.astype(image.dtype)


def _as_pillow(
  image: np.ndarray, size: tuple[int, int], method: str
) -> np.ndarray:
  """Resizes uint8 of any number of channels, across and then down."""
  height, width = size
  kernels = _compiled.kernels()
  if kernels and image.shape[2] == 3 and method != 'lanczos':
    cubic = method == 'bicubic'
    if image.shape[1] != width:
      image = kernels.resize_across(image, width, cubic)
    if image.shape[0] != height:
      contiguous = np.ascontiguousarray(image)
      image = kernels.resize_down(contiguous, height, cubic)
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
      out = _summed(out, axis, *_taps.area_taps(old, new))
      covered *= np.float32(old) / np.float32(new)
  return out * (np.float32(1) / covered)


def _interpolated(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns the image interpolated between four pixels, across first."""
  rows = _taps.neighbours(image.shape[0], size[0])
  columns = _taps.neighbours(image.shape[1], size[1])
  kernels = _compiled.kernels()
  if kernels and image.dtype in (np.uint8, np.float32):
    return kernels.interpolate(np.ascontiguousarray(image), *rows, *columns)
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
  kernels = _compiled.kernels()
  if kernels and image.dtype in (np.uint8, np.float32):
    summed = (kernels.sum_down, kernels.sum_across)[axis]
    return summed(np.ascontiguousarray(image), index, weight)
  # Rows are gathered in long runs, which is several times faster.
  rows = np.ascontiguousarray(np.moveaxis(image, axis, 0))
  out = rows[index[0]] * weight[0, :, None, None]
  for k in range(1, len(index)):
    out += rows[index[k]] * weight[k, :, None, None]
  return np.moveaxis(out, 0, axis)
