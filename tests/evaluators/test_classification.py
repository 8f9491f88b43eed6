"""The numbers of the classification evaluator, worked by hand and in NumPy.

The images of these tests are the logits: what the model would say is given.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vit_jax.errors import UserError
from vit_jax.evaluators import classification
from vit_jax.parallel import mesh as mesh_lib


def predict(params, batch):
  return {'logits': params * batch['image'][:, 0, 0, :]}


@pytest.fixture
def evaluate(tmp_path):
  """Returns a function from logits and labels to the evaluator's numbers."""

  def run(logits, labels, *, devices=8, names=None, model=predict, **kwargs):
    path = tmp_path / 'data.npz'
    arrays = {
      'test_images': np.asarray(logits, np.float32)[:, None, None, :],
      'test_labels': np.asarray(labels),
    }
    if names is not None:
      arrays['class_names'] = np.array(names)
    np.savez(path, **arrays)
    data = dict(name='arrays', path=str(path), split='test')
    if np.ndim(labels) == 1:
      data['num_classes'] = np.shape(logits)[-1]
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    options = dict(batch_size=8, num_threads=0) | kwargs
    evaluator = classification.Evaluator(
      model, mesh, data=data, ops='', **options
    )
    params = jax.device_put(jnp.float32(1), mesh_lib.replicated(mesh))
    with jax.transfer_guard('disallow'):
      return evaluator.run(params)

  return run


def _random(n, num_classes, seed=0):
  rng = np.random.default_rng(seed)
  logits = 2 * rng.normal(size=(n, num_classes))
  return logits.astype(np.float32), rng.integers(0, num_classes, n)


def _reference(logits, labels, *, loss='softmax'):
  """Metrics of int labels, example by example in float64."""
  logits = np.float64(logits)
  sums, bins = dict(top1=0, top5=0, loss=0.0), {}
  for row, label in zip(logits, labels, strict=True):
    order = np.argsort(-row, kind='stable')
    hit = order[0] == label
    sums['top1'] += hit
    sums['top5'] += label in order[:5]
    if loss == 'softmax':
      probabilities = scipy.special.softmax(row)
      sums['loss'] -= np.log(probabilities[label])
    else:
      probabilities = scipy.special.expit(row)
      right = np.where(np.arange(len(row)) == label, row, -row)
      sums['loss'] += np.log1p(np.exp(-right)).sum()
    confidence = probabilities.max()
    # Bin m of 15 holds ((m - 1) / 15, m / 15].
    bins.setdefault(np.ceil(confidence * 15), []).append((hit, confidence))
  n = len(labels)
  error = 0.0
  for rows in bins.values():
    accuracy, confidence = np.mean(rows, axis=0)
    error += len(rows) / n * abs(accuracy - confidence)
  means = {key: value / n for key, value in sums.items()}
  return means | {'expected_calibration_error': error, 'num_examples': n}


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_metrics_equal_the_reference(evaluate, loss):
  logits, labels = _random(203, 12)
  actual = evaluate(logits, labels, batch_size=64, loss=loss)
  expected = _reference(logits, labels, loss=loss)
  assert actual.keys() == expected.keys()
  for key, value in expected.items():
    # The device computes losses and confidences in float32.
    np.testing.assert_allclose(actual[key], value, rtol=2e-6, err_msg=key)
  for key in ('top1', 'top5', 'num_examples'):
    assert actual[key] == expected[key]


def test_every_example_counts_once_for_any_batch_size_and_device_count(
  evaluate,
):
  # Zero logits, such as those of padding, would be hits for label 0.
  logits, labels = _random(21, 7)
  labels[:10] = 0
  expected = evaluate(logits, labels, devices=1, batch_size=21)
  assert expected['num_examples'] == 21
  for devices, batch_size in ((1, 4), (8, 1), (8, 8), (8, 13), (8, 64), (3, 5)):
    actual = evaluate(logits, labels, devices=devices, batch_size=batch_size)
    assert actual['top1'] == expected['top1']
    assert actual['top5'] == expected['top5']
    assert actual['num_examples'] == 21
    for key in ('loss', 'expected_calibration_error'):
      np.testing.assert_allclose(actual[key], expected[key], rtol=1e-6)


