"""Dropout: rates, independence and the factor of kept values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.models import _dropout
from vit_jax.models._dropout import Dropout, keep_mask

SHAPE = (24, 50, 512)


def dropped(x, rate, *, train=True, seed=0):
  rngs = {'dropout': jax.random.key(seed)}
  return Dropout(rate).apply({}, x, train=train, rngs=rngs)


def scores(seed, rate=0.9):
  """Returns a mask, scaled to mean 0 and variance 1."""
  mask = np.asarray(keep_mask(jax.random.key(seed), SHAPE, rate))
  return (mask - rate) / np.sqrt(rate * (1 - rate))


def deviations(products):
  """Returns by how many standard deviations a mean differs from zero."""
  return abs(products.mean()) * np.sqrt(products.size)


@pytest.mark.parametrize('rate', [0.02, 0.5, 0.9])
def test_each_element_is_kept_at_the_rate(rate):
  z = scores(0, rate)
  # Of three rates and some axes none is four standard deviations away.
  assert deviations(z) < 4
  for axis in (0, 1, 2, (0, 1), (0, 2), (1, 2)):
    means = z.mean(axis) * np.sqrt(z.size / z.mean(axis).size)
    # The variance of n standard normal numbers is 1 +- sqrt(2 / n).
    assert abs(means.var() - 1) < 4 * np.sqrt(2 / means.size)


@pytest.mark.parametrize('distance', [1, 2, 8, 128])
def test_neighbours_are_independent(distance):
  z = scores(1)
  assert deviations(z[..., distance:] * z[..., :-distance]) < 4
  if distance < 24:
    assert deviations(z[:, distance:] * z[:, :-distance]) < 4
    assert deviations(z[distance:] * z[:-distance]) < 4


def test_eight_elements_in_a_row_make_all_patterns_alike():
  mask = np.asarray(keep_mask(jax.random.key(2), SHAPE, 0.5))
  patterns = np.packbits(mask.reshape(-1, 8), axis=1)[:, 0]
  counts = np.bincount(patterns, minlength=256)
  chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
  assert abs(chi_squared - 255) < 4 * np.sqrt(2 * 255)


def test_keys_give_independent_masks():
  assert deviations(scores(3) * scores(4)) < 4


def test_a_mask_does_not_depend_on_devices():
  mesh = jax.make_mesh((4, 2), ('data', 'tensor'))
  sharding = NamedSharding(mesh, PartitionSpec('data', None, 'tensor'))
  make = jax.jit(keep_mask, static_argnums=(1, 2), out_shardings=sharding)
  sharded = make(jax.random.key(5), SHAPE, 0.9)
  np.testing.assert_array_equal(
    sharded, keep_mask(jax.random.key(5), SHAPE, 0.9)
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_kept_values_are_scaled(dtype):
  x = jnp.full(SHAPE, 3, dtype)
  y = dropped(x, 0.25)
  assert y.dtype == x.dtype
  assert set(np.unique(np.asarray(y, np.float32))) == {0, 4}


def test_the_gradient_has_the_same_mask():
  x = jnp.ones(SHAPE)
  gradient = jax.grad(lambda x: dropped(x, 0.25).sum())(x)
  np.testing.assert_allclose(gradient, dropped(x, 0.25), rtol=1e-6)


def test_without_training_or_a_rate_nothing_is_dropped():
  x = jnp.ones(SHAPE)
  np.testing.assert_array_equal(dropped(x, 0.5, train=False), x)
  np.testing.assert_array_equal(dropped(x, 0.0), x)


def test_dropped_examples_are_all_zero_and_the_others_make_up_for_them():
  x = 1 + np.abs(
    np.random.default_rng(0).normal(size=(2000, 3, 2)).astype('float32')
  )
  y = _dropout.drop_examples(jax.random.key(0), x, 0.25)
  ratio = np.asarray(y / x)
  kept = ratio[:, 0, 0] > 0
  np.testing.assert_array_equal(ratio[~kept], 0)
  np.testing.assert_allclose(ratio[kept], 1 / 0.75, rtol=1e-6)
  # 2000 draws of probability 3/4: a standard deviation of 1 %.
  assert abs(kept.mean() - 0.75) < 0.04
