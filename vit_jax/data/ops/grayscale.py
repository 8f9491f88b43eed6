"""grayscale: the luma of the image in all its channels."""

from vit_jax.data.ops import _pillow
from vit_jax.data.ops_language import Op


def grayscale(rate: float = 1.0) -> Op:
  """Removes the colour with probability `rate`; the channels remain.

  The grey is ITU-R 601's luma (299 R + 587 G + 114 B) / 1000, as in Pillow and
  torchvision's RandomGrayscale. A greyscale image does not change.
  """
  return _pillow.as_op(lambda image, rng: _pillow.grayscale(image), rate)
