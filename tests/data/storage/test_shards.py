"""Failures of the process while a source is read; prepare has other tests."""

import numpy as np
import pytest

from vit_jax.data import ops_language
from vit_jax.data.storage import inspection, shards


class _Source:
  """Four images, of which reading one takes more memory than there is."""

  num_classes, class_names, column_texts = 1, ['cat'], {}

  def __len__(self):
    return 4

  def __getitem__(self, index):
    if index == 2:
      raise MemoryError
    return {'image': np.zeros([2, 2, 3], np.uint8), 'label': 0}

  def describe(self, index):
    return f'image {index}'


def test_an_example_is_not_skipped_because_memory_ran_out(tmp_path):
  writer = shards.Writer(
    _Source(),
    tmp_path,
    plan={},
    transform=lambda example: example,
    skip=True,
    num_threads=1,
  )
  with pytest.raises(MemoryError):
    writer.write(0, lambda: None)
  assert not list(tmp_path.glob('*.array_record'))


def test_an_image_is_not_broken_because_memory_ran_out():
  ops = ops_language.parse('decode', trusted=True)
  with pytest.raises(MemoryError):
    inspection.scan(_Source(), ops, 1, lambda: None)
