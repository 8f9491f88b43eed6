"""Crops, flips and resize_small of the decoded image."""

import numpy as np

from vit_jax.data.ops._checks import is_int, probability, size_of
from vit_jax.data.ops.resize import check_growth, check_method, resample
from vit_jax.data.ops_language import Op, image_op
from vit_jax.errors import UserError


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
