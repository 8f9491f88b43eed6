"""Several sources as one."""

import collections

import numpy as np
import pytest

from vit_jax.data import pipeline
from vit_jax.data.sources import mixture
from vit_jax.errors import UserError


def _arrays(tmp_path, name, num, class_names=None, labels=None):
  images = np.zeros((num, 2, 2, 1), np.uint8)
  images[:, 0, 0, 0] = np.arange(num)
  content = dict(
    train_images=images,
    train_labels=np.arange(num) % 3 if labels is None else labels,
  )
  if class_names:
    content['class_names'] = class_names
  path = tmp_path / f'{name}.npz'
  np.savez(path, **content)
  return dict(name='arrays', path=str(path))


@pytest.fixture
def sources(tmp_path):
  return {n: _arrays(tmp_path, n, num) for n, num in (('a', 6), ('b', 90))}


def _counts(source):
  """Returns how often each record stands in the mixture, by source."""
  found = collections.defaultdict(collections.Counter)
  for i in range(len(source)):
    name, _, record = source.describe(i).partition(': ')
    found[name][record] += 1
  return found


def test_without_weights_every_record_is_in_it_once(sources):
  source = mixture.Source('train', sources=sources)
  counts = _counts(source)
  assert {k: sum(c.values()) for k, c in counts.items()} == {'a': 6, 'b': 90}
  assert set(counts['b'].values()) == {1}
  assert source[4]['image'][0, 0, 0] == 4
  assert source[10]['image'][0, 0, 0] == 4


@pytest.mark.parametrize(
  ('weights', 'expected'),
  [
    (dict(a=1, b=1), dict(a=90, b=90)),
    (dict(a=1, b=3), dict(a=30, b=90)),
    (dict(a=0.25, b=0.75), dict(a=30, b=90)),
    (dict(a=1, b=100), dict(a=6, b=600)),
    (dict(a=0.7, b=0.3), dict(a=210, b=90)),
    (dict(a=0, b=5), dict(b=90)),
  ],
)
def test_weights_are_exact_shares_and_no_record_is_left_out(
  sources, weights, expected
):
  source = mixture.Source('train', sources=sources, weights=weights)
  counts = _counts(source)
  assert {k: sum(c.values()) for k, c in counts.items()} == expected
  assert len(source) == sum(expected.values())
  for name, size in (('a', 6), ('b', 90)):
    if name in expected:
      times = counts[name].values()
      assert len(times) == size  # each record
      assert max(times) - min(times) <= 1  # as often as any other


def test_inexact_shares_are_within_one_example(tmp_path):
  sources = {n: _arrays(tmp_path, n, 7) for n in 'abc'}
  weights = dict(a=1, b=np.pi, c=1.7)
  source = mixture.Source('train', sources=sources, weights=weights)
  counts = {k: sum(c.values()) for k, c in _counts(source).items()}
  for name, weight in weights.items():
    share = weight / sum(weights.values())
    assert abs(counts[name] - share * len(source)) < 1
    assert counts[name] >= 7


def test_the_order_of_the_config_does_not_matter(sources):
  one = mixture.Source('train', sources=sources)
  other = mixture.Source('train', sources=dict(reversed(sources.items())))
  names = [[s.describe(i) for i in range(96)] for s in (one, other)]
  assert names[0] == names[1]


def test_batches_through_the_pipeline_hold_the_shares(sources):
  data = dict(
    name='mixture', split='train', sources=sources, weights=dict(a=1, b=1)
  )
  one = pipeline.TrainInput(data=data, ops='', batch_size=90, seed=0)
  batches = one.batches()
  index = np.concatenate([next(batches)['index'] for _ in range(2)])
  batches.close()
  assert (index < 90).sum() == 90  # of a; one epoch is two batches


def test_a_source_may_have_a_split_of_its_own(sources):
  sources['b'] |= dict(split='train[:10]')
  assert len(mixture.Source('train', sources=sources)) == 16
  assert len(mixture.Source('train[:50%]', sources=sources)) == 13


def test_classes_must_be_the_same_unless_asked_otherwise(tmp_path):
  sources = dict(
    a=_arrays(tmp_path, 'a', 3, ['dog', 'cat', 'eel']),
    b=_arrays(tmp_path, 'b', 3, ['cat', 'dog', 'fox']),
  )
  with pytest.raises(UserError, match=r"classes differ.*classes='by_name'"):
    mixture.Source('train', sources=sources)
  source = mixture.Source('train', sources=sources, classes='by_name')
  assert source.class_names == ['cat', 'dog', 'eel', 'fox']
  assert source.num_classes == 4
  assert [source[i]['label'] for i in range(6)] == [1, 0, 2, 0, 1, 3]
  with pytest.raises(UserError, match=r"'same' or 'by_name'; got 'union'"):
    mixture.Source('train', sources=sources, classes='union')


def test_label_vectors_follow_the_names(tmp_path):
  vectors = np.float32([[1, 0], [0.25, 0.75], [0, 0]])
  sources = dict(
    a=_arrays(tmp_path, 'a', 3, ['dog', 'cat'], vectors),
    b=_arrays(tmp_path, 'b', 3, ['eel', 'ant'], vectors),
  )
  source = mixture.Source('train', sources=sources, classes='by_name')
  assert source.class_names == ['ant', 'cat', 'dog', 'eel']
  np.testing.assert_array_equal(source[1]['label'], [0, 0.75, 0.25, 0])
  np.testing.assert_array_equal(source[4]['label'], [0.75, 0, 0, 0.25])


def test_weights_that_do_not_fit_are_all_named(sources):
  with pytest.raises(UserError) as error:
    mixture.Source('train', sources=sources, weights=dict(a=-1, c=1))
  for words in (
    "no weight for 'b'",
    "a weight for 'c'",
    'a=-1 is not a number',
  ):
    assert words in str(error.value)
  with pytest.raises(UserError, match='all are 0'):
    mixture.Source('train', sources=sources, weights=dict(a=0, b=0))
  with pytest.raises(UserError, match='no sources'):
    mixture.Source('train', sources={})


def test_an_error_names_its_source(sources):
  with pytest.raises(UserError, match="source 'c' of the mixture is 3; expec"):
    mixture.Source('train', sources=sources | dict(c=3))
  sources['b']['path'] = 'nowhere.npz'
  with pytest.raises(
    UserError, match=r"source 'b' of the mixture: no file now"
  ):
    mixture.Source('train', sources=sources)
  sources['b'] = dict(name='arays')
  with pytest.raises(UserError, match=r"source 'b'.*did you mean 'arrays'"):
    mixture.Source('train', sources=sources)


def test_a_mixture_too_long_to_shuffle_says_why(sources):
  with pytest.raises(UserError, match='raise the weight of what is large'):
    mixture.Source('train', sources=sources, weights=dict(a=1, b=1e-30))
