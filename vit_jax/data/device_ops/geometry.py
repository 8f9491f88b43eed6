"""Flips and crops on the device, for each image on its own."""

import jax
import jax.numpy as jnp

from vit_jax.data.device_ops_language import ImageOp
from vit_jax.data.ops._checks import size_of
from vit_jax.errors import UserError


def flip_lr(rate: float = 0.5) -> ImageOp:
  """Mirrors each image left to right with a probability; any dtype."""
  if not 0 <= rate <= 1:
    raise UserError(f'rate={rate!r} must lie in [0, 1]')

  def train(image, key):
    return jnp.where(jax.random.bernoulli(key, rate), image[:, ::-1], image)

  return ImageOp(train)


def crop(size: int | tuple[int, int]) -> ImageOp:
  """Crops the top left window of each image, in training and in evaluation.

  A convolution without padding reads no more of an image whose size its patch
  does not divide: 154 of the 160 pixels with which DeiT-III trains H/14.

  Raises:
    UserError: when tracing, a window that is larger than the image.
  """
  window = size_of(size)

  def cut(image):
    _free(image, window)
    return image[: window[0], : window[1]]

  return ImageOp(evaluate=cut)


def random_crop(
  size: int | tuple[int, int] | None = None,
  *,
  padding: int = 0,
  pad_mode: str = 'constant',
) -> ImageOp:
  """Crops a window at a uniform position; the central one in evaluation.

  Args:
    size: of the window; None is the size of the image.
    padding: pixels added around the image first, only in training.
    pad_mode: 'constant' (zeros) or 'reflect' (without the edge itself).

  Raises:
    UserError: when tracing, a window that is larger than the padded image.
  """
  if not isinstance(padding, int) or padding < 0 or not (size or padding):
    raise UserError('expected random_crop(size) or random_crop(padding=4)')
  if pad_mode not in ('constant', 'reflect'):
    raise UserError(f"pad_mode={pad_mode!r}: expected 'constant' or 'reflect'")

  size = None if size is None else size_of(size)

  def train(image, key):
    window = size or image.shape[:2]
    around = (padding, padding)
    image = jnp.pad(image, (around, around, (0, 0)), mode=pad_mode)
    free = jnp.array(_free(image, window))
    top, left = jax.random.randint(key, (2,), 0, free + 1)
    shape = (*window, image.shape[2])
    return jax.lax.dynamic_slice(image, (top, left, 0), shape)

  def evaluate(image):
    top, left = (free // 2 for free in _free(image, size))
    return image[top : top + size[0], left : left + size[1]]

  return ImageOp(train, None if size is None else evaluate)


def _free(image: jax.Array, window: tuple[int, int]) -> tuple[int, int]:
  """Returns by how many pixels an image is higher and wider than a window."""
  free = image.shape[0] - window[0], image.shape[1] - window[1]
  if min(free) < 0:
    raise UserError(
      f'cannot cut {window} out of an image of {image.shape[:2]} pixels'
    )
  return free
