"""The numbers of the classification report, against scikit-learn and by hand.

The images of these tests are the logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from vit_jax.errors import UserError
from vit_jax.evaluators import _statistics, classification_report
from vit_jax.parallel import mesh as mesh_lib


def predict(params, batch):
  return {'logits': params * batch['image'][:, 0, 0, :]}


@pytest.fixture
def make(tmp_path):
  """Returns a function from logits and labels to an evaluator and weights."""

  def build(logits, labels, *, names=None, **options):
    arrays = {
      'test_images': np.asarray(logits, np.float32)[:, None, None, :],
      'test_labels': np.asarray(labels),
    }
    if names is not None:
      arrays['class_names'] = np.array(names)
    path = tmp_path / 'data.npz'
    np.savez(path, **arrays)
    data = dict(name='arrays', path=str(path), split='test')
    if np.ndim(labels) == 1 and names is None:
      data['num_classes'] = np.shape(logits)[-1]
    mesh = mesh_lib.make_mesh()
    options = dict(batch_size=8, num_threads=0, resamples=20) | options
    evaluator = classification_report.Evaluator(
      predict, mesh, data=data, ops='', **options
    )
    return evaluator, jax.device_put(jnp.float32(1), mesh_lib.replicated(mesh))

  return build


@pytest.fixture
def evaluate(make):
  def run(*args, **options):
    evaluator, params = make(*args, **options)
    with jax.transfer_guard('disallow'):
      return evaluator.run(params)

  return run


def _random(n, num_classes, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, num_classes, n)
  logits = rng.normal(size=(n, num_classes)).round(1)  # With ties.
  logits[np.arange(n), labels] += 0.75
  return logits.astype(np.float32), labels


def test_several_classes_equal_scikit_learn(evaluate):
  logits, labels = _random(203, 6)
  labels[labels == 2] = 3  # A class that is only answered.
  found = evaluate(logits, labels, per_class=True)
  answers = logits.argmax(1)
  table = sklearn.metrics.classification_report(
    labels, answers, output_dict=True, zero_division=0
  )
  assert found['top1'] == pytest.approx(table['accuracy'], rel=1e-12)
  for ours, theirs in (('precision',) * 2, ('recall',) * 2, ('f1', 'f1-score')):
    average = table['macro avg'][theirs]
    assert found[f'{ours}_macro'] == pytest.approx(average, rel=1e-12)
    for y in range(6):
      expected = table[str(y)][theirs]
      assert found[f'{ours}/{y}'] == pytest.approx(expected, rel=1e-12)
  cells = sklearn.metrics.multilabel_confusion_matrix(labels, answers)
  specificity = cells[:, 0, 0] / cells[:, 0].sum(1)
  assert found['specificity_macro'] == pytest.approx(specificity.mean())
  assert found['specificity/4'] == pytest.approx(specificity[4])


@pytest.mark.parametrize('positive', [0, 1])
def test_two_classes_equal_scikit_learn(evaluate, positive):
  logits, labels = _random(203, 2)
  found = evaluate(logits, labels, positive=positive)
  score = logits[:, positive] - logits[:, 1 - positive]
  answer, right = logits.argmax(1) == positive, labels == positive
  metrics = sklearn.metrics
  assert (
    found.items()
    >= {
      'precision': pytest.approx(metrics.precision_score(right, answer)),
      'recall': pytest.approx(metrics.recall_score(right, answer)),
      'specificity': pytest.approx(metrics.recall_score(~right, ~answer)),
      'f1': pytest.approx(metrics.f1_score(right, answer)),
      'roc_auc': pytest.approx(metrics.roc_auc_score(right, score)),
      'average_precision': pytest.approx(
        metrics.average_precision_score(right, score)
      ),
    }.items()
  )


def test_several_labels_equal_scikit_learn(evaluate):
  rng = np.random.default_rng(0)
  labels = (rng.random((150, 5)) < 0.3).astype(np.float32)
  labels[:, 4] = 0  # A class that no image has.
  logits = (rng.normal(size=labels.shape) + 2 * labels - 1).round(1)
  found = evaluate(logits, labels, threshold=0.4, per_class=True)
  answers = scipy.special.expit(logits) >= 0.4
  for average in ('macro', 'micro'):
    for name in ('precision', 'recall', 'f1'):
      expected = getattr(sklearn.metrics, f'{name}_score')(
        labels, answers, average=average, zero_division=0
      )
      assert found[f'{name}_{average}'] == pytest.approx(expected), name
  negative, rejected = ~labels.astype(bool), ~answers
  expected = (negative & rejected).sum() / negative.sum()
  assert found['specificity_micro'] == pytest.approx(expected)
  for name, function in (
    ('roc_auc', sklearn.metrics.roc_auc_score),
    ('average_precision', sklearn.metrics.average_precision_score),
  ):
    expected = [function(labels[:, y], logits[:, y]) for y in range(4)]
    assert found[f'{name}_macro'] == pytest.approx(np.mean(expected))
    assert found[f'{name}/2'] == pytest.approx(expected[2])
    assert f'{name}/4' not in found
  assert found['num_examples'] == 150  # Those without any label, too.


def test_a_resample_is_the_metric_of_the_repeated_examples():
  rng = np.random.default_rng(1)
  score, right = rng.normal(size=40).round(1), rng.random(40) < 0.4
  ranking = _statistics.Ranking(score, right)
  for weight in _statistics.resamples(40, 5, seed=3):
    assert weight.sum() == 40
    repeated = np.repeat(np.arange(40), weight.astype(int))
    found = ranking.areas(weight)
    y, x = right[repeated], score[repeated]
    assert found['roc_auc'] == pytest.approx(
      sklearn.metrics.roc_auc_score(y, x)
    )
    expected = sklearn.metrics.average_precision_score(y, x)
    assert found['average_precision'] == pytest.approx(expected)


def test_the_interval_of_an_accuracy_is_that_of_the_binomial(evaluate):
  # 80 of 100 right: the standard error is 4 %.
  logits = np.eye(3)[np.r_[np.zeros(80, int), np.ones(20, int)]]
  found = evaluate(logits, np.zeros(100, int), resamples=2000)
  assert found['top1'] == 0.8
  low, high = found['top1_low'], found['top1_high']
  assert low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.015)
  assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.015)
  narrow = evaluate(logits, np.zeros(100, int), resamples=2000, confidence=0.5)
  assert low < narrow['top1_low'] < 0.8 < narrow['top1_high'] < high
  again = evaluate(logits, np.zeros(100, int), resamples=2000)
  assert again == found
  other = evaluate(logits, np.zeros(100, int), resamples=50, seed=1)
  assert (
    other['top1_low']
    != evaluate(logits, np.zeros(100, int), resamples=50, seed=2)['top1_low']
  )
  plain = evaluate(logits, np.zeros(100, int), resamples=0)
  assert not any(name.endswith(('_low', '_high')) for name in plain)


def test_undefined_metrics_are_left_out(evaluate):
  found = evaluate(np.eye(2)[[0, 0, 1]], [0, 0, 0])
  assert found['recall'] == 0 and found['specificity'] == 2 / 3
  assert not any('roc_auc' in name for name in found)


def test_the_confusion_matrix_has_labels_as_rows(make):
  evaluator, params = make(np.eye(3)[[0, 1, 1, 2]], [0, 0, 0, 2])
  expected = [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
  np.testing.assert_array_equal(evaluator.confusion_matrix(params), expected)
  evaluator, params = make(np.eye(3), np.eye(3, dtype=np.float32))
  with pytest.raises(UserError, match='several labels for each image'):
    evaluator.confusion_matrix(params)


def test_labels_that_do_not_fit_are_errors(evaluate):
  with pytest.raises(UserError, match='between 0 and 1'):
    evaluate(np.eye(3), np.full((3, 3), 0.5, np.float32))
  with pytest.raises(UserError, match='which has 3'):
    evaluate(np.eye(3), [0, 1, 3], names=list('abcd'))


@pytest.mark.parametrize(
  'options',
  [
    dict(resamples=-1),
    dict(confidence=95),
    dict(threshold=0),
    dict(positive=2),
  ],
)
def test_options_out_of_range_are_errors(make, options):
  with pytest.raises(UserError, match=r'resamples=.* positive='):
    make(np.eye(3), [0, 1, 2], **options)
