"""Repeated augmentation."""

import numpy as np
import pytest

from tests.data.tiny_inputs import DATA, make_as_process, make_train, take
from vit_jax.errors import UserError

_NUM = 21
_DATA = DATA | dict(num_examples=_NUM)


def _take(num, start_step=0, process=(0, 1), **kwargs):
  defaults = dict(data=_DATA, ops='', batch_size=12, repeats=3)
  one = make_as_process(*process, **(defaults | kwargs))
  return take(one, num, start_step)


def _index(num, **kwargs):
  return _index_of(_take(num, **kwargs))


def _index_of(batches):
  return np.stack([batch['index'] for batch in batches])


def test_copies_of_an_image_are_in_one_batch():
  for batch in _index(14):
    images, counts = np.unique(batch, return_counts=True)
    assert len(images) in (3, 4)  # 3 where an image ends and begins an epoch
    assert set(counts) <= {3, 6} and counts.sum() == 12


def test_copies_are_a_third_of_the_batch_apart():
  index = _index(4)
  np.testing.assert_array_equal(index[:, :4], index[:, 4:8])
  np.testing.assert_array_equal(index[:, :4], index[:, 8:])


def test_an_epoch_has_as_many_rows_and_a_third_of_the_images():
  # 21 images: 7 of them, 3 times each, in an epoch of 21 rows.
  rows = _index(7).reshape(7, 3, 4)[:, 0].reshape(-1)  # 28 images, once each
  for epoch in rows.reshape(4, 7):
    assert len(np.unique(epoch)) == 7
  assert len(np.unique(rows[:14])) > 7  # others in the second epoch
  one, three = (
    make_train(data=_DATA, batch_size=12, repeats=repeats) for repeats in (1, 3)
  )
  assert one.steps_per_epoch == three.steps_per_epoch == _NUM / 12


def test_an_epoch_has_no_fewer_rows_than_images():
  # A third of 22 images is not whole: 8 of them, 3 times each.
  data = DATA | dict(num_examples=22)
  (batch,) = _take(1, data=data, batch_size=3 * 22)
  epoch = _index(1, data=data, batch_size=22, repeats=1)[0]
  np.testing.assert_array_equal(batch['index'][:8], epoch[:8])


def test_the_images_of_an_epoch_are_the_first_of_its_permutation():
  order = _index(7, repeats=1).reshape(-1).reshape(4, _NUM)
  images = _index(7).reshape(7, 3, 4)[:, 0].reshape(4, 7)
  np.testing.assert_array_equal(images, order[:, :7])


def test_all_images_come_up_equally_often_in_the_long_run():
  counts = np.bincount(_index(140).reshape(-1), minlength=_NUM)
  assert counts.sum() == 140 * 12
  # 80 epochs of 21 rows; each draws 7 images of 21, 3 rows each.
  deviation = 3 * np.sqrt(80 * (1 / 3) * (2 / 3))
  assert np.abs(counts - 80).max() < 4 * deviation
  assert counts.std() > 0.3 * deviation  # The images do change.


def test_a_batch_that_does_not_divide_splits_one_image_over_two_batches():
  index = _index(8, batch_size=8)
  # 8 rows are e = 0, 3, 6, then 1, 4, 7, then 2, 5 of the images in place.
  copies = np.empty_like(index)
  copies[:, [0, 3, 6, 1, 4, 7, 2, 5]] = index
  stream = copies.reshape(-1)[:63].reshape(21, 3)
  assert (stream == stream[:, :1]).all()
  assert len(np.unique(stream[:7, 0])) == 7


def test_copies_are_augmented_differently():
  (batch,) = _take(1, ops='random_crop(4)|flip_lr', batch_size=63)
  for record in np.unique(batch['index']):
    copies = batch['image'][batch['index'] == record]
    assert len(np.unique(copies, axis=0)) > 1


@pytest.mark.parametrize('batch_size', [8, 12])
def test_batches_depend_on_seed_and_step_alone(batch_size):
  options = dict(ops='random_crop(4)|flip_lr', batch_size=batch_size)
  whole = _take(12, num_threads=0, **options)
  late = _take(3, start_step=9, num_threads=3, **options)
  for one, other in zip(whole[9:], late, strict=True):
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
  other = _take(12, seed=1, **options)
  assert (_index_of(whole) != _index_of(other)).any()


@pytest.mark.parametrize('count', [2, 4])
def test_processes_together_hold_the_rows_of_one(count):
  options = dict(ops='random_crop(4)', batch_size=8)
  whole = _take(4, **options)
  parts = [_take(4, process=(p, count), **options) for p in range(count)]
  for batch, *rows in zip(whole, *parts, strict=True):
    for name in batch:
      together = np.concatenate([row[name] for row in rows])
      np.testing.assert_array_equal(together, batch[name])


@pytest.mark.parametrize('repeats', [0, 13, 1.5, '3'])
def test_repeats_that_no_batch_holds_are_refused(repeats):
  with pytest.raises(UserError, match='from 1 to batch_size=12; got'):
    _take(1, repeats=repeats)
