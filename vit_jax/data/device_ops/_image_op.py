"""Device ops on one image at a time, applied to every image of a field.

Each image draws from a key of its own, folded from the key of the op and the
row of the image in the global batch, and with several images in a row (views of
multi_crop) from its number in the row. So what an image becomes is the same on
any mesh.
"""

import dataclasses
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageOp:
  """An op on `[H, W, C]`.

  Attributes:
    train: `(image, key) -> image`; None does in training what `evaluate` does.
    evaluate: `image -> image` without chance; None leaves images as they are.
  """

  train: Callable[[jax.Array, jax.Array], jax.Array] | None = None
  evaluate: Callable[[jax.Array], jax.Array] | None = None

  @property
  def training_only(self) -> bool:
    return self.evaluate is None

  def __call__(
    self, name: str, images: jax.Array, rng: jax.Array | None, *, train: bool
  ) -> jax.Array:
    """Returns the images after the op.

    `images` are `[B, ..., H, W, C]`. Fields draw independently of each other;
    `rng` is None in evaluation.
    """
    leading = images.shape[: max(1, images.ndim - 3)]
    fn, args = self.evaluate, (images,)
    if train and self.train is not None:
      if name != 'image':
        rng = jax.random.fold_in(rng, np.uint32(zlib.crc32(name.encode())))
      fn, args = self.train, (images, _keys(rng, leading))
    if fn is None:
      return images
    for _ in leading:
      fn = jax.vmap(fn)
    return fn(*args)


def _keys(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns keys of the given shape, each folded from its indices."""
  keys, fold = rng, jax.vmap(jax.random.fold_in, (None, 0))
  for size in shape:
    keys = fold(keys, jnp.arange(size, dtype=jnp.int32))
    fold = jax.vmap(fold, (0, None))
  return keys
