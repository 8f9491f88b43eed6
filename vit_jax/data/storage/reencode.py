"""Resizing of images before they are stored."""

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from vit_jax.data.ops import decode as decode_lib, resize
from vit_jax.errors import UserError

_NPY = b'\x93NUMPY'


class Smaller:
  """Shrinks images whose shorter side is longer than asked for."""

  def __init__(self, resize_small: int, quality: int = 95):
    """Checks the numbers.

    Args:
      resize_small: length of the shorter side in pixels.
      quality: of the JPEG that is written, 1 to 95 as Pillow counts.
    """
    if resize_small < 1:
      raise UserError(f'resize_small is at least 1; got {resize_small}')
    if not 1 <= quality <= 95:
      raise UserError(f'quality is 1 to 95; got {quality}')
    self._side, self._quality = resize_small, quality

  def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
    """Returns the example with a smaller image.

    Bicubic, antialiased, the aspect ratio kept. An encoded image becomes an RGB
    JPEG (4:4:4, with the EXIF tag of its orientation); an array stays an array.
    An image that is small enough does not change by a byte.
    """
    image = example['image']
    if isinstance(image, np.ndarray) and image.ndim:
      return example | {'image': self._shrunk(image)}
    data = bytes(image if not isinstance(image, np.ndarray) else image.item())
    if data.startswith(_NPY):
      raise UserError(
        'resize_small makes RGB JPEGs, which hold no bands: leave it out, and '
        'resize with an op when they are read'
      )
    pixels = decode_lib.decode_image(data)
    small = self._shrunk(pixels)
    if small is pixels:
      return example | {'image': data}
    file = io.BytesIO()
    Image.fromarray(small).save(
      file,
      'JPEG',
      quality=self._quality,
      subsampling=0,
      exif=_orientation_tag(data),
    )
    return example | {'image': file.getvalue()}

  def _shrunk(self, image: np.ndarray) -> np.ndarray:
    shorter = min(image.shape[:2])
    if shorter <= self._side:
      return image
    size = tuple(
      max(1, round(n * self._side / shorter)) for n in image.shape[:2]
    )
    if image.ndim == 2:
      return self._shrunk(image[:, :, None])
    return resize.resample(image, size, method='bicubic')


def _orientation_tag(data: bytes) -> bytes:
  """Returns EXIF data with the orientation of a file."""
  tags = Image.Exif()
  if (orientation := decode_lib.orientation(data)) != 1:
    tags[ExifTags.Base.Orientation] = orientation
  return tags.tobytes() if tags else b''
