"""A training step against NumPy: update, average, norms, rates and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.optim import chain
from vit_jax.training import train_state, train_step

BATCH_SIZE = 4
CLIP = 8.0  # Below some of the gradient norms and above others.
POISONED = 2  # The step whose batch has a NaN.
# Half the rate of 0.1, all of it, then a cosine over the remaining three
# updates. The skipped step 2 uses up no rate.
RATES = [0.05, 0.1, 0.1, 0.075, 0.025]


class Regression:
  """Mean squared error of a linear model; reports its key and what it sees."""

  def loss(self, params, state, batch, rng):
    x_BC = batch['image'] * params['scale'][None]
    predicted_B = x_BC @ params['kernel'] + params['bias']
    loss = jnp.mean((predicted_B - batch['label']) ** 2)
    metrics = dict(
      seen=batch['image'],
      ops_key=batch['ops_key'],
      loss_key=jax.random.key_data(rng),
    )
    return loss, (metrics, {'calls': state.extra['calls'] + 1})


class Root:
  """A loss of 0 whose gradient is not a number: the root of a square at 0."""

  def loss(self, params, state, batch, rng):
    del batch, rng
    return jnp.sqrt(params['kernel'] @ params['kernel']), ({}, state.extra)


def device_ops(batch, rng, *, train):
  """Scales bytes to 0..1, adds 1 where it trains, and records its key."""
  image = batch['image'].astype(jnp.float32) / 255 + float(train)
  return dict(batch, image=image, ops_key=jax.random.key_data(rng))


def make_params(kernel=(0.5, -1.0, 2.0)):
  return dict(
    kernel=jnp.float32(kernel),
    bias=jnp.float32(0.25),
    scale=jnp.float32([1.0, 3.0, 0.5]),
  )


def make(params, *, objective=None, freeze=('scale',), seed=7, **options):
  """Returns the jitted step and the state of step 0."""
  tx, schedule = chain.make(
    params,
    name='sgd',
    momentum=0.9,
    learning_rate=0.1,
    total_steps=len(RATES),
    warmup_steps=2,
    grad_clip_norm=CLIP,
    freeze=freeze,
  )
  step = train_step.make_train_step(
    objective or Regression(),
    tx,
    schedule,
    device_ops=device_ops,
    seed=seed,
    trained=chain.trained_names(params, freeze),
    **options,
  )
  state = train_state.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=tx.init(params),
    ema_params=params if options.get('ema_decay') else None,
    extra={'calls': jnp.int32(0)},
    skipped_updates=jnp.int32(0),
  )
  return jax.jit(step), state


def make_batch(number):
  rng = np.random.default_rng(number)
  label = rng.normal(size=BATCH_SIZE).astype(np.float32)
  if number == POISONED:
    label[1] = np.nan
  return dict(
    image=rng.integers(0, 256, (BATCH_SIZE, 3), np.uint8), label=label
  )


def numpy_steps(params):
  """Yields state and metrics of each step, computed in float64."""
  params = {k: np.float64(v) for k, v in params.items()}
  momentum = {k: np.zeros_like(params[k]) for k in ('kernel', 'bias')}
  average, updates = dict(params), 0
  for number, rate in enumerate(RATES, 1):
    batch = make_batch(number)
    x = (batch['image'] / 255 + 1) * params['scale']
    error = x @ params['kernel'] + params['bias'] - np.float64(batch['label'])
    gradient = dict(kernel=2 * error @ x / len(x), bias=2 * error.mean())
    norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    if np.isfinite(norm):
      updates += 1
      decay = min(0.3, (1 + updates) / (10 + updates))
      for k, g in gradient.items():
        momentum[k] = g * min(1, CLIP / norm) + 0.9 * momentum[k]
        params[k] = params[k] - rate * momentum[k]
      average = {
        k: decay * v + (1 - decay) * params[k] for k, v in average.items()
      }
    metrics = dict(
      loss=np.mean(error**2),
      grad_norm=norm,
      learning_rate=rate,
      skipped_updates=number - updates,
    )
    yield dict(params=params, ema_params=average, momentum=momentum), metrics


def momentum_of(state):
  """Returns the arrays of the optax state that have a parameter's name."""
  leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
  return {
    path[-1].key: leaf
    for path, leaf in leaves
    if isinstance(path[-1], jax.tree_util.DictKey)
  }


