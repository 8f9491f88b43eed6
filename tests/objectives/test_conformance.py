"""What every objective must do; a new file in objectives/ needs a case here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import lookup, trees
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.training import train_state

MODEL = dict(name='vit', variant='mu/4', num_classes=4)
CLASS = np.arange(8, dtype=np.int32) % 4
SOFT = 0.7 * np.eye(4)[CLASS] + 0.3 * np.eye(4)[CLASS - 1]
MULTI_HOT = np.random.default_rng(1).random((8, 4)) > 0.5

# (objective, its options, labels, the loss of a model that knows the batch:
# the entropy of the targets).
SMOOTHED = -0.925 * np.log(0.925) - 3 * 0.025 * np.log(0.025)
MIXED = -0.7 * np.log(0.7) - 0.3 * np.log(0.3)
CASES = [
  ('supervised', dict(label_smoothing=0.1), CLASS, SMOOTHED),
  ('supervised', dict(), SOFT, MIXED),
  ('supervised', dict(loss='sigmoid'), MULTI_HOT, 0.0),
]
each_case = pytest.mark.parametrize('case', range(len(CASES)))
_FIRST = {name: i for i, (name, *_) in reversed(list(enumerate(CASES)))}
each_objective = pytest.mark.parametrize('case', _FIRST.values(), ids=_FIRST)


@functools.cache
def _build(case, **model):
  """Returns the objective and a batch as it comes from the device ops."""
  name, options, label, _ = CASES[case]
  model = lookup.build('models', MODEL | model, 'Model')
  section = {'name': name, **options}
  objective = lookup.build('objectives', section, 'Objective', model)
  image = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 3))
  if label.ndim == 2:
    label = label.astype(np.float32)
  return objective, {
    'image': jnp.asarray(image, jnp.float32),
    'label': jnp.asarray(label),
  }


@functools.cache
def _init(case):
  """Returns the jitted init and what it gives for key 0."""
  objective, batch = _build(case)
  init = jax.jit(objective.init)
  return init, init(jax.random.key(0), batch)


def _branches(case):
  found = _init(case)[1]
  return found['params'], found.get('extra', {})


def _state(params, extra, opt_state=None):
  return train_state.TrainState(
    step=jnp.int32(0), params=params, opt_state=opt_state, extra=extra
  )


@functools.cache
def _gradients(case, num_devices):
  """Returns key -> ((loss, aux), gradients), with dropout, on some devices."""
  objective, batch = _build(case, dropout_rate=0.1)
  params, extra = _branches(case)
  # A head of zeros would hide everything below it.
  params = jax.tree.map(
    lambda x: x + 0.1 * np.sin(np.arange(x.size, dtype='f')).reshape(x.shape),
    params,
  )
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:num_devices])
  batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
  state = jax.device_put(_state(params, extra), mesh_lib.replicated(mesh))
  fn = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
  return lambda key: fn(state.params, state, batch, jax.random.key(key))


@functools.cache
def _overfitted(case):
  """Returns states and metrics before and after 120 steps on one batch."""
  objective, batch = _build(case)
  tx = optax.adam(3e-3)

  @jax.jit
  def step(state):
    rng = jax.random.fold_in(jax.random.key(1), state.step)
    (_, (metrics, extra)), grads = jax.value_and_grad(
      objective.loss, has_aux=True
    )(state.params, state, batch, rng)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, extra=extra
    )
    return state, metrics

  params, extra = _branches(case)
  first = state = _state(params, extra, tx.init(params))
  history = []
  for _ in range(120):
    state, metrics = step(state)
    history.append(metrics)
  return first, state, jax.device_get(history)


def test_every_objective_has_a_case():
  assert set(lookup.names('objectives')) == {name for name, *_ in CASES}


@each_case
def test_it_overfits_one_batch(case):
  _, _, history = _overfitted(case)
  floor = CASES[case][-1]
  first, last = history[0]['loss'] - floor, history[-1]['loss'] - floor
  assert 0 <= last < 0.05 * first, (first, last)


@each_case
def test_state_and_metrics_keep_their_structure(case):
  before, after, history = _overfitted(case)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
  for metrics in (history[0], history[-1]):
    assert 'loss' in metrics
    for key, value in metrics.items():
      assert value.shape == () and value.dtype == np.float32, key


@each_case
def test_predict_returns_documented_outputs_row_by_row(case):
  objective, batch = _build(case)
  params = _overfitted(case)[1].params
  predict = jax.jit(objective.predict)
  outputs = predict(params, batch)
  documented = ['logits', 'features', 'tokens', 'prefix_tokens']
  documented += ['image_embedding', 'text_embedding']
  assert outputs and set(outputs) <= set(documented)
  order = np.array([3, 0, 7, 1, 2, 6, 5, 4])
  moved = predict(params, jax.tree.map(lambda x: x[order], batch))
  for key, x in outputs.items():
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x[order], moved[key], atol=1e-5, err_msg=key)


@each_objective
def test_eight_devices_equal_one_with_the_same_dropout(case):
  one, eight = (trees.flatten(_gradients(case, n)(key=1)) for n in (1, 8))
  assert one.keys() == eight.keys()
  for key, x in one.items():
    # float32 sums over the batch in another order.
    np.testing.assert_allclose(x, eight[key], rtol=1e-4, atol=1e-5, err_msg=key)


@each_objective
def test_equal_keys_give_equal_bits_and_others_do_not(case):
  a, b, other = (_gradients(case, 1)(key) for key in (3, 3, 4))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert a[0][0] != other[0][0]


@each_objective
def test_init_reads_only_shapes_and_is_a_function_of_the_key(case):
  objective, batch = _build(case)
  init, a = _init(case)
  shapes = jax.eval_shape(lambda: batch)
  b = jax.jit(lambda rng: objective.init(rng, shapes))(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  other = init(jax.random.key(1), batch)
  kernels = [x['params']['patch_embedding']['kernel'] for x in (a, other)]
  assert not np.array_equal(*kernels)
  assert {x.dtype for x in jax.tree.leaves(a['params'])} == {
    jnp.dtype('float32')
  }
