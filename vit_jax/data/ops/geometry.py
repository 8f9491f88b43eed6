"""Crops, flips and resize_small of the decoded image."""

import math
from collections.abc import Sequence

import numpy as np

from vit_jax.data.ops._checks import is_int, probability, range_of, size_of
from vit_jax.data.ops.resize import check_growth, check_method, resample
from vit_jax.data.ops_language import Op, image_op
from vit_jax.errors import UserError

_Box = tuple[int, int, int, int]


def resize_small(
  size: int,
  *,
  method: str = 'bilinear',
  antialias: bool = True,
  rounding: str = 'nearest',
  truncate: bool = False,
) -> Op:
  """Resizes so that the shorter side is `size`, keeping the aspect ratio.

  Args:
    size: length of the shorter side in pixels.
    method: see `resize`.
    antialias: see `resize`.
    rounding: of the longer side: 'nearest' as in big_vision, in float32, or
      'down' as in torchvision, timm and Hugging Face,
      `int(size * longer / shorter)`.
    truncate: see `resize`.
  """
  if not is_int(size, 1):
    raise UserError(f'the shorter side is a positive int; got {size!r}')
  check_method(method, antialias=antialias)
  if rounding not in ('nearest', 'down'):
    raise UserError(f"rounding is 'nearest' or 'down'; got {rounding!r}")
  look = dict(method=method, antialias=antialias, truncate=truncate)

  def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    shorter = max(1, min(image.shape[:2]))
    if rounding == 'down':
      new = tuple(size * n // shorter for n in image.shape[:2])
    else:
      factor = np.float32(size) / np.float32(shorter)
      new = tuple(round(np.float32(n) * factor) for n in image.shape[:2])
    return resample(image, new, **look)

  return image_op(change)


def central_crop(
  size: int | tuple[int, int] | None = None, *, rounding: str = 'down'
) -> Op:
  """Cuts the centre of the image out.

  Args:
    size: an int (square) or `(height, width)`; None is the largest square.
    rounding: of half an odd margin, which is where the crop begins: 'down' as
      in TensorFlow and Hugging Face, or 'even', to the even neighbour, as in
      torchvision and timm.

  Raises:
    UserError: per example, the image is smaller than `size`.
  """
  size = None if size is None else size_of(size)
  if rounding not in ('down', 'even'):
    raise UserError(f"rounding is 'down' or 'even'; got {rounding!r}")
  half = (lambda n: n // 2) if rounding == 'down' else (lambda n: round(n / 2))

  def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    height, width = size or (min(image.shape[:2]),) * 2
    _check_fits(image, (height, width), 'put resize_small before')
    top = half(image.shape[0] - height)
    left = half(image.shape[1] - width)
    return image[top : top + height, left : left + width]

  return image_op(change)


def random_crop(
  size: int | tuple[int, int],
  *,
  padding: int = 0,
  pad_mode: str = 'zero',
  pad_if_needed: bool = False,
) -> Op:
  """Cuts a box of `size` out of the image, every position equally likely.

  `random_crop(32, padding=4)` is the usual one for CIFAR; DeiT III's simple
  random crop is `resize_small(224)|random_crop(224, padding=4,
  pad_mode='reflect')`.

  Args:
    size: an int (square) or `(height, width)`.
    padding: pixels to add on each of the four sides first.
    pad_mode: 'zero', or 'reflect' (mirrored without repeating the edge).
    pad_if_needed: whether a side that is still shorter than `size` is padded
      at both ends by what it lacks.

  Raises:
    UserError: per example, the padded image is smaller than `size`.
  """
  size = size_of(size)
  modes = {'zero': 'constant', 'reflect': 'reflect'}
  if pad_mode not in modes:
    raise UserError(f'unknown pad_mode {pad_mode!r}; there are {list(modes)}')
  if not is_int(padding, 0):
    raise UserError(
      f'padding is a number of pixels, 0 or more; got {padding!r}'
    )

  def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pads = [
      padding + max(0, new - old - 2 * padding) * pad_if_needed
      for old, new in zip(image.shape, size, strict=False)
    ]
    if any(pads):
      padded = tuple(n + 2 * p for n, p in zip(image.shape, pads, strict=False))
      check_growth(image.shape[:2], padded)
      widths = [(pad, pad) for pad in (*pads, 0)]
      image = np.pad(image, widths, modes[pad_mode])
    _check_fits(
      image, size, 'pad_if_needed=True pads it, resize_small grows it'
    )
    top, left = (
      int(rng.integers(old - new + 1))
      for old, new in zip(image.shape, size, strict=False)
    )
    return image[top : top + size[0], left : left + size[1]]

  return image_op(change)


def random_resized_crop(
  size: int | tuple[int, int],
  *,
  scale: Sequence[float] | None = None,
  ratio: Sequence[float] | None = None,
  sampling: str = 'torchvision',
  method: str = 'bilinear',
  antialias: bool = True,
  truncate: bool = False,
) -> Op:
  """Cuts a random box out of the image and resizes it to `size`.

  Two sampling laws are in use and give different training distributions: at
  equal scale TensorFlow's draws small boxes more often.

  Args:
    size: an int (square) or `(height, width)`.
    scale: smallest and largest area of the box as a fraction of the image;
      None is (0.08, 1) for 'torchvision' and (0.05, 1) for 'tensorflow'.
    ratio: smallest and largest width / height of the box; None is (3/4, 4/3)
      for 'torchvision' and (0.75, 1.33) for 'tensorflow'.
    sampling: 'torchvision' (timm, DeiT) or 'tensorflow' (vision_transformer,
      big_vision's inception_crop).
    method: how to resize, see `resize`.
    antialias: as in `resize`. The TensorFlow codebases train without.
    truncate: as in `resize`. big_vision does.
  """
  size = size_of(size)
  check_method(method, antialias=antialias)
  if sampling not in _LAWS:
    raise UserError(f'unknown sampling {sampling!r}; there are {list(_LAWS)}')
  draw, default_scale, default_ratio = _LAWS[sampling]
  scale = default_scale if scale is None else scale
  ratio = default_ratio if ratio is None else ratio
  scale = range_of('scale', scale, positive=True)
  ratio = range_of('ratio', ratio, positive=True)
  if scale[1] > 1:
    raise UserError(f'scale is a fraction of the area, at most 1; got {scale}')
  look = dict(method=method, antialias=antialias, truncate=truncate)

  def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left, height, width = draw(*image.shape[:2], scale, ratio, rng)
    image = image[top : top + height, left : left + width]
    return resample(image, size, **look)

  return image_op(change)


def flip_lr(rate: float = 0.5) -> Op:
  """Mirrors the image left to right with probability `rate`."""
  rate = probability(rate)

  def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= rate:
      return image
    # Plane by plane: four times as fast as copying a view of flipped pixels.
    flipped = np.empty_like(image)
    for channel in range(image.shape[2]):
      flipped[:, :, channel] = image[:, ::-1, channel]
    return flipped

  return image_op(change)


def _check_fits(image: np.ndarray, size: tuple[int, int], hint: str) -> None:
  if image.shape[0] < size[0] or image.shape[1] < size[1]:
    raise UserError(
      f'cannot cut {size[0]} x {size[1]} (height x width) out of an image of '
      f'{image.shape[0]} x {image.shape[1]}; {hint}'
    )


def _torchvision_box(
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  rng: np.random.Generator,
) -> _Box:
  """Returns `(top, left, height, width)` as torchvision's RandomResizedCrop.

  Area uniform in `scale`, aspect log-uniform in `ratio`, position uniform. Ten
  attempts to find a box that fits; then the largest central box whose aspect
  lies in `ratio`.
  """
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w = round(math.sqrt(area * aspect))
    h = round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = int(rng.integers(height - h + 1))
      left = int(rng.integers(width - w + 1))
      return top, left, h, w
  w = min(width, max(1, round(height * ratio[1])))
  h = min(height, max(1, round(width / ratio[0])))
  return (height - h) // 2, (width - w) // 2, h, w


def _tensorflow_box(
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  rng: np.random.Generator,
) -> _Box:
  """Returns a box as `tf.image.sample_distorted_bounding_box` draws it.

  Aspect uniform in `ratio`; then the height uniform over the integers that the
  area and the image allow. 100 attempts, then the whole image. A box smaller
  than the image is never placed at the last row or column, as in TensorFlow's
  kernel (`tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc`).
  """
  min_area, max_area = (s * height * width for s in scale)
  for _ in range(100):
    aspect = rng.uniform(*ratio)
    low = round(math.sqrt(min_area / aspect))
    high = round(math.sqrt(max_area / aspect))
    if round(high * aspect) > width:
      high = int((width + 0.5 - 1e-7) / aspect)
    high = min(high, height)
    h = int(rng.integers(low, high + 1)) if low < high else high
    # Rounding may push the area just over either limit.
    if h * round(h * aspect) < min_area:
      h += 1
    if h * round(h * aspect) > max_area:
      h -= 1
    w = round(h * aspect)
    if not min_area <= h * w <= max_area:
      continue
    if 0 < h <= height and 0 < w <= width:
      top = int(rng.integers(height - h)) if h < height else 0
      left = int(rng.integers(width - w)) if w < width else 0
      return top, left, h, w
  return 0, 0, height, width


_LAWS = {
  'torchvision': (_torchvision_box, (0.08, 1.0), (3 / 4, 4 / 3)),
  'tensorflow': (_tensorflow_box, (0.05, 1.0), (0.75, 1.33)),
}