def test_steps_with_clip_average_frozen_leaf_and_skip_equal_numpy():
  params = make_params()
  step, state = make(
    params,
    ema_decay=train_state.ema_decay(decay=0.3, warmup=True, total_steps=5),
    on_nonfinite='skip',
  )
  norms = []
  for number, (want, want_metrics) in enumerate(numpy_steps(params), 1):
    state, metrics = step(state, make_batch(number))
    assert state.step == number
    norms.append(float(metrics['grad_norm']))
    for name, value in want_metrics.items():
      np.testing.assert_allclose(
        metrics[name], value, rtol=1e-5, err_msg=f'{name}, step {number}'
      )
    got = dict(
      params=state.params,
      ema_params=state.ema_params,
      momentum=momentum_of(state),
    )
    for field, leaves in want.items():
      assert got[field].keys() == leaves.keys()
      for name, value in leaves.items():
        np.testing.assert_allclose(
          got[field][name], value, rtol=1e-5, err_msg=f'{field}, step {number}'
        )
  assert state.skipped_updates == 1
  # The objective's own state is that of the applied updates as well.
  assert state.extra['calls'] == len(RATES) - 1
  assert np.nanmin(norms) < CLIP < np.nanmax(norms)


def test_device_ops_act_in_training_before_the_objective():
  step, state = make(make_params())
  batch = make_batch(1)
  _, metrics = step(state, batch)
  np.testing.assert_allclose(
    metrics['seen'], batch['image'] / 255 + 1, rtol=1e-6
  )


def keys_of(step, state):
  """Returns the keys of the device ops and of the objective in a step."""
  _, metrics = step(state, make_batch(1))
  return [tuple(metrics[name].tolist()) for name in ('ops_key', 'loss_key')]


def test_every_step_seed_and_purpose_has_a_key_of_its_own():
  step, state = make(make_params())
  other_seed, _ = make(make_params(), seed=8)
  later = state.replace(step=jnp.int32(1))
  keys = keys_of(step, state) + keys_of(step, later)
  keys += keys_of(other_seed, state)
  assert len(set(keys)) == 6
  # A state and a batch decide all: a restored run draws the same.
  assert keys_of(step, later) == keys[2:4]


def test_frozen_parameters_have_no_gradient():
  params = make_params()
  _, metrics = make(params)[0](make(params)[1], make_batch(1))
  want = next(numpy_steps(params))[1]['grad_norm']
  np.testing.assert_allclose(metrics['grad_norm'], want, rtol=1e-5)
  step, state = make(params, freeze=())
  _, metrics = step(state, make_batch(1))
  assert metrics['grad_norm'] > 1.01 * want


def test_micro_batches_take_the_same_step():
  params = make_params()
  step, state = make(params, micro_batches=2)
  state, metrics = step(state, make_batch(1))
  want, want_metrics = next(numpy_steps(params))
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(metrics[name], want_metrics[name], rtol=1e-5)
  for name, value in want['params'].items():
    np.testing.assert_allclose(state.params[name], value, rtol=1e-5)
  # Each part starts from the same state of the objective.
  assert state.extra['calls'] == 1


def test_a_gradient_that_is_nan_behind_a_finite_loss_is_skipped():
  params = make_params(kernel=(0.0, 0.0, 0.0))
  step, state = make(params, objective=Root(), on_nonfinite='skip')
  new, metrics = step(state, make_batch(1))
  assert metrics['loss'] == 0 and np.isnan(metrics['grad_norm'])
  assert metrics['skipped_updates'] == new.skipped_updates == 1
  before = state.replace(step=new.step, skipped_updates=new.skipped_updates)
  jax.tree.map(np.testing.assert_array_equal, new, before)


def test_stop_applies_the_update_and_counts_nothing():
  step, state = make(make_params())
  state, metrics = step(state, make_batch(POISONED))
  assert 'skipped_updates' not in metrics and state.skipped_updates == 0
  assert np.isnan(state.params['kernel']).all()


def test_another_policy_is_refused():
  with pytest.raises(UserError, match="on_nonfinite='ignore': expected 'stop'"):
    make(make_params(), on_nonfinite='ignore')
