"""Small trees of parameters, and the updates that an optimizer makes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.optim import chain

_SHAPES = {
  'encoder': {
    'mlp': {'kernel': (4, 3), 'bias': (3,)},
    'norm': {'scale': (4,), 'bias': (4,)},
  },
  'head': {'kernel': (3, 2), 'bias': (2,)},
}


def params(seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
    _SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def gradients(num):
  """Some of their norms are over 5 and some under."""
  return [
    jax.tree.map(lambda x, i=i: x * (0.2 + 0.3 * (i % 4)), params(i + 1))
    for i in range(num)
  ]


def make(**kwargs):
  """Returns optimizer and schedule."""
  options = dict(learning_rate=0.1, total_steps=20, schedule='constant')
  return chain.make(params(), **(options | kwargs))


def run(tx, params, gradients):
  """Returns the parameters after each update, and the last state."""

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  history, state = [], tx.init(params)
  for grads in gradients:
    params, state = step(params, state, grads)
    history.append(params)
  return history, state
