"""Weights of classes in the supervised loss, against torch's definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.objectives.test_supervised import STATE, Linear
from vit_jax.errors import UserError
from vit_jax.objectives.supervised import Objective

WEIGHTS = [0.5, 2.0, 4.0]
BATCH = {
  'image': jax.random.normal(jax.random.key(0), (4, 2, 2, 1)),
  'label': jnp.int32([0, 2, 1, 2]),
}


def _loss(num_classes=3, **options):
  """Returns the loss, and in float64 the logits of random weights."""
  objective = Objective(Linear(num_classes), **options)
  params = objective.init(jax.random.key(1), BATCH)['params']
  logits = np.float64(objective.predict(params, BATCH)['logits'])
  loss, _ = objective.loss(params, STATE, BATCH, jax.random.key(2))
  return loss, logits


@pytest.mark.parametrize('smoothing', [0.0, 0.3])
@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_each_class_s_part_of_the_loss_is_weighted(kind, smoothing):
  loss, logits = _loss(
    loss=kind, class_weights=WEIGHTS, label_smoothing=smoothing
  )
  targets = (1 - smoothing) * np.eye(3)[BATCH['label']] + smoothing / 3
  parts = targets * scipy.special.log_softmax(logits, axis=-1)
  if kind == 'sigmoid':
    p = scipy.special.expit(logits)
    parts = targets * np.log(p) + (1 - targets) * np.log(1 - p)
  expected = -(parts * np.array(WEIGHTS)).sum(-1).mean()
  np.testing.assert_allclose(loss, expected, rtol=2e-6)


def test_balanced_weights_are_those_of_scikit_learn():
  utils = pytest.importorskip('sklearn.utils.class_weight')
  counts = [10, 1, 4]
  labels = np.repeat([0, 1, 2], counts)
  weights = utils.compute_class_weight(
    'balanced', classes=np.arange(3), y=labels
  )
  np.testing.assert_allclose(
    _loss(class_weights='balanced', class_counts=counts)[0],
    _loss(class_weights=weights.tolist())[0],
    rtol=1e-6,
  )


def test_weights_of_one_change_nothing():
  assert _loss(class_weights=[1, 1, 1])[0] == _loss()[0]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(class_weights=[1, 2]), r'has 2 numbers and the model 3 classes'),
    (dict(class_weights=[1, -1, 2]), r'expected a list of a number >= 0'),
    (dict(class_weights=[0, 0, 0]), 'not all of them 0'),
    (dict(class_weights=[1, 'x', 2]), "for each class.*or 'balanced'"),
    (dict(class_weights='inverse'), "class_weights='inverse': expected a list"),
    (dict(class_weights='balanced'), 'class_counts, the number .* go together'),
    (dict(class_counts=[1, 2, 3]), 'go together; got class_weights=None'),
    (
      dict(class_weights='balanced', class_counts=[4, 0, 2.5]),
      r'whole number >= 1 for each class; wrong at the ids \[1, 2\]',
    ),
    (
      dict(class_weights='balanced', class_counts=[4, 1]),
      'has 2 numbers and the model 3 classes',
    ),
  ],
)
def test_weights_that_do_not_fit_are_an_error(options, message):
  with pytest.raises(UserError, match=message):
    _loss(**options)
