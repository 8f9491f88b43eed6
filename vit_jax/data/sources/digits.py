"""The 1,797 handwritten digits that scikit-learn ships: no download.

A part of the UCI Optical Recognition of Handwritten Digits data, 8x8 pixels.
It comes without a test split; ours holds out 36 images of each digit (360 in
all, 20 %), drawn by a fixed permutation, and trains on the other 1,437.
"""

import numpy as np

from vit_jax.data import splits
from vit_jax.errors import UserError

_NUM_CLASSES = 10
_TEST_IMAGES_PER_CLASS = 36
_MAX_VALUE = 16  # the original counts the ink in 4x4 cells


class Source:
  """Examples `{'image': uint8 [8, 8, 1] in 0..255, 'label': int}`."""

  num_classes = _NUM_CLASSES

  def __init__(self, split: str):
    """Loads a split, `'train'` or `'test'`, or a slice of one."""
    self._split = splits.parse(split)
    if self._split.name not in ('train', 'test'):
      raise UserError(
        f'digits has no split {split!r}; it has "train" (1,437 images) and '
        '"test" (360 images)'
      )
    from sklearn import datasets

    digits = datasets.load_digits()
    images, labels = digits.images, digits.target
    members = _members(labels, test=self._split.name == 'test')
    self._records = members[self._split.records(len(members))]
    self._images = np.round(images * (255 / _MAX_VALUE)).astype(np.uint8)
    self._labels = labels
    self.class_names = [str(digit) for digit in range(_NUM_CLASSES)]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    record = self._records[index]
    image = self._images[record][:, :, np.newaxis]
    return {'image': image, 'label': int(self._labels[record])}

  def labels(self) -> np.ndarray:
    """Returns the class id of every record, int `[N]`."""
    return self._labels[self._records]

  def describe(self, index: int) -> str:
    """Returns words for messages that find the record again."""
    return f'image {self._records[index]} of sklearn.datasets.load_digits'


def _members(labels: np.ndarray, *, test: bool) -> np.ndarray:
  """Returns the record numbers of a split, ascending."""
  random = np.random.RandomState(0)  # frozen: the same in every numpy
  chosen = []
  for digit in range(_NUM_CLASSES):
    order = random.permutation(np.flatnonzero(labels == digit))
    held_out, rest = np.split(order, [_TEST_IMAGES_PER_CLASS])
    chosen.append(held_out if test else rest)
  return np.sort(np.concatenate(chosen))
