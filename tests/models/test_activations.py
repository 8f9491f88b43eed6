"""Activation functions: values, gradients, and what they store."""

import jax
import numpy as np
import pytest

from tests.models import draws
from vit_jax.models._activations import ACTIVATIONS


@pytest.mark.parametrize(
  'name, at_one',
  [
    # 0.5 (1 + erf(1/sqrt 2)); its tanh approximation; 1 / (1 + e^-1.702).
    ('gelu', 0.8413447),
    ('gelu_tanh', 0.8411920),
    ('gelu_quick', 0.8457957),
  ],
)
def test_activations_have_their_values_at_one(name, at_one):
  np.testing.assert_allclose(ACTIVATIONS[name](1.0), at_one, rtol=1e-6)
  assert ACTIVATIONS[name](0.0) == 0


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activations_keep_only_their_input_for_the_backward_pass(name):
  x = draws.normal(3, 5)
  _, backward = jax.vjp(ACTIVATIONS[name], x)
  kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape == x.shape]
  assert len(kept) == 1
  np.testing.assert_array_equal(kept[0], x)
  step = np.float32(1e-2)
  f = ACTIVATIONS[name]
  slope = (f(x + step) - f(x - step)) / (2 * step)
  np.testing.assert_allclose(backward(np.ones_like(x))[0], slope, atol=1e-4)
