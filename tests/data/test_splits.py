"""Slices of a split."""

import tracemalloc

import numpy as np
import pytest

from vit_jax.data import splits
from vit_jax.errors import UserError


def test_a_name_alone_means_all_records_in_order():
  split = splits.parse('train')
  assert split.name == 'train'
  np.testing.assert_array_equal(split.records(5), np.arange(5))


@pytest.mark.parametrize(
  ('text', 'num'),
  [
    ('train[:90%]', 91),
    ('train[90%:]', 10),
    ('train[-10%:]', 10),
    ('train[:7]', 7),
    ('train[-3:]', 3),
    ('train[10:-10]', 81),
    ('train[25%:75%]', 51),  # round(25.25) to round(75.75)
    ('train[:]', 101),
  ],
)
def test_a_slice_has_rounds_to_the_closest_record(text, num):
  records = splits.parse(text).records(101)
  assert len(records) == num
  assert len(set(records)) == num
  assert (np.diff(records) > 0).all()


@pytest.mark.parametrize('cut', ['90%', '37', '-20', '1%'])
def test_complementary_slices_share_nothing_and_miss_nothing(cut):
  first = splits.parse(f'train[:{cut}]').records(99)
  second = splits.parse(f'train[{cut}:]').records(99)
  both = np.concatenate([first, second])
  np.testing.assert_array_equal(np.sort(both), np.arange(99))


def test_a_slice_is_a_sample_of_all_classes_and_not_the_last_ones():
  labels = np.repeat(np.arange(10), 50)
  held_out = splits.parse('train[80%:]').records(500)
  assert set(labels[held_out]) == set(range(10))


@pytest.mark.parametrize(('num', 'n'), [(10, 3), (9, 3), (7, 1), (5, 5)])
def test_parts_share_nothing_miss_nothing_and_differ_by_one(num, n):
  texts = [f'train[part {k} of {n}]' for k in range(1, n + 1)]
  parts = [splits.parse(text).records(num) for text in texts]
  assert splits.parse(texts[0]).name == 'train'
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num))
  sizes = [len(part) for part in parts]
  assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('text', ['train[:60%]', 'train[95%:]'])
def test_a_slice_is_that_of_the_permutation_of_all_records(text):
  split = splits.parse(text)
  order = np.random.RandomState(0).permutation(1001)
  chosen = order[:601] if split.stop else order[951:]
  np.testing.assert_array_equal(split.records(1001), np.sort(chosen))


def test_records_of_large_splits_take_few_bytes():
  num = 2_000_000
  tracemalloc.start()
  try:
    everything = splits.parse('train').records(num)
    assert tracemalloc.get_traced_memory()[1] < 1e5
    most = splits.parse('train[:99%]').records(num)
    peak = tracemalloc.get_traced_memory()[1]
    few = splits.parse('train[99%:]').records(num)
    del most
    held = tracemalloc.get_traced_memory()[0]
  finally:
    tracemalloc.stop()
  assert (len(everything), len(few)) == (num, num // 100)
  assert peak < 4.5 * num
  assert held < 0.1 * num


def test_parts_count_from_one():
  for text in (
    'train[part 0 of 3]',
    'train[part 4 of 3]',
    'train[part 1 of 0]',
  ):
    with pytest.raises(UserError, match='parts count from 1'):
      splits.parse(text)
  with pytest.raises(UserError, match='is empty'):
    splits.parse('train[part 1 of 3]').records(2)


@pytest.mark.parametrize(
  'text', ['', 'train[', 'train[5]', 'train[a:b]', 'train[:5%]+test', None]
)
def test_an_impossible_split_is_an_error_with_examples(text):
  with pytest.raises(UserError, match=r'is not understood.*train\[:90%\]'):
    splits.parse(text)


@pytest.mark.parametrize('digits', ['9' * 400, '9' * 5000])
@pytest.mark.parametrize('part', [':{}', '{}%:', '-{}:', 'part 1 of {}'])
def test_a_number_of_thousands_of_digits_is_not_understood(part, digits):
  with pytest.raises(UserError, match='is not understood') as e:
    splits.parse(f'train[{part.format(digits)}]').records(100)
  assert len(str(e.value)) < 300


@pytest.mark.parametrize(
  'text', ['train[200:]', 'train[:-200]', 'train[:101%]']
)
def test_a_bound_outside_the_split_is_an_error(text):
  with pytest.raises(UserError, match='outside the 100 records'):
    splits.parse(text).records(100)


def test_an_empty_slice_is_an_error():
  with pytest.raises(UserError, match='is empty'):
    splits.parse('train[50:50]').records(100)
