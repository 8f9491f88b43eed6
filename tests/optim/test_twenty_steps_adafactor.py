"""Twenty steps of ViT-g/14's recipe equal Adafactor in NumPy.

The optimizer of big_vision (`scale_by_adafactor` of its optax.py, in the paper
arXiv:2106.04560, section 3.4), after clipping and with decoupled weight decay:
NumPy computes it in float64, matrix by matrix, from the gradients at its own
parameters. We compute all in float32 with the training step, and the updates
alone in float64 with NumPy's gradients.

As in `test_twenty_steps.py` the rates are ours: rate(k) for update k, where
big_vision has rate(k - 1). The momentum is rounded to bfloat16 once an update,
when it is stored; big_vision multiplies it by a rounded 0.9 as well.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np

from tests.optim import twenty_steps
from vit_jax import trees

CLASSES, DEPTH = 40, 32


def adafactor(k, grad, memory, mu_dtype):
  """Returns what update k subtracts, but for the rate; fills `memory`."""
  decay = min(0.999, 1 - k**-0.8)

  def average(key, value):
    memory[key] = decay * memory.get(key, 0.0) + (1 - decay) * value
    return memory[key]

  square = grad**2 + 1e-30
  sides = sorted(range(grad.ndim), key=lambda i: grad.shape[i])[-2:]
  if len(sides) == 2 and min(grad.shape[i] for i in sides) >= 32:
    one, other = sides
    rows = average('rows', square.mean(other, keepdims=True))
    columns = average('columns', square.mean(one, keepdims=True))
    estimate = rows * columns / rows.mean(one, keepdims=True)
  else:
    estimate = average('all', square)
  momentum = 0.9 * memory.get('momentum', 0.0) + 0.1 * grad / np.sqrt(estimate)
  memory['momentum'] = np.float64(momentum.astype(mu_dtype))
  return momentum


def update(k, rate, params, grads, memory, mu_dtype):
  """Returns the parameters after update k; all by name, in float64."""
  norm = np.sqrt(sum((x**2).sum() for x in grads.values()))
  found = {}
  for name, p in params.items():
    grad = grads[name] / max(1.0, norm)
    # Blocks are stacked here; in big_vision each has matrices of its own.
    is_stacked = name.startswith('encoder/blocks/')
    step = [
      adafactor(k, x, memory.setdefault((name, i), {}), mu_dtype)
      for i, x in enumerate(grad if is_stacked else [grad])
    ]
    decay = 0.03 if name.endswith('/kernel') else 0.0
    decay = 3.0 if name == 'head/kernel' else decay
    found[name] = p - rate * (np.reshape(step, p.shape) + decay * p)
  return found


def train(recipe, batches):
  """Returns parameters, losses and gradients of twenty steps of NumPy."""
  state = types.SimpleNamespace(extra={})

  @jax.jit
  @jax.value_and_grad
  def loss_and_gradients(params, batch):
    return recipe.objective.loss(params, state, batch, jax.random.key(0))[0]

  params = {name: np.float64(x) for name, x in recipe.params.items()}
  memory, losses, gradients = {}, [], []
  for k, (batch, rate) in enumerate(
    zip(batches, recipe.rates(), strict=True), start=1
  ):
    nested = trees.unflatten({n: np.float32(x) for n, x in params.items()})
    loss, grads = loss_and_gradients(nested, batch)
    grads = {n: np.float64(x) for n, x in trees.flatten(grads).items()}
    losses.append(float(loss))
    gradients.append(grads)
    params = update(k, rate, params, grads, memory, jnp.bfloat16)
  return dict(params=params, loss=losses, gradients=gradients)


def make_recipe(**optimizer):
  recipe = twenty_steps.Recipe(
    'vit_g14',
    'variant=g/14,extra_evals=none',
    optimizer=dict(
      warmup_steps=4, cooldown_steps=4, timescale_steps=8, **optimizer
    ),
    gain=0.1,
    width=64,
    depth=DEPTH,
    num_classes=CLASSES,
  )
  recipe.params['head/kernel'] *= 0.1  # So that not all norms are above 1.
  # Matrices if taken together.
  assert recipe.params['encoder/blocks/norm_mlp/scale'].shape == (DEPTH, 64)
  return recipe


def test_adafactor_of_vit_g14_equals_numpy():
  recipe = make_recipe()
  batches = twenty_steps.batches('integer', CLASSES)
  theirs = train(recipe, batches)
  ours = recipe.train(batches)
  assert ours['grad_norm'].min() < 0.8 and ours['grad_norm'].max() > 1.3
  np.testing.assert_allclose(ours['loss'], theirs['loss'], rtol=1e-5)
  # Where a momentum differs in the last place of float32, that of bfloat16 may
  # be another: 2^-8 of an element.
  recipe.assert_same_changes(
    ours['params'], theirs['params'], rtol=5e-3, rounded=True
  )

  # Without those roundings, all else is seen to be the same.
  recipe = make_recipe(mu_dtype='float32')
  params = {name: np.float64(x) for name, x in recipe.params.items()}
  memory = {}
  for k, rate in enumerate(recipe.rates(), start=1):
    grads = theirs['gradients'][k - 1]
    params = update(k, rate, params, grads, memory, np.float64)
  alone = recipe.replay(theirs['gradients'])
  recipe.assert_same_changes(alone, params, rtol=5e-7)
