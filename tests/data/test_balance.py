"""Class-balanced sampling: frequencies, coverage, resuming."""

import pathlib

import numpy as np
import pytest

from tests.data.tiny_inputs import make_as_process, make_train, take
from vit_jax.data import balance
from vit_jax.errors import UserError

# Of each class; the records of a class are not in one place.
NUM_RECORDS = np.array([64, 16, 0, 1, 4])
LABELS = np.random.default_rng(0).permutation(
  np.repeat(np.arange(5), NUM_RECORDS)
)
NUM = len(LABELS)  # 85


@pytest.fixture
def data(tmp_path):
  images = np.arange(NUM, dtype=np.uint8)[:, None, None, None]
  images = np.tile(images, (1, 4, 4, 1))
  path = tmp_path / 'data.npz'
  np.savez(path, train_images=images, train_labels=LABELS)
  return dict(name='arrays', path=str(path), split='train')


def _index(batches):
  return np.concatenate([batch['index'] for batch in batches])


def _rows(data, epochs, **options):
  options = dict(data=data, ops='', batch_size=NUM) | options
  return _index(take(make_train(**options), epochs)).reshape(epochs, NUM)


@pytest.mark.parametrize(
  'mode, expected',
  [
    # 85 rows in four classes: 21.25 each.
    ('class', [22, 21, 0, 21, 21]),
    # 8, 4, 1 and 2 of 15: 45.33, 22.67, 5.67, 11.33 rows.
    ('sqrt', [45, 23, 0, 6, 11]),
    # 8 of 17, 1 of 17; the class without records does not count.
    ([8, 8, 5, 0, 1], [40, 40, 0, 0, 5]),
  ],
)
def test_an_epoch_has_the_rows_of_each_class(data, mode, expected):
  for epoch in _rows(data, 3, balance=mode):
    counts = np.bincount(LABELS[epoch], minlength=5)
    np.testing.assert_array_equal(counts, expected)


def test_all_records_of_a_class_come_before_one_comes_again(data):
  index = _rows(data, 10, balance='class').reshape(-1)
  for label, size in enumerate(NUM_RECORDS):
    drawn = index[LABELS[index] == label]
    # Rows of an epoch are shuffled: a pass may end inside of one.
    counts = np.bincount(drawn, minlength=NUM)[LABELS == label]
    if size:
      assert counts.max() - counts.min() <= 1
      assert counts.sum() == 10 * [22, 21, 0, 21, 21][label]


def test_rows_are_shuffled_and_differ_between_epochs_and_seeds(data):
  index = _rows(data, 3, balance='class')
  label = LABELS[index]
  assert (label[0] != label[1]).any() and (np.diff(label[0]) != 0).sum() > 40
  other = _rows(data, 3, balance='class', seed=1)
  assert (other != index).mean() > 0.5
  # Of classes of one size each has an order of its own.
  same = balance.Balanced(_Source(np.repeat([0, 1], 30)), 'class', seed=0)
  orders = [[same._order(x)[i] for i in range(30)] for x in (0, 1)]
  assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


class _Source:
  num_classes = None

  def __init__(self, labels):
    self._labels = labels

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, index):
    return {'label': self._labels[index]}


@pytest.mark.parametrize('options', [dict(num_threads=3), dict(num_workers=2)])
def test_a_stream_that_starts_later_has_the_same_bits(data, options):
  options = (
    dict(data=data, balance='sqrt', ops='random_crop(3)|flip_lr', batch_size=8)
    | options
  )
  whole = take(make_train(**options | dict(num_threads=0, num_workers=0)), 30)
  late = take(make_train(**options), 4, start_step=26)
  for one, other in zip(whole[26:], late, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_processes_together_hold_the_rows_of_one(data):
  options = dict(data=data, balance='class', ops='', batch_size=8)
  whole = take(make_train(**options), 4)
  parts = [take(make_as_process(p, 2, **options), 4) for p in range(2)]
  for batch, *rows in zip(whole, *parts, strict=True):
    together = np.concatenate([row['index'] for row in rows])
    np.testing.assert_array_equal(together, batch['index'])


def test_an_epoch_keeps_its_number_of_rows(data):
  options = dict(data=data, ops='', batch_size=10)
  plain, balanced = (
    make_train(**options | x) for x in (dict(), dict(balance='class'))
  )
  assert plain.steps_per_epoch == balanced.steps_per_epoch == NUM / 10


@pytest.mark.parametrize(
  'options, words',
  [
    (dict(balance='classes'), "balance='classes': expected one of"),
    (dict(balance=[1.0, 2.0]), 'balance has 2 numbers, for 5 classes'),
    (dict(balance=[1, 1, 1, 1, -1]), '-1 among them'),
    (dict(balance=[0, 0, 1, 0, 0]), 'leaves no class with records'),
    (dict(balance='class', repeats=2), 'repeats=2'),
  ],
)
def test_what_does_not_fit_is_an_error(data, options, words):
  with pytest.raises(UserError, match=words):
    make_train(data=data, ops='', **options)


@pytest.mark.parametrize(
  'labels', [[0, None, 1], np.eye(3), [[0, 1], [2], []], [0, -1], [0.5, 1.0]]
)
def test_labels_that_are_no_classes_are_an_error(labels):
  with pytest.raises(UserError, match='one class id for each record'):
    balance.labels_of(_Source(labels))


def test_sources_say_the_labels_that_their_examples_have(tmp_path):
  from vit_jax.data import open_source

  folder = tmp_path / 'images'
  for i, name in enumerate(['b', 'a', 'a', 'c']):
    (folder / 'train' / name).mkdir(parents=True, exist_ok=True)
    (folder / 'train' / name / f'{i}.png').write_bytes(b'x')
  rows = [f'{x},{y}' for x, y in zip('abcd', 'xyxz', strict=True)]
  for name in 'abcd':
    pathlib.Path(tmp_path / name).write_bytes(b'x')
  (tmp_path / 't.csv').write_text('\n'.join(['image,label', *rows]) + '\n')
  images, labels = np.zeros((4, 2, 2, 3), np.uint8), np.int32([3, 0, 1, 0])
  np.savez(tmp_path / 'a.npz', train_images=images, train_labels=labels)
  for section in (
    dict(name='image_folder', data_dir=str(folder)),
    dict(name='table', path=str(tmp_path / 't.csv')),
    dict(name='arrays', path=str(tmp_path / 'a.npz')),
    dict(name='digits'),
    dict(name='synthetic', num_examples=20, image_size=8),
  ):
    split = 'all[:3]' if section['name'] == 'table' else 'train[:50%]'
    source = open_source.open_source(section | dict(split=split))
    expected = [source[i]['label'] for i in range(len(source))]
    assert np.asarray(source.labels()).tolist() == expected, section['name']
