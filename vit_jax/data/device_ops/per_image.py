"""Device ops on one image at a time: flip, crop; and what such an op is.

Each image draws from a key of its own, folded from the key of the op and the
row of the image in the global batch. So a row is the same on any mesh, and a
device that needs a row of another one makes it again from its uint8 pixels.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class PerImage:
  """An op on `[H, W, C]`; the op language maps it over the batch.

  Attributes:
    train: `(image, key) -> image`.
    evaluate: `image -> image` without chance; None leaves images as they are.
  """

  train: Callable[[jax.Array, jax.Array], jax.Array]
  evaluate: Callable[[jax.Array], jax.Array] | None = None

  def __call__(
    self,
    batch: Batch,
    rng: jax.Array | None,
    *,
    train: bool,
    row_B: jax.Array | None = None,
  ) -> Batch:
    """Returns the batch with another `image`, `[B, H, W, C]`.

    Args:
      batch: what the op is applied to.
      rng: key of this op in this step; None in evaluation.
      train: whether to draw.
      row_B: int32, the rows' numbers in the global batch; None if in order.
    """
    image = batch['image']
    if not train:
      if self.evaluate is None:
        return batch
      return batch | {'image': jax.vmap(self.evaluate)(image)}
    if row_B is None:
      row_B = jnp.arange(len(image), dtype=jnp.int32)
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(rng, row_B)
    return batch | {'image': jax.vmap(self.train)(image, key_B)}


def flip_lr(rate: float = 0.5) -> PerImage:
  """Mirrors an image left to right with a probability; any dtype."""
  if not 0 <= rate <= 1:
    raise UserError(f'rate={rate!r} must lie in [0, 1]')

  def train(image, key):
    return jnp.where(jax.random.bernoulli(key, rate), image[:, ::-1], image)

  return PerImage(train)


def crop(size: int | tuple[int, int]) -> PerImage:
  """Keeps the top left window of an image, in training and in evaluation.

  A convolution without padding reads no more of an image whose size its patch
  does not divide: 154 of the 160 pixels with which DeiT-III trains H/14.

  Raises:
    UserError: when tracing, a window that is larger than the image.
  """
  height, width = (size, size) if isinstance(size, int) else size

  def keep(image, key=None):
    del key
    free = min(image.shape[0] - height, image.shape[1] - width)
    _check(free, image, (height, width))
    return image[:height, :width]

  return PerImage(keep, keep)


def random_crop(
  size: int | tuple[int, int] | None = None,
  *,
  padding: int = 0,
  pad_mode: str = 'constant',
) -> PerImage:
  """Cuts out a window at a uniform place; the central one in evaluation.

  Args:
    size: of the window; None is the size of the image.
    padding: pixels put around the image first, in training alone.
    pad_mode: 'constant' (zeros) or 'reflect' (without the edge itself).

  Raises:
    UserError: when tracing, a window that is larger than what it is cut from.
  """
  if not isinstance(padding, int) or padding < 0 or not (size or padding):
    raise UserError('expected random_crop(size) or random_crop(padding=4)')
  if pad_mode not in ('constant', 'reflect'):
    raise UserError(f"pad_mode={pad_mode!r}: expected 'constant' or 'reflect'")

  def window(image):
    if size is None:
      return image.shape[:2]
    return (size, size) if isinstance(size, int) else tuple(size)

  def train(image, key):
    height, width = window(image)
    around = (padding, padding)
    image = jnp.pad(image, (around, around, (0, 0)), mode=pad_mode)
    free = image.shape[0] - height, image.shape[1] - width
    _check(min(free), image, (height, width))
    top, left = jax.random.randint(key, (2,), 0, jnp.array(free) + 1)
    shape = (height, width, image.shape[2])
    return jax.lax.dynamic_slice(image, (top, left, 0), shape)

  def evaluate(image):
    height, width = window(image)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    _check(min(top, left), image, (height, width))
    return image[top : top + height, left : left + width]

  return PerImage(train, None if size is None else evaluate)


def _check(free: int, image: jax.Array, window: tuple[int, int]) -> None:
  if free < 0:
    raise UserError(
      f'cannot cut {window} out of an image of {image.shape[:2]} pixels'
    )
