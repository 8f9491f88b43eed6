"""scikit-learn's digits."""

import numpy as np
import pytest

from vit_jax.data.sources import digits
from vit_jax.errors import UserError


def test_the_splits_have_1437_and_360_different_images():
  train, test = digits.Source('train'), digits.Source('test')
  assert (len(train), len(test)) == (1437, 360)
  names = [s.describe(i) for s in (train, test) for i in range(len(s))]
  assert len(set(names)) == 1797


def test_the_test_split_holds_36_images_of_each_digit():
  test = digits.Source('test')
  labels = [test[i]['label'] for i in range(len(test))]
  np.testing.assert_array_equal(np.bincount(labels), [36] * 10)


def test_images_span_0_to_255_and_are_the_original_scaled():
  from sklearn import datasets

  source = digits.Source('train')
  example = source[5]
  assert example['image'].shape == (8, 8, 1)
  assert example['image'].dtype == np.uint8
  record = int(source.describe(5).split()[1])
  original = datasets.load_digits()
  np.testing.assert_allclose(
    example['image'][..., 0] / 255, original.images[record] / 16, atol=0.5 / 255
  )
  assert example['label'] == original.target[record]
  assert max(source[i]['image'].max() for i in range(20)) == 255


def test_another_split_is_an_error_that_names_the_two():
  with pytest.raises(UserError, match=r'"train" \(1,437 images\) and "test"'):
    digits.Source('validation')


def test_a_slice_of_the_training_split_leaves_the_test_split_alone():
  part = digits.Source('train[:100]')
  test = digits.Source('test')
  assert len(part) == 100
  test_names = {test.describe(i) for i in range(len(test))}
  assert not test_names & {part.describe(i) for i in range(100)}
