"""Few-shot accuracies against big_vision's formulae in NumPy, float64."""

import numpy as np
import pytest

from vit_jax.errors import UserError


def _chosen(labels, num_classes, shots, seed):
  """Returns the support set as big_vision's fewshot_lsr chooses it."""
  rng = np.random.default_rng(seed)
  orders = [
    rng.permutation(np.where(labels == i)[0]) for i in range(num_classes)
  ]
  return np.concatenate([order[:shots] for order in orders])


def _oracle(train, queries, num_classes, shots, *, seed=0, l2=2.0**10):
  """Returns the classes of the queries: primal or dual form, by eigh."""
  x, y = np.asarray(train[0], np.float64), train[1]
  rows = _chosen(y, num_classes, shots, seed)
  x, y = x[rows], y[rows]
  mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
  x, queries = (
    np.pad((z - mean) / std, ((0, 0), (0, 1)), constant_values=100.0)
    for z in (x, np.asarray(queries, np.float64))
  )
  targets = 2.0 * np.eye(num_classes)[y] - 1.0
  primal = len(x) >= x.shape[1]
  values, vectors = np.linalg.eigh(x.T @ x if primal else x @ x.T)
  inverse = (vectors / (values + l2)) @ vectors.T
  w = inverse @ (x.T @ targets) if primal else x.T @ (inverse @ targets)
  return np.argmax(queries @ w, axis=1)


def _data(num_train, num_test, width, num_classes, *, seed=0, spread=1.0):
  """Returns correlated features of overlapping classes, unequal in size."""
  rng = np.random.default_rng(seed)
  means = spread * rng.normal(size=(num_classes, width))
  mix = rng.normal(size=(width, width)) / np.sqrt(width)
  scale, shift = np.exp(rng.normal(size=(2, width)))
  splits = []
  for n in (num_train, num_test):
    y = np.minimum(rng.geometric(1.5 / num_classes, n), num_classes) - 1
    x = (means[y] + 2 * rng.normal(size=(n, width))) @ mix
    splits.append(((scale * x + 10 * shift).astype(np.float32), y))
  return splits


# Fewer images than features, as many, and more.
@pytest.mark.parametrize('width', [8, 40, 300])
@pytest.mark.parametrize('shots', [1, 5, 25])
def test_every_prediction_is_that_of_the_float64_oracle(evaluate, width, shots):
  train, (queries, _) = _data(800, 3000, width, 8)
  # Where the labels are the oracle's predictions, the accuracy is 1.
  labels = _oracle(train, queries, 8, shots)
  assert len(set(labels.tolist())) > 4
  result = evaluate(
    'fewshot',
    train,
    (queries, labels),
    num_classes=8,
    shots=(shots,),
    num_seeds=1,
    batch_size=1000,
  )
  assert result == {f'{shots}shot': 1.0, 'num_examples': 3000}


def test_constant_and_repeated_features_change_no_prediction(evaluate):
  train, (queries, _) = _data(400, 1000, 20, 5)

  def wide(x):
    return np.concatenate([x, x[:, :4], np.full((len(x), 3), 7.3)], axis=1)

  train = wide(train[0]).astype(np.float32), train[1]
  queries = wide(queries).astype(np.float32)
  for shots in (2, 25):
    labels = _oracle(train, queries, 5, shots)
    result = evaluate(
      'fewshot',
      train,
      (queries, labels),
      num_classes=5,
      shots=(shots,),
      num_seeds=1,
    )
    assert result[f'{shots}shot'] == 1.0


def test_mean_and_deviation_are_over_the_seeds(evaluate):
  train, test = _data(300, 203, 12, 6)
  result = evaluate('fewshot', train, test, num_classes=6)
  assert result.pop('num_examples') == 203
  assert list(result) == [
    f'{k}shot{suffix}' for k in (1, 5, 10, 25) for suffix in ('', '_std')
  ]
  for shots in (1, 5, 10, 25):
    accuracies = [
      np.mean(_oracle(train, test[0], 6, shots, seed=seed) == test[1])
      for seed in range(3)
    ]
    assert result[f'{shots}shot'] == pytest.approx(np.mean(accuracies))
    deviation = np.std(accuracies, ddof=1)
    assert result[f'{shots}shot_std'] == pytest.approx(deviation)
    assert deviation > 0


