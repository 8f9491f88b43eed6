"""Few-shot accuracies against big_vision's formulae in NumPy, float64."""

import itertools

import numpy as np
import pytest
from fewshot_oracle import ridge_classes, support_rows

from vit_jax.errors import UserError
from vit_jax.evaluators import _features, fewshot
from vit_jax.parallel import mesh as mesh_lib


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
def test_every_prediction_is_that_of_the_float64ridge_classes(
  evaluate, width, shots
):
  train, (queries, _) = _data(800, 3000, width, 8)
  # Where the labels are the oracle's predictions, the accuracy is 1.
  labels = ridge_classes(train, queries, 8, shots)
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


def test_the_solution_is_good_to_float32_where_the_penalty_is_weak():
  num_rows, width = 250, 192
  rng = np.random.default_rng(0)
  x = rng.normal(size=(num_rows, width)) @ rng.normal(size=(width, width))
  x = np.float32(x)
  y = rng.integers(0, 10, num_rows).astype(np.int32)
  mean, std = x.mean(axis=0, dtype='d'), x.std(axis=0, dtype='d')
  mesh = mesh_lib.make_mesh()
  found = fewshot._ridge(
    *(_features.put_rows(z, mesh) for z in (x, y, np.ones(num_rows, bool))),
    *(_features.put(np.float32(z), mesh) for z in (mean, std, 1.0)),
    num_classes=10,
    out_sharding=mesh_lib.replicated(mesh),
  )
  x = np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=100.0)
  gram = x.T @ x + np.eye(width + 1)
  expected = np.linalg.solve(gram, x.T @ np.eye(10)[y])
  # Without the refinement 1e-5 of the scores, which are 0.3 and less.
  np.testing.assert_allclose(x @ found, x @ expected, atol=1e-6)


def test_constant_and_repeated_features_change_no_prediction(evaluate):
  train, (queries, _) = _data(400, 1000, 20, 5)

  def wide(x):
    return np.concatenate([x, x[:, :4], np.full((len(x), 3), 7.3)], axis=1)

  train = wide(train[0]).astype(np.float32), train[1]
  queries = wide(queries).astype(np.float32)
  for shots in (2, 25):
    labels = ridge_classes(train, queries, 5, shots)
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
      np.mean(ridge_classes(train, test[0], 6, shots, seed=seed) == test[1])
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


def test_separable_classes_are_classified_from_one_image_each(evaluate):
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


@pytest.mark.parametrize('data_seed', [4, 5])
def test_the_swept_l2_is_the_best_on_held_out_images(evaluate, data_seed):
  train, test = _data(500, 300, 30, 5, seed=data_seed, spread=0.7)
  grid = [1.0, 2.0**4, 2.0**8, 2.0**12]
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
  differs = []
  for shots in (1, 5):
    hits, held_out_hits = np.zeros((2, 4, 2), int)
    for (i, l2), seed in itertools.product(enumerate(grid), (0, 1)):
      support = support_rows(train[1], 5, 5, seed)
      held_out = np.setdiff1d(support_rows(train[1], 5, 15, seed), support)
      queries = np.concatenate([test[0], train[0][held_out]])
      labels = np.concatenate([test[1], train[1][held_out]])
      right = (
        ridge_classes(train, queries, 5, shots, seed=seed, l2=l2) == labels
      )
      hits[i, seed] = right[:300].sum()
      held_out_hits[i, seed] = right[300:].sum()
    totals = held_out_hits.sum(axis=1)
    # With the data of seed 4 two have the most hits: the larger one is taken.
    best = max(range(4), key=lambda i: (totals[i], grid[i]))
    assert result[f'{shots}shot_l2'] == grid[best]
    assert result[f'{shots}shot'] == pytest.approx(hits[best].mean() / 300)
    differs.append(hits.sum(axis=1).argmax() != best)
  # The test images would have chosen otherwise.
  assert any(differs)


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
