"""Made-up images of any size and number of classes, for tests and benchmarks.

Each class has a coarse random pattern that a model can learn; each image is its
class's pattern under noise of its own, each text names the class. Nothing is
stored: record i is made when it is read, always the same.
"""

import math
import zlib

import numpy as np

from vit_jax.data import splits
from vit_jax.errors import UserError

_GRID = 4  # a pattern has 4x4 cells
_NOISE = 64  # noise is 0.._NOISE - 1, a power of two; the rest is pattern


class Source:
  """Examples `{'image': uint8 [H, W, C], 'label': int, 'text': str}`."""

  class_names = None

  def __init__(
    self,
    split: str,
    *,
    num_examples: int = 1024,
    image_size: int | tuple[int, int] = 32,
    channels: int = 3,
    num_classes: int = 10,
    seed: int = 0,
  ):
    """Makes a split.

    Args:
      split: any name, or a slice of one. Splits share the patterns of the
        classes and differ in the noise.
      num_examples: records in the whole split. Record i has class
        i % num_classes.
      image_size: height and width in pixels, or one number for both.
      channels: of an image.
      num_classes: how many patterns there are.
      seed: of the patterns and of the noise.
    """
    self._split = splits.parse(split)
    sides = (image_size,) * 2 if np.ndim(image_size) == 0 else tuple(image_size)
    numbers = dict(
      num_examples=num_examples, channels=channels, num_classes=num_classes
    )
    if len(sides) != 2:
      raise UserError(f'synthetic: image_size is (height, width), got {sides}')
    numbers |= dict(zip(('height', 'width'), sides, strict=True))
    bad = [f'{key}={value!r}' for key, value in numbers.items() if value < 1]
    if bad:
      raise UserError(f'synthetic: must be at least 1: {", ".join(bad)}')
    self.num_classes = num_classes
    self._shape = (*sides, channels)
    self._records = self._split.records(num_examples)
    self._seed = (seed, zlib.crc32(self._split.name.encode()))
    self._patterns = np.random.default_rng(seed).integers(
      0, 256 - _NOISE, (num_classes, _GRID, _GRID, channels), dtype=np.uint8
    )
    self._cells = [np.arange(side) * _GRID // side for side in sides]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    record = int(self._records[index])
    label = record % self.num_classes
    random = np.random.default_rng((*self._seed, record))
    noise = np.frombuffer(random.bytes(math.prod(self._shape)), np.uint8)
    rows, columns = self._cells
    pattern = self._patterns[label].take(columns, axis=1).take(rows, axis=0)
    image = pattern + (noise % _NOISE).reshape(self._shape)
    return {'image': image, 'label': label, 'text': f'class {label}'}

  def labels(self) -> np.ndarray:
    """Returns the class id of every record, int `[N]`."""
    return np.asarray(self._records) % self.num_classes

  def describe(self, index: int) -> str:
    """Returns words for messages that find the record again."""
    return f'synthetic record {self._records[index]} of {self._split.text!r}'
