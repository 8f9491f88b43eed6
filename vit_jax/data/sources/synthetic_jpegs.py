"""Made-up photographs as JPEG files in memory, for measuring decoders.

Clouds of colour with detail at every scale. At the default size they are 80 to
100 kB of 500 x 400 pixels, about what ImageNet's are.
"""

import functools
import io

import numpy as np
from PIL import Image

from vit_jax.data import splits
from vit_jax.errors import UserError

_QUALITY = 92  # of the JPEG
_NUM_DIFFERENT = 64  # Others repeat them: a decoder has no memory.


class Source:
  """Examples `{'image': bytes of a JPEG file, 'label': int, 'text': str}`."""

  class_names = None

  def __init__(
    self,
    split: str,
    *,
    num_examples: int = 10_000,
    image_size: int | tuple[int, int] = (400, 500),
    num_classes: int = 1000,
  ):
    """Makes a split; a second of work, so that reading it costs nothing.

    Args:
      split: any name, or a slice of one.
      num_examples: records in the whole split. Record i has class
        i % num_classes and the picture i % 64.
      image_size: height and width in pixels, or one number for both.
      num_classes: how many classes there are.

    Raises:
      UserError: a number that is out of range.
    """
    is_square = isinstance(image_size, int)
    height, width = (image_size,) * 2 if is_square else image_size
    numbers = dict(
      num_examples=num_examples,
      height=height,
      width=width,
      num_classes=num_classes,
    )
    bad = [f'{key}={value!r}' for key, value in numbers.items() if value < 1]
    if bad:
      raise UserError(f'synthetic_jpegs: must be at least 1: {", ".join(bad)}')
    self._split = splits.parse(split)
    self._records = self._split.records(num_examples)
    self.num_classes = num_classes
    self._images = [
      _jpeg(height, width, number)
      for number in range(min(num_examples, _NUM_DIFFERENT))
    ]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    record = int(self._records[index])
    image = self._images[record % _NUM_DIFFERENT]
    label = record % self.num_classes
    return {'image': image, 'label': label, 'text': f'class {label}'}

  def describe(self, index: int) -> str:
    """Returns words for messages that find the record again."""
    record = self._records[index]
    return f'synthetic JPEG {record} of {self._split.text!r}'


@functools.lru_cache(maxsize=4 * _NUM_DIFFERENT)
def _jpeg(height: int, width: int, number: int) -> bytes:
  rng = np.random.default_rng(number)
  pixels = np.full((height, width, 3), 128, np.float32)
  # (cell in pixels, standard deviation in levels)
  for cell, strength in ((64, 50), (16, 40), (4, 30)):
    rows, columns = height // cell + 2, width // cell + 2
    for channel in range(3):
      coarse = rng.normal(0, strength, (rows, columns)).astype(np.float32)
      smooth = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
      pixels[..., channel] += np.asarray(smooth)
  pixels += rng.normal(0, 3, pixels.shape)
  file = io.BytesIO()
  image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
  image.save(file, 'JPEG', quality=_QUALITY)
  return file.getvalue()
