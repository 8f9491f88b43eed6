"""Boxes in images, pasted by CutMix and filled by random erasing.

A box is `(top, bottom, left, right)`, int32, each of one shape; the ends are
exclusive.
"""

import jax
import jax.numpy as jnp

Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def cutmix_box(
  weight: jax.Array, row: jax.Array, column: jax.Array, size: tuple[int, int]
) -> Box:
  """Returns the box of CutMix around a centre, clipped to the image.

  Its sides before clipping are int(H r) and int(W r) with r = sqrt(1 - weight),
  rounded down to even (arXiv:1905.04899; timm 0.3.2, which DeiT used; timm
  1.0.31 keeps odd sides).

  Args:
    weight: of the image that the box is pasted into, in [0, 1], any shape.
    row: of the centre, uniform over the image.
    column: likewise.
    size: height and width of the images.
  """
  ratio = jnp.sqrt(1 - weight)
  box = ()
  for centre, side in zip((row, column), size, strict=True):
    half = jnp.int32(side * ratio) // 2
    box += (jnp.clip(centre - half, 0, side), jnp.clip(centre + half, 0, side))
  return box


def area(box: Box) -> jax.Array:
  """Returns the number of pixels, int32."""
  top, bottom, left, right = box
  return (bottom - top) * (right - left)


def inside(box: Box, size: tuple[int, int]) -> jax.Array:
  """Returns bool `[..., H, W]`: which pixels of an image lie in the box."""
  top, bottom, left, right = (jnp.asarray(x)[..., None, None] for x in box)
  shape = (*top.shape[:-2], *size)
  row = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2)
  column = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
  return (row >= top) & (row < bottom) & (column >= left) & (column < right)
