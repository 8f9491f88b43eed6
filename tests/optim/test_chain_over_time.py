"""Weight decay that changes, parameters that are held, LAMB without decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim import descent
from vit_jax import trees
from vit_jax.errors import UserError


def test_a_schedule_of_the_decay_replaces_the_number_at_each_update():
  decay = dict(name='linear', start=0.0, end=0.4, over_steps=2)
  tx = descent.make(weight_decay=decay, name='sgd', momentum=0.0)[0]
  params = descent.params()
  nothing = jax.tree.map(jnp.zeros_like, params)
  kernel = np.float64(params['head']['kernel'])
  history, _ = descent.run(tx, params, [nothing] * 4)
  for found, now in zip(history, [0.0, 0.2, 0.4, 0.4], strict=True):
    kernel = kernel * (1 - 0.1 * now)
    np.testing.assert_allclose(found['head']['kernel'], kernel, rtol=1e-6)
  np.testing.assert_array_equal(found['head']['bias'], params['head']['bias'])


def test_held_parameters_stay_for_so_many_updates_decay_included():
  tx = descent.make(weight_decay=0.1, hold_steps=[('head/.*', 2)])[0]
  free = descent.make(weight_decay=0.1)[0]
  start, gradients = descent.params(), descent.gradients(4)
  ours, theirs = (descent.run(x, start, gradients)[0] for x in (tx, free))
  for number in range(1, 5):
    found, want = (trees.flatten(x[number - 1]) for x in (ours, theirs))
    for name, leaf in trees.flatten(start).items():
      is_held = name.startswith('head/') and number <= 2
      assert np.array_equal(found[name], leaf) == is_held, (number, name)
      if not name.startswith('head/'):
        np.testing.assert_array_equal(found[name], want[name])
  # A length that a recipe may set to 0.
  descent.make(hold_steps=[('head/.*', 0)])


def test_a_held_nan_update_changes_nothing():
  tx = descent.make(name='sgd', hold_steps=[('head/kernel', 1)])[0]
  gradients = descent.gradients(1)
  gradients[0]['head']['kernel'] *= np.nan
  (found,), _ = descent.run(tx, descent.params(), gradients)
  np.testing.assert_array_equal(
    found['head']['kernel'], descent.params()['head']['kernel']
  )


@pytest.mark.parametrize('decay', [0.0, 1e-30])
def test_lamb_scales_to_the_norm_of_kernels_without_weight_decay_too(decay):
  tx = descent.make(name='lamb', weight_decay=decay, learning_rate=0.5)[0]
  start, gradients = descent.params(), descent.gradients(1)
  (after,), _ = descent.run(tx, start, gradients)
  found, before = trees.flatten(after), trees.flatten(start)
  for name, leaf in before.items():
    step = np.linalg.norm(np.float64(found[name]) - np.float64(leaf))
    # The first update of Adam is the sign of the gradient.
    norm = np.linalg.norm(leaf) if 'kernel' in name else np.sqrt(leaf.size)
    assert step == pytest.approx(0.5 * norm, rel=1e-5), name


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(hold_steps=[('hed/.*', 2)]), "(?s)hold.*'hed/.*' decides no param"),
    (dict(hold_steps=[('head/.*', -1)]), 'not a pair .regex, number of steps'),
    (dict(hold_steps=[('head/.*', 0.5)]), 'not a pair .regex, number of steps'),
    (
      dict(weight_decay=dict(name='cosine', start=0.1)),
      "optimizer.weight_decay: missing key 'end'",
    ),
    (
      dict(weight_decay=dict(name='linear', start=0.1, end=1, over_steps=0)),
      'optimizer.weight_decay.over_steps=0: expected 1 or more',
    ),
    (
      dict(weight_decay=dict(name='rsqrt', start=0.1, end=1)),
      "name='rsqrt': expected 'cosine' or 'linear'",
    ),
  ],
)
def test_impossible_options_are_errors(options, message):
  with pytest.raises(UserError, match=message):
    descent.make(**options)
