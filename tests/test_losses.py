"""Losses, targets and top-k accuracy against SciPy and answers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vit_jax import losses
from vit_jax.errors import UserError


def _random(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_softmax_loss_of_equal_logits_is_log_of_the_number_of_classes():
  loss = losses.softmax_cross_entropy(
    jnp.zeros((2, 4)), jnp.eye(4)[jnp.array([0, 3])]
  )
  np.testing.assert_allclose(loss, [np.log(4), np.log(4)], rtol=1e-6)


def test_softmax_loss_equals_scipy_with_soft_targets():
  logits, targets = 5 * _random((6, 7)), np.abs(_random((6, 7), 1))
  expected = -(targets * scipy.special.log_softmax(logits, axis=-1)).sum(-1)
  actual = losses.softmax_cross_entropy(logits, targets)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_sigmoid_loss_equals_scipy_and_is_a_sum_over_classes():
  logits = 5 * _random((6, 7))
  targets = (_random((6, 7), 1) > 0).astype(np.float32)
  p = scipy.special.expit(logits.astype(np.float64))
  expected = -(targets * np.log(p) + (1 - targets) * np.log1p(-p)).sum(-1)
  actual = losses.sigmoid_cross_entropy(logits, targets)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize('name', losses.CROSS_ENTROPIES)
def test_losses_of_huge_logits_are_finite(name):
  logits = jnp.array([[1e4, -1e4, 0.0]])
  targets = jnp.array([[0.0, 1.0, 0.0]])
  loss, grad = jax.value_and_grad(
    lambda x: losses.cross_entropy(name)(x, targets)[0]
  )(logits)
  # Softmax pays the distance, 2e4; sigmoid pays 1e4 twice and log(2).
  expected = {'softmax': 2e4, 'sigmoid': 2e4 + np.log(2)}[name]
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize('name', losses.CROSS_ENTROPIES)
def test_losses_are_float32_of_bfloat16_logits(name):
  logits, targets = _random((3, 50)), np.eye(50)[:3]
  low = jnp.asarray(logits, jnp.bfloat16)
  loss = losses.cross_entropy(name)(low, targets)
  assert loss.dtype == jnp.float32
  exact = losses.cross_entropy(name)(low.astype(jnp.float32), targets)
  np.testing.assert_array_equal(loss, exact)


@pytest.mark.parametrize('name', losses.CROSS_ENTROPIES)
def test_targets_that_would_broadcast_are_an_error(name):
  with pytest.raises(UserError, match=r'\[2, 3\] and targets \[2, 1\]'):
    losses.cross_entropy(name)(jnp.zeros((2, 3)), jnp.zeros((2, 1)))


def test_unknown_loss_names_the_choices():
  with pytest.raises(UserError, match=r"'mse'.*softmax.*sigmoid"):
    losses.cross_entropy('mse')


def test_one_hot_smooths_towards_the_uniform_distribution():
  actual = losses.one_hot(jnp.array([2, 0]), 4, label_smoothing=0.1)
  expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_smoothing_mixed_targets_mixes_smoothed_targets():
  a, b = jnp.array([0]), jnp.array([2])
  mixed = 0.3 * losses.one_hot(a, 3) + 0.7 * losses.one_hot(b, 3)
  smoothed = 0.3 * losses.one_hot(a, 3, 0.2) + 0.7 * losses.one_hot(b, 3, 0.2)
  np.testing.assert_allclose(losses.smooth(mixed, 0.2), smoothed, rtol=1e-6)


@pytest.mark.parametrize('label', [-1, 4, 255])
@pytest.mark.parametrize('name', losses.CROSS_ENTROPIES)
def test_label_without_a_class_makes_the_loss_nan(name, label):
  targets = losses.one_hot(jnp.array([1, label]), 4, label_smoothing=0.1)
  loss = losses.cross_entropy(name)(jnp.zeros((2, 4)), targets)
  assert np.isfinite(loss[0]) and np.isnan(loss[1])


def test_targets_take_labels_of_either_kind():
  soft = jnp.array([[0.25, 0.75], [1.0, 0.0]])
  np.testing.assert_array_equal(losses.targets(soft, 2), soft)
  hard = losses.targets(jnp.array([1, 0]), 2)
  np.testing.assert_array_equal(hard, [[0, 1], [1, 0]])


@pytest.mark.parametrize(
  'label', [np.zeros((2, 5)), np.zeros(2), np.zeros((2, 1), np.int32)]
)
def test_labels_that_do_not_fit_the_classes_are_an_error(label):
  with pytest.raises(UserError, match=r'int32 \[B\], or \[B, 4\]'):
    losses.targets(jnp.asarray(label), 4)


def test_topk_correct_counts_a_label_within_the_best_k():
  logits = jnp.array([[0.0, 3.0, 2.0, 1.0]] * 4)
  targets = losses.one_hot(jnp.array([0, 1, 2, 3]), 4)
  expected = {1: [0, 1, 0, 0], 2: [0, 1, 1, 0], 3: [0, 1, 1, 1]}
  for k, row in expected.items():
    hit, labelled = losses.topk_correct(logits, targets, k)
    np.testing.assert_array_equal(hit, row)
    assert labelled.all()


def test_topk_correct_accepts_any_listed_class_and_marks_rows_without_one():
  logits = jnp.array([[1.0, 3.0, 2.0]] * 3)
  targets = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
  hit, labelled = losses.topk_correct(logits, targets)
  np.testing.assert_array_equal(hit, [True, False, False])
  np.testing.assert_array_equal(labelled, [True, True, False])


def test_topk_correct_takes_the_dominant_class_of_a_mixed_row():
  logits = jnp.array([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
  targets = jnp.array([[0.4, 0.6, 0.0], [0.6, 0.4, 0.0]])
  np.testing.assert_array_equal(
    losses.topk_correct(logits, targets)[0], [False, True]
  )


@pytest.mark.parametrize('k', [1, 2])
def test_equal_logits_hit_only_the_first_k_classes(k):
  targets = losses.one_hot(jnp.arange(4), 4)
  hit, _ = losses.topk_correct(jnp.zeros((4, 4)), targets, k)
  np.testing.assert_array_equal(hit, np.arange(4) < k)
