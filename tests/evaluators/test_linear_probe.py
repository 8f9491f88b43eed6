"""Linear probes against scikit-learn, and SGD against NumPy in float64."""

import jax
import numpy as np
import pytest
import scipy.special
from sklearn import linear_model

from vit_jax.errors import UserError
from vit_jax.evaluators import _features, _logistic, linear_probe
from vit_jax.parallel import mesh as mesh_lib


def _data(num_train, num_test, width=10, num_classes=4, *, spread=1.0, seed=0):
  """Returns features of overlapping classes whose scales differ."""
  rng = np.random.default_rng(seed)
  means = spread * rng.normal(size=(num_classes, width))
  scale = np.exp(0.5 * rng.normal(size=width))
  splits = []
  for n in (num_train, num_test):
    y = rng.integers(0, num_classes, n)
    x = scale * (means[y] + rng.normal(size=(n, width)) + 0.5)
    splits.append((np.float32(x), y))
  return splits


def _features_of(data):
  return _features.Features(data[0], np.int32(data[1]))


def _mesh(devices):
  return mesh_lib.make_mesh(devices=jax.devices()[:devices])


@pytest.mark.parametrize('l2', [0.1, 1.0, 100.0])
def test_lbfgs_finds_the_minimum_that_scikit_learn_finds(l2):
  train, test = _data(301, 500)
  found = _logistic.lbfgs(
    _features_of(train), _mesh(8), num_classes=4, l2=l2, max_iterations=1000
  )
  expected = linear_model.LogisticRegression(C=1 / l2, tol=1e-8, max_iter=1000)
  expected.fit(np.float64(train[0]), train[1])
  found = {key: np.float64(x[0]) for key, x in jax.device_get(found).items()}
  # Only differences of biases matter. Derivatives within 1e-4 leave this much.
  np.testing.assert_allclose(found['kernel'], expected.coef_.T, atol=0.02)
  probabilities = expected.predict_proba(test[0])
  logits = test[0] @ found['kernel'] + found['bias']
  ours = np.exp(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
  np.testing.assert_allclose(ours, probabilities, atol=0.01)


def test_lbfgs_predicts_as_scikit_learn_does(evaluate):
  train, (queries, _) = _data(300, 2000)
  reference = linear_model.LogisticRegression(C=1 / 3.0, max_iter=1000)
  reference.fit(np.float64(train[0]), train[1])
  probabilities = np.sort(reference.predict_proba(queries), axis=1)
  # Where the two best are closer, the tolerance of the minimum decides.
  clear = probabilities[:, -1] - probabilities[:, -2] > 0.01
  assert clear.mean() > 0.95
  labels = reference.predict(queries)
  result = evaluate(
    'linear_probe',
    train,
    (queries[clear], labels[clear]),
    num_classes=4,
    l2=3.0,
  )
  loss = -np.log(probabilities[clear, -1]).mean()
  assert result['loss'] == pytest.approx(loss, abs=1e-3)
  assert result['top1'] == 1.0 and result['num_examples'] == clear.sum()


def test_a_class_without_images_does_not_disturb_lbfgs(evaluate):
  train, test = _data(100, 50)
  result = evaluate('linear_probe', train, test, num_classes=9, l2=1.0)
  expected = linear_model.LogisticRegression(max_iter=1000).fit(*train)
  assert result['top1'] == pytest.approx(expected.score(*test), abs=0.021)
  assert result['top5'] == 1.0


def test_top5_is_whether_the_label_is_among_the_best_five():
  kernel = np.eye(7, dtype=np.float32)[None]
  heads = {'kernel': kernel, 'bias': np.zeros((1, 7), np.float32)}
  x = np.float32([[7, 6, 5, 4, 3, 2, 1]] * 7)
  test = _features.Features(x, np.arange(7, dtype=np.int32))
  actual = _logistic.scores(heads, test, _mesh(8))
  assert actual['top1'] == [1 / 7] and actual['top5'] == [5 / 7]


def test_the_search_is_clips():
  tried = []

  def score(l2):
    tried.append(round(8 * np.log10(l2)))
    return -abs(tried[-1] - 13.4)

  assert linear_probe._search(score) == pytest.approx(10 ** (13 / 8))
  # 1e-6, 1e-4, ..., 1e6, then around the best: 16, then 16 - 4, then 12 + 1.
  assert tried == [-48, -32, -16, 0, 16, 32, 48, 8, 24, 12, 20, 10, 14, 13, 15]


def test_the_search_stays_between_1e_minus_6_and_1e6():
  for sign in (-1, 1):
    tried = []

    def score(l2, tried=tried, sign=sign):
      tried.append(np.log10(l2))
      return sign * l2

    assert linear_probe._search(score) == pytest.approx(10.0 ** (6 * sign))
    assert max(np.abs(tried)) == pytest.approx(6)


def test_l2_is_chosen_on_held_out_images_and_all_are_trained_on(
  evaluate, monkeypatch
):
  train, test = _data(60, 200, width=40, spread=0.3)
  fits, scored = [], []
  fit, scores = _logistic.lbfgs, _logistic.scores

  def watched_fit(images, mesh, **options):
    fits.append((len(images.x), options['l2']))
    return fit(images, mesh, **options)

  def watched_scores(heads, images, mesh):
    result = scores(heads, images, mesh)
    scored.append((len(images.x), result['top1'][0], result['loss'][0]))
    return result

  monkeypatch.setattr(_logistic, 'lbfgs', watched_fit)
  monkeypatch.setattr(_logistic, 'scores', watched_scores)
  result = evaluate(
    'linear_probe',
    train,
    test,
    num_classes=4,
    held_out=0.25,
    max_iterations=30,
    devices=1,
  )
  assert [rows for rows, _ in fits] == [45] * (len(fits) - 1) + [60]
  assert [x[0] for x in scored] == [15] * (len(fits) - 1) + [200]
  ranks = [(top1, -loss) for _, top1, loss in scored[:-1]]
  # Several have the best top-1: the loss decides among them.
  assert sum(rank[0] == max(ranks)[0] for rank in ranks) > 1
  assert result['l2'] == fits[-1][1] == fits[ranks.index(max(ranks))][1]
  assert result['top1'] == scored[-1][1]


def _numpy_sgd(train, *, seed, rate, epochs, batch_size, num_classes):
  """Trains as DINO's eval_linear does, in float64; returns kernel and bias."""
  x, y = np.float64(train[0]), train[1]
  rng = np.random.default_rng(seed)
  kernel = 0.01 * rng.standard_normal((x.shape[1], num_classes))
  w = np.concatenate([kernel, np.zeros((1, num_classes))])
  x = np.pad(x, ((0, 0), (0, 1)), constant_values=1.0)
  velocity = 0.0
  for epoch in range(epochs):
    scaled = rate * batch_size / 256 * (1 + np.cos(np.pi * epoch / epochs)) / 2
    order = rng.permutation(len(x))
    for start in range(0, len(x), batch_size):
      rows = order[start : start + batch_size]
      p = np.exp(x[rows] @ w)
      p /= p.sum(axis=1, keepdims=True)
      gradient = x[rows].T @ (p - np.eye(num_classes)[y[rows]]) / len(rows)
      velocity = 0.9 * velocity + gradient
      w = w - scaled * velocity
  return w[:-1], w[-1]


def test_sgd_takes_the_steps_of_dino():
  train, _ = _data(203, 1)
  options = dict(num_classes=4, seed=3, epochs=4, batch_size=64)
  rates = (0.1, 0.02)
  heads = _logistic.sgd(
    _features_of(train), _mesh(8), learning_rates=rates, **options
  )
  for i, rate in enumerate(rates):
    kernel, bias = _numpy_sgd(train, rate=rate, **options)
    # 16 steps in float32.
    np.testing.assert_allclose(heads['kernel'][i], kernel, atol=2e-6)
    np.testing.assert_allclose(heads['bias'][i], bias, atol=2e-6)


def test_sgd_has_the_same_bits_on_any_number_of_devices():
  train, _ = _data(77, 1)
  one, eight = (
    _logistic.sgd(
      _features_of(train),
      _mesh(devices),
      num_classes=4,
      seed=0,
      learning_rates=(0.1,),
      epochs=3,
      batch_size=32,
    )
    for devices in (1, 8)
  )
  for key, x in one.items():
    np.testing.assert_array_equal(x, eight[key])


def test_the_learning_rate_is_chosen_and_a_diverged_one_is_not(evaluate):
  train, test = _data(200, 300, spread=2.0)
  rates = (1e-30, 0.1, 3e38)
  result = evaluate(
    'linear_probe',
    train,
    test,
    num_classes=4,
    solver='sgd',
    learning_rates=rates,
    epochs=5,
    sgd_batch_size=256,
    seed=1,
  )
  assert result['learning_rate'] == 0.1
  kernel, bias = _numpy_sgd(
    train, seed=1, rate=0.1, epochs=5, batch_size=256, num_classes=4
  )
  logits = test[0] @ kernel + bias
  assert result['top1'] == np.mean(np.argmax(logits, axis=1) == test[1])
  # Trained on all images, those that were held out included.
  losses = scipy.special.logsumexp(logits, axis=1) - logits[range(300), test[1]]
  assert result['loss'] == pytest.approx(losses.mean(), rel=1e-5)


def test_a_diverged_head_is_worse_than_any_other():
  kernel = np.float32([[[np.nan, 0]], [[1, -1]], [[np.inf, 0]], [[-1, 1]]])
  heads = {'kernel': kernel, 'bias': np.zeros((4, 2), np.float32)}
  held_out = _features.Features(np.ones((3, 1), 'f'), np.zeros(3, np.int32))
  ranks = linear_probe._ranks(heads, held_out, _mesh(8))
  assert sorted(range(4), key=lambda i: ranks[i]) == [0, 2, 3, 1]


def test_a_diverged_classifier_has_no_accuracy(evaluate):
  train, test = _data(60, 30)
  result = evaluate(
    'linear_probe',
    train,
    test,
    num_classes=4,
    solver='sgd',
    learning_rates=(3e38,),
    epochs=3,
    sgd_batch_size=256,
  )
  assert np.isnan([result['top1'], result['loss']]).all()
  assert 'learning_rate' not in result


def test_both_solvers_separate_separable_classes(evaluate):
  train, test = _data(90, 200, spread=8.0)
  for options in (
    dict(l2=1.0),
    dict(solver='sgd', epochs=10, sgd_batch_size=16),
  ):
    result = evaluate(
      'linear_probe', train, test, num_classes=4, devices=2, **options
    )
    assert result['top1'] == 1.0


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(solver='adam'), r"solver='adam'; expected one of \['lbfgs', 'sgd'\]"),
    (dict(solver='sgd', l2=1.0), "unknown key 'l2'; it takes: .*'epochs'"),
    (dict(epochs=5), "unknown key 'epochs'; it takes: .*'max_iterations'"),
    (dict(l2=-1.0), r'l2 is positive; got -1\.0'),
    (dict(solver='sgd', epochs=0), 'epochs is positive; got 0'),
    (dict(solver='sgd', learning_rates=()), 'learning_rates is positive'),
    (dict(held_out=1.5), r'held_out must be between 0 and 1; got 1\.5'),
    (dict(l2=1.0, held_out=0.1), 'held_out has no effect'),
    (
      dict(solver='sgd', learning_rates=(0.1,), held_out=0.1),
      'held_out has no effect',
    ),
    (dict(held_out=0.99), '10 training images are too few to hold out 99%'),
  ],
)
def test_options_without_meaning_are_errors(evaluate, options, message):
  data = _data(10, 10)
  with pytest.raises(UserError, match=message):
    evaluate('linear_probe', *data, num_classes=4, **options)