def test_calibration_error_worked_by_hand(evaluate):
  # Confidences 0.9 (three rows, two right) and 0.6 (two rows, one right).
  p = [[0.9, 0.1]] * 3 + [[0.4, 0.6]] * 2
  result = evaluate(np.log(p), [0, 0, 1, 1, 0])
  expected = 3 / 5 * abs(2 / 3 - 0.9) + 2 / 5 * abs(1 / 2 - 0.6)
  np.testing.assert_allclose(
    result['expected_calibration_error'], expected, rtol=1e-6
  )
  loss = -np.log([0.9, 0.9, 0.1, 0.6, 0.4]).mean()
  np.testing.assert_allclose(result['loss'], loss, rtol=1e-6)
  assert result['top1'] == 3 / 5


def test_calibration_bins_of_opposite_sign_do_not_cancel(evaluate):
  # Over-confident in one bin, under-confident in another, right on average.
  p = [[0.95, 0.05]] * 2 + [[0.45, 0.55]] * 2
  result = evaluate(np.log(p), [0, 1, 1, 1])
  np.testing.assert_allclose(
    result['expected_calibration_error'], 0.45, rtol=1e-6
  )


def test_bins_are_closed_above():
  upper = np.arange(1, 16, dtype=np.float32) / np.float32(15)
  above = np.nextafter(upper[:-1], np.float32(1))
  ones = np.ones(15, bool)
  np.testing.assert_array_equal(classification._by_bin(ones, upper)[0], ones)
  expected = [0] + [1] * 14
  actual = classification._by_bin(ones[1:], above)[0]
  np.testing.assert_array_equal(actual, expected)


def test_top5_needs_six_classes(evaluate):
  assert 'top5' not in evaluate(*_random(8, 5))
  assert 'top5' in evaluate(*_random(8, 6))


def test_multi_hot_rows_hit_with_any_listed_class(evaluate):
  logits = np.log([[0.7, 0.2, 0.1]] * 4)
  labels = [[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]]
  result = evaluate(logits, np.float32(labels))
  # The last row lists nothing and is in no number.
  assert result['top1'] == 2 / 3
  assert result['num_examples'] == 3
  assert result['num_unlabelled'] == 1
  # Cross-entropy to the uniform distribution over the listed classes.
  nats = -np.log([0.7, 0.2, 0.1])
  loss = ((nats[0] + nats[1]) / 2 + (nats[1] + nats[2]) / 2 + nats[0]) / 3
  np.testing.assert_allclose(result['loss'], loss, rtol=1e-6)


def test_multi_hot_sigmoid_loss_is_the_sum_over_classes(evaluate):
  logits = scipy.special.logit([[0.9, 0.8, 0.1], [0.3, 0.4, 0.2]])
  result = evaluate(logits, np.float32([[1, 1, 0], [0, 0, 1]]), loss='sigmoid')
  rows = [[0.9, 0.8, 0.9], [0.7, 0.6, 0.2]]
  loss = -np.log(rows).sum() / 2
  np.testing.assert_allclose(result['loss'], loss, rtol=1e-6)
  # Confidences 0.9, a hit, and 0.4, a miss.
  np.testing.assert_allclose(
    result['expected_calibration_error'], (0.1 + 0.4) / 2, rtol=1e-5
  )


def test_per_class_table_names_the_classes_that_occur(evaluate):
  logits = np.eye(4)[[0, 0, 1, 1, 2]]
  result = evaluate(
    logits,
    [0, 0, 0, 1, 2],
    per_class=True,
    names=['cat', 'crane', 'crane', 'dog'],
    batch_size=1,
  )
  table = {k: v for k, v in result.items() if k.startswith('top1')}
  assert table == {
    'top1': 4 / 5,
    'top1_class_mean': pytest.approx((2 / 3 + 1 + 1) / 3),
    'top1/cat': 2 / 3,
    'top1/crane (1)': 1.0,
    'top1/crane (2)': 1.0,
  }


def test_per_class_table_without_names_has_class_numbers(evaluate):
  result = evaluate(np.eye(3)[[0, 0, 2]], [0, 2, 2], per_class=True)
  assert result['top1/0'] == 1.0 and result['top1/2'] == 0.5
  assert 'top1/1' not in result


def test_per_class_table_of_multi_hot_labels_is_an_error(evaluate):
  with pytest.raises(UserError, match='per_class=True needs one label'):
    evaluate(np.eye(3), np.eye(3, dtype=np.float32), per_class=True)


def test_labels_that_the_model_has_no_class_for_are_an_error(evaluate):
  def small(params, batch):
    return {'logits': params * batch['image'][:, 0, 0, :3]}

  with pytest.raises(UserError, match=r'labels \[3, 4\], but the model has 3'):
    evaluate(np.eye(5), [0, 1, 2, 3, 4], model=small)