def test_a_class_without_images_is_never_answered(evaluate):
  train, test = _data(300, 100, 12, 6)
  keep = train[1] != 2
  train = train[0][keep], train[1][keep]
  test = test[0], np.full(100, 2)
  result = evaluate('fewshot', train, test, num_classes=6, shots=(5,))
  assert result['5shot'] == 0


def test_separate_classes_are_told_apart_from_one_image_each(evaluate):
  x = 10 * np.eye(4)
  y = np.arange(4)
  noise = np.random.default_rng(0).normal(size=(12, 4))
  result = evaluate(
    'fewshot',
    (x, y),
    (np.tile(x, (3, 1)) + noise, np.tile(y, 3)),
    num_classes=4,
  )
  # All shots are one shot: the classes have a single image.
  assert result['1shot'] == result['25shot'] == 1.0
  assert result['1shot_std'] == 0.0


def test_the_swept_l2_is_the_best_on_held_out_images(evaluate):
  train, test = _data(500, 300, 30, 5, spread=0.7)
  grid = [2.0**i for i in (0, 5, 10, 15)]
  result = evaluate(
    'fewshot',
    train,
    test,
    num_classes=5,
    shots=(1, 5),
    l2=grid,
    held_out_per_class=10,
    num_seeds=2,
  )
  for shots in (1, 5):
    held_out_hits, accuracies = [], []
    for l2 in grid:
      right = 0
      for seed in (0, 1):
        order = _chosen(train[1], 5, 15, seed)
        rows = np.setdiff1d(order, _chosen(train[1], 5, 5, seed))
        answers = _oracle(train, train[0][rows], 5, shots, seed=seed, l2=l2)
        right += np.sum(answers == train[1][rows])
      held_out_hits.append(right)
      accuracies.append(
        [
          np.mean(_oracle(train, test[0], 5, shots, seed=s, l2=l2) == test[1])
          for s in (0, 1)
        ]
      )
    best = max(range(4), key=lambda i: (held_out_hits[i], grid[i]))
    assert result[f'{shots}shot_l2'] == grid[best]
    assert result[f'{shots}shot'] == pytest.approx(np.mean(accuracies[best]))
  assert len(set(held_out_hits)) > 1


def test_an_l2_that_float32_cannot_solve_is_an_error_or_passed_over(evaluate):
  x = np.random.default_rng(0).normal(size=(40, 3))
  x = np.concatenate([x, x], axis=1)
  data = (x, np.arange(40) % 2)
  with pytest.raises(UserError, match=r'l2=1e-12 is too small for 20 shots'):
    evaluate('fewshot', data, data, num_classes=2, shots=(20,), l2=1e-12)
  result = evaluate(
    'fewshot', data, data, num_classes=2, shots=(10,), l2=[1e-12, 1.0]
  )
  assert result['10shot_l2'] == 1.0


def test_no_image_to_hold_out_is_an_error(evaluate):
  data = _data(20, 20, 4, 2)
  with pytest.raises(
    UserError, match='with 20 shots no training image is left'
  ):
    evaluate('fewshot', *data, num_classes=2, shots=(20,), l2=[1.0, 2.0])


def test_options_without_meaning_are_listed_together(evaluate):
  data = _data(20, 20, 4, 2)
  with pytest.raises(UserError) as e:
    evaluate(
      'fewshot',
      *data,
      num_classes=2,
      shots=(0, 1),
      num_seeds=0,
      l2=-1.0,
      held_out_per_class=5,
    )
  for text in ('shots', 'num_seeds', 'l2 is positive', 'held_out_per_class'):
    assert text in str(e.value)
