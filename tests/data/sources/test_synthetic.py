"""Made-up images."""

import numpy as np
import pytest

from vit_jax.data.sources import synthetic
from vit_jax.errors import UserError


def test_a_record_is_the_same_whenever_and_wherever_it_is_read():
  first, second = synthetic.Source('train'), synthetic.Source('train')
  first[3]
  np.testing.assert_array_equal(first[7]['image'], second[7]['image'])
  part = synthetic.Source('train[10:20]')
  record = int(part.describe(4).split()[2])
  np.testing.assert_array_equal(part[4]['image'], first[record]['image'])


def test_records_splits_and_seeds_differ():
  source = synthetic.Source('train')
  others = [
    source[10],
    synthetic.Source('test')[0],
    synthetic.Source('train', seed=1)[0],
  ]
  for other in others:
    assert other['label'] == source[0]['label']
    assert (other['image'] != source[0]['image']).any()


def test_shape_classes_and_length_follow_the_arguments():
  source = synthetic.Source(
    'x', num_examples=7, image_size=(4, 6), channels=2, num_classes=3
  )
  assert len(source) == 7
  assert source.num_classes == 3
  assert source[6]['image'].shape == (4, 6, 2)
  assert source[6]['image'].dtype == np.uint8
  assert [source[i]['label'] for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_nearest_class_mean_of_train_classifies_test():
  def load(split):
    source = synthetic.Source(split, num_examples=100, image_size=8)
    examples = [source[i] for i in range(100)]
    images = np.stack([e['image'] for e in examples]).astype(float)
    return images, np.array([e['label'] for e in examples])

  images, labels = load('train')
  means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
  test_images, test_labels = load('test')
  distance = np.square(test_images[:, None] - means).sum(axis=(2, 3, 4))
  assert (distance.argmin(axis=1) == test_labels).all()


def test_sizes_below_1_are_named():
  with pytest.raises(UserError, match='channels=0, num_classes=-1'):
    synthetic.Source('train', channels=0, num_classes=-1)
