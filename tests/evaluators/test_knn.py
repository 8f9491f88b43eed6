"""Votes of the nearest against DINO's formula in NumPy, and worked by hand."""

import logging

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.evaluators import knn


def _oracle(train, queries, num_classes, k, *, temperature=0.07):
  """Returns the classes of the queries, one query after the other."""
  x, y = np.asarray(train[0], np.float64), train[1]
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  answers = []
  for query in np.asarray(queries, np.float64):
    similarity = x @ (query / np.linalg.norm(query))
    nearest = np.argsort(-similarity, kind='stable')[:k]
    votes = np.zeros(num_classes)
    np.add.at(votes, y[nearest], np.exp(similarity[nearest] / temperature))
    answers.append(np.argmax(votes))
  return np.array(answers)


def _data(num_train, num_test, width=12, num_classes=5, seed=0):
  rng = np.random.default_rng(seed)
  means = rng.normal(size=(num_classes, width))
  splits = []
  for n in (num_train, num_test):
    y = rng.integers(0, num_classes, n)
    x = means[y] + 1.5 * rng.normal(size=(n, width)) + 0.5
    splits.append((np.float32(x), y))
  return splits


def _on_circle(*degrees):
  radians = np.radians(degrees)
  return np.stack([np.cos(radians), np.sin(radians)], axis=1)


@pytest.mark.parametrize('devices', [1, 8])
def test_every_vote_is_that_of_the_oracle(evaluate, devices, monkeypatch):
  monkeypatch.setattr(knn, '_MAX_QUERIES', 128)
  train, (queries, _) = _data(403, 1000)
  for k in (1, 10, 200):
    # Where the labels are the oracle's answers, the accuracy is 1.
    labels = _oracle(train, queries, 5, k)
    result = evaluate(
      'knn', train, (queries, labels), num_classes=5, k=(k,), devices=devices
    )
    assert result == {f'{k}nn': 1.0, 'num_examples': 1000}


def test_each_k_has_its_accuracy(evaluate):
  train, test = _data(300, 150)
  result = evaluate('knn', train, test, num_classes=5)
  expected = {
    f'{k}nn': np.mean(_oracle(train, test[0], 5, k) == test[1])
    for k in (10, 20, 100, 200)
  }
  assert result == pytest.approx(expected | {'num_examples': 150})
  assert len(set(expected.values())) > 1


@pytest.mark.parametrize('num_test', [1, 7, 8, 99])
def test_it_is_exact_for_any_number_of_test_images(
  evaluate, num_test, monkeypatch
):
  # DINO's own loop needs 100 images; the last of our chunks is filled up.
  monkeypatch.setattr(knn, '_MAX_QUERIES', 4)
  train, test = _data(60, num_test)
  result = evaluate('knn', train, test, num_classes=5, k=(3,))
  assert result['3nn'] == np.mean(_oracle(train, test[0], 5, 3) == test[1])


def test_the_nearest_one_outvotes_two_at_a_low_temperature(evaluate):
  # Similarities cos(0) = 1 and twice cos(60) = 0.5: the nearest wins if
  # exp(0.5 / T) > 2, for T below 0.5 / ln 2 = 0.7213.
  train = _on_circle(0, 60, -60), [0, 1, 1]
  test = _on_circle(0), [0]
  for temperature, expected in ((0.70, 1.0), (0.75, 0.0)):
    result = evaluate(
      'knn', train, test, num_classes=2, k=(3,), temperature=temperature
    )
    assert result['3nn'] == expected


def test_the_length_of_a_feature_does_not_matter(evaluate):
  # By the inner product, or the distance, the long one would be nearest.
  train = _on_circle(10, 80) * [[0.01], [100]], [0, 1]
  test = 50 * _on_circle(0), [0]
  assert evaluate('knn', train, test, num_classes=2, k=(1,))['1nn'] == 1.0


def test_of_equals_the_earlier_image_and_the_lower_class_win(evaluate):
  x = np.repeat(_on_circle(0), 17, axis=0)
  y = np.array([3, 2, 1, 0] + [4] * 13)
  test = _on_circle(0), [3]
  # On 8 devices these images lie on several.
  result = evaluate('knn', (x, y), test, num_classes=5, k=(1, 2))
  assert result['1nn'] == 1.0  # Class 3 comes first in the source.
  assert result['2nn'] == 0.0  # One vote each for 3 and 2: 2 wins.


def test_cold_votes_do_not_overflow(evaluate):
  # Similarities 1 and 0.99985: of exp(1000) and exp(999.85), both beyond
  # float32, the former is larger.
  train = _on_circle(0, 1), [1, 0]
  result = evaluate(
    'knn', train, (_on_circle(0), [1]), num_classes=2, k=(2,), temperature=0.001
  )
  assert result['2nn'] == 1.0


def test_padding_is_no_neighbour(evaluate):
  # Every image is opposite to the query; rows of zeros would be nearer.
  train = _on_circle(170, 180, 190), [1, 1, 1]
  result = evaluate('knn', train, (_on_circle(0), [1]), num_classes=2, k=(1, 9))
  assert result['1nn'] == result['9nn'] == 1.0


def test_more_neighbours_than_images_are_all_images(evaluate, caplog):
  train, test = _data(21, 40)
  with caplog.at_level(logging.WARNING):
    result = evaluate('knn', train, test, num_classes=5, k=(5, 21, 200))
  assert result['200nn'] == result['21nn']
  assert result['21nn'] == np.mean(_oracle(train, test[0], 5, 21) == test[1])
  assert 'only 21 training images can vote, fewer than k=200' in caplog.text


def test_a_feature_of_zeros_has_similarity_zero(evaluate):
  train = np.concatenate([_on_circle(120), np.zeros((1, 2))]), [0, 1]
  result = evaluate('knn', train, (_on_circle(0), [1]), num_classes=2, k=(1,))
  assert result['1nn'] == 1.0


def test_bad_options_are_an_error(evaluate):
  for options in (dict(k=()), dict(k=(0, 5)), dict(temperature=0)):
    with pytest.raises(UserError, match='knn: k are at least 1'):
      evaluate('knn', *_data(9, 9), num_classes=5, **options)