def test_multi_hot_labels_of_another_width_are_an_error(evaluate):
  def small(params, batch):
    return {'logits': params * batch['image'][:, 0, 0, :3]}

  with pytest.raises(UserError, match=r'soft and multi-hot.*num_classes=3'):
    evaluate(np.eye(5), np.eye(5, dtype=np.float32), model=small)


def test_a_model_without_logits_is_an_error(evaluate):
  def features(params, batch):
    return {'features': params * batch['image'][:, 0, 0, :]}

  with pytest.raises(UserError, match=r"\['features'\] have no 'logits'"):
    evaluate(*_random(8, 3), model=features)


def test_data_without_a_label_is_an_error(evaluate):
  with pytest.raises(UserError, match=r'no example of .* has a label'):
    evaluate(np.eye(3), np.zeros((3, 3), np.float32))


def test_a_source_that_gives_no_labels_is_an_error(tmp_path):
  np.save(tmp_path / '0.npy', np.zeros((1, 1, 3), np.float32))
  (tmp_path / 'a.csv').write_text('image\n0.npy\n')
  data = dict(
    name='table', split='all', path=str(tmp_path / 'a.csv'), label_key=None
  )
  with pytest.raises(UserError, match=r'examples of .*a\.csv.* have no label'):
    classification.Evaluator(
      predict, mesh_lib.make_mesh(), data=data, ops='decode_bands', batch_size=8
    )


def test_unknown_loss_is_an_error(evaluate):
  with pytest.raises(UserError, match="loss='mse'"):
    evaluate(np.eye(3), [0, 1, 2], loss='mse')


def test_non_finite_logits_make_loss_and_calibration_nan(evaluate):
  result = evaluate([[np.nan, 0.0], [0.0, 1.0]], [0, 1])
  assert np.isnan(result['loss'])
  assert np.isnan(result['expected_calibration_error'])


SOURCE = """
import numpy as np

class Source:
  num_classes, class_names = 3, None

  def __init__(self, split, multi_hot=False):
    self._multi_hot = multi_hot

  def __len__(self):
    return 10

  def __getitem__(self, i):
    if i in (4, 7):
      raise OSError('truncated')
    logits = np.float32(np.eye(3)[i % 3])
    label = i % 3
    if self._multi_hot:
      label = logits * (i != 2)  # Number 2 lists no class.
    return {'image': logits[None, None], 'label': label}

  def describe(self, i):
    return f'picture_{i}.jpg'
"""


def _broken(tmp_path, monkeypatch, data=(), **kwargs):
  (tmp_path / 'my_data').mkdir()
  (tmp_path / 'my_data' / 'broken.py').write_text(SOURCE)
  monkeypatch.syspath_prepend(tmp_path)
  return classification.Evaluator(
    predict,
    mesh_lib.make_mesh(),
    data=dict(data, name='my_data.broken', split='test'),
    ops='',
    batch_size=8,
    num_threads=0,
    **kwargs,
  )


def test_skipped_examples_are_counted_and_named_not_scored(
  tmp_path, monkeypatch, caplog
):
  evaluator = _broken(tmp_path, monkeypatch, on_error='skip')
  with caplog.at_level(logging.WARNING):
    result = evaluator.run(jnp.float32(1))
  assert result['num_examples'] == 8 and result['num_skipped'] == 2
  assert result['top1'] == 1.0
  assert 'skipped 2 examples' in caplog.text
  assert 'picture_4.jpg' in caplog.text and 'picture_7.jpg' in caplog.text


def test_unlabelled_examples_are_not_counted_as_skipped(tmp_path, monkeypatch):
  evaluator = _broken(
    tmp_path, monkeypatch, data=dict(multi_hot=True), on_error='skip'
  )
  result = evaluator.run(jnp.float32(1))
  assert result['num_skipped'] == 2
  assert result['num_unlabelled'] == 1
  assert result['num_examples'] == 7


def test_an_unreadable_example_stops_by_default(tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r'picture_4\.jpg'):
    _broken(tmp_path, monkeypatch).run(jnp.float32(1))


def test_evaluators_with_one_predict_share_a_compilation(evaluate):
  traces = []

  def counted(params, batch):
    traces.append(1)
    return predict(params, batch)

  for _ in range(2):
    evaluate(*_random(20, 7), model=counted)
  assert len(traces) == 1
