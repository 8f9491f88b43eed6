"""Weight decay that changes, parameters that are held, LAMB without decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.optim import chain

SHAPES = {
  'encoder': {'mlp': {'kernel': (4, 3), 'bias': (3,)}},
  'head': {'kernel': (3, 2), 'bias': (2,)},
}


def _params(seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def _gradients(num):
  return [_params(i + 1) for i in range(num)]


def _make(**options):
  return chain.make(
    _params(),
    **dict(learning_rate=0.1, total_steps=20, schedule='constant') | options,
  )[0]


def _run(tx, params, gradients):
  """Returns the parameters after all updates."""

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for grads in gradients:
    params, state = step(params, state, grads)
  return params


def test_a_schedule_of_the_decay_replaces_the_number_at_each_update():
  decay = dict(name='linear', start=0.0, end=0.4, over_steps=2)
  tx = _make(weight_decay=decay, name='sgd', momentum=0.0)
  params, nothing = _params(), jax.tree.map(jnp.zeros_like, _params())
  kernel = np.float64(params['head']['kernel'])
  for number, now in enumerate([0.0, 0.2, 0.4, 0.4], 1):
    kernel = kernel * (1 - 0.1 * now)
    found = _run(tx, params, [nothing] * number)
    np.testing.assert_allclose(found['head']['kernel'], kernel, rtol=1e-6)
  np.testing.assert_array_equal(found['head']['bias'], params['head']['bias'])


def test_held_parameters_stay_for_so_many_updates_decay_included():
  tx = _make(weight_decay=0.1, hold_steps=[('head/.*', 2)])
  free = _make(weight_decay=0.1)
  start, gradients = _params(), _gradients(4)
  for number in range(1, 5):
    found = trees.flatten(_run(tx, start, gradients[:number]))
    want = trees.flatten(_run(free, start, gradients[:number]))
    for name, leaf in trees.flatten(start).items():
      is_held = name.startswith('head/') and number <= 2
      assert np.array_equal(found[name], leaf) == is_held, (number, name)
      if not name.startswith('head/'):
        np.testing.assert_array_equal(found[name], want[name])
  _make(hold_steps=[('head/.*', 0)])  # A length that a recipe may set to 0.


def test_a_held_update_that_is_no_number_changes_nothing():
  tx = _make(name='sgd', hold_steps=[('head/kernel', 1)])
  gradients = _gradients(1)
  gradients[0]['head']['kernel'] *= np.nan
  found = _run(tx, _params(), gradients)
  np.testing.assert_array_equal(
    found['head']['kernel'], _params()['head']['kernel']
  )


@pytest.mark.parametrize('decay', [0.0, 1e-30])
def test_lamb_scales_to_the_norm_of_kernels_without_weight_decay_too(decay):
  tx = _make(name='lamb', weight_decay=decay, learning_rate=0.5)
  start, gradients = _params(), _gradients(1)
  found, before = (
    trees.flatten(x) for x in (_run(tx, start, gradients), start)
  )
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
    _make(**options)
