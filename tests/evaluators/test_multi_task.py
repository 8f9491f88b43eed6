"""Scores of tasks with missing labels, against scikit-learn and by hand.

The images of these tests are the outputs of the model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from vit_jax.errors import UserError
from vit_jax.evaluators import multi_task
from vit_jax.parallel import mesh as mesh_lib


def predict(params, batch):
  return {'logits': params * batch['image'][:, 0, 0, :]}


@pytest.fixture
def evaluate(tmp_path):
  def run(outputs, labels, **task):
    path = tmp_path / 'data.npz'
    images = np.asarray(outputs, np.float32)[:, None, None, :]
    np.savez(path, test_images=images, test_labels=np.asarray(labels))
    evaluator = multi_task.Evaluator(
      predict,
      mesh_lib.make_mesh(),
      tasks=dict(a=dict(label='label') | task),
      output_names=dict(a='logits'),
      data=dict(name='arrays', path=str(path), split='test'),
      ops='',
      batch_size=8,
      num_threads=0,
    )
    replicated = mesh_lib.replicated(evaluator.mesh)
    params = jax.device_put(jnp.float32(1), replicated)
    with jax.transfer_guard('disallow'):
      return evaluator.run(params)

  return run


def test_labels_that_are_missing_do_not_count(evaluate):
  rng = np.random.default_rng(0)
  outputs = rng.normal(size=(45, 3)).astype('f')
  labels = (rng.random((45, 3)) > 0.5).astype('f')
  labels[:, 2] = 1  # No ranking: all have it.
  labels[rng.random((45, 3)) < 0.3] = -1
  found = evaluate(outputs, labels, loss='sigmoid', num_classes=3)
  known = labels >= 0
  precisions = [
    sklearn.metrics.average_precision_score(y[k], x[k])
    for x, y, k in list(zip(outputs.T, labels.T, known.T, strict=True))[:2]
  ]
  np.testing.assert_allclose(found['a_map'], np.mean(precisions), rtol=1e-6)
  right = ((outputs > 0) == (labels == 1))[known]
  assert found['a_accuracy'] == right.mean()
  p = 1 / (1 + np.exp(-np.float64(outputs)))
  loss = -np.where(labels == 1, np.log(p), np.log(1 - p))[known].mean()
  np.testing.assert_allclose(found['a_loss'], loss, rtol=1e-5)
  assert (found['num_a'], found['num_examples']) == (known.sum(), 45)


def test_numbers_have_absolute_and_squared_errors(evaluate):
  found = evaluate(
    [[1], [2], [5]], np.float32([[1], [0], [9]]), loss='mse', mean=3.0, std=2.0
  )
  assert found['a_mae'] == 2
  np.testing.assert_allclose(found['a_rmse'], np.sqrt(20 / 3))


def test_top1_is_of_the_rows_with_a_class(evaluate):
  outputs = np.eye(3)[[0, 1, 2, 0, 1]]
  labels = np.float32(np.eye(3)[[0, 2, 2, 0, 0]])
  labels[3:] = -1
  found = evaluate(outputs, labels, num_classes=3, label_smoothing=0.2)
  np.testing.assert_allclose(found['a_top1'], 2 / 3)
  losses = np.log(np.e + 2) - np.array([1, 0, 1])  # Without smoothing.
  np.testing.assert_allclose(found['a_loss'], losses.mean(), rtol=1e-6)
  assert found['num_a'] == 3


def test_what_does_not_fit_is_an_error(evaluate):
  outputs, none = np.zeros((4, 2)), np.full((4, 2), -1, 'f')
  with pytest.raises(UserError, match=r"no example of .* task 'a'"):
    evaluate(outputs, none, loss='sigmoid', num_classes=2)
  with pytest.raises(UserError, match='labels outside the 2 classes'):
    evaluate(outputs, np.int32([0, 1, 2, 0]), num_classes=2)
  with pytest.raises(UserError, match=r"has no field 'age'; .*label"):
    evaluate(outputs, none, label='age', loss='mae')


def test_a_model_without_the_task_is_an_error(evaluate, tmp_path):
  path = tmp_path / 'x.npz'
  images = np.zeros((4, 1, 1, 2), 'f')
  np.savez(path, test_images=images, test_labels=np.int32([0, 1, 0, 1]))
  options = dict(
    tasks=dict(a=dict(label='label', num_classes=2)),
    data=dict(name='arrays', path=str(path), split='test'),
    ops='',
    batch_size=8,
    num_threads=0,
  )
  mesh = mesh_lib.make_mesh()
  evaluator = multi_task.Evaluator(predict, mesh, **options)
  assert evaluator.outputs == ('logits/a',)
  with pytest.raises(UserError, match=r"\['logits'\] have no 'logits/a'"):
    evaluator.run(jnp.float32(1))
  with pytest.raises(UserError, match='no task b; tasks are a'):
    multi_task.Evaluator(
      predict, mesh, output_names=dict(b='logits'), **options
    )
