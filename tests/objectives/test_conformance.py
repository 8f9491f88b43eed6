"""What every objective must do; a new file in objectives/ needs a case here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import lookup, sharding, train_state, trees

MODEL = dict(name='vit', variant='mu/4', num_classes=4)
LABELS = {
  'hard': np.arange(8, dtype=np.int32) % 4,
  'soft': 0.7 * np.eye(4)[np.arange(8) % 4] + 0.3 * np.eye(4)[np.arange(8) % 3],
  'multi_hot': np.float32(np.random.default_rng(1).random((8, 4)) > 0.5),
}

# (objective, its options, labels, the loss of a model that knows the batch).
SMOOTHED = -(0.925 * np.log(0.925) + 3 * 0.025 * np.log(0.025))
MIXED = -np.mean(
  np.sum(LABELS['soft'] * np.log(LABELS['soft'] + 1e-30), axis=-1)
)
CASES = [
  ('supervised', dict(), 'hard', 0.0),
  ('supervised', dict(label_smoothing=0.1), 'hard', SMOOTHED),
  ('supervised', dict(), 'soft', MIXED),
  ('supervised', dict(loss='sigmoid'), 'hard', 0.0),
  ('supervised', dict(loss='sigmoid'), 'multi_hot', 0.0),
]
each_case = pytest.mark.parametrize('name, options, labels, floor', CASES)


def _build(name, options, **model):
  model = lookup.build('models', MODEL | model, 'Model')
  return lookup.build(
    'objectives', {'name': name} | options, 'Objective', model
  )


def _batch(labels):
  """A batch as the objective gets it, after the device ops."""
  image = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 3))
  return {
    'image': jnp.asarray(image, jnp.float32),
    'label': jnp.asarray(LABELS[labels]),
  }


def _state(objective, batch, tx):
  params, extra = jax.jit(objective.init)(jax.random.key(0), batch)
  return train_state.TrainState(
    step=jnp.int32(0), params=params, opt_state=tx.init(params), extra=extra
  )


def _step(objective, tx, state, batch):
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


def _train(objective, batch, tx, num_steps, mesh=None):
  """Returns the state and the metrics of every step."""
  state = _state(objective, batch, tx)
  if mesh is not None:
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    state = jax.device_put(state, sharding.replicated(mesh))
  step = jax.jit(functools.partial(_step, objective, tx))
  history = []
  for _ in range(num_steps):
    state, metrics = step(state, batch)
    history.append(jax.device_get(metrics))
  return state, history


def test_every_objective_has_a_case():
  assert set(lookup.names('objectives')) == {name for name, *_ in CASES}


@each_case
def test_it_overfits_one_batch(name, options, labels, floor):
  objective = _build(name, options)
  _, history = _train(objective, _batch(labels), optax.adam(3e-3), 120)
  first, last = history[0]['loss'] - floor, history[-1]['loss'] - floor
  assert 0 <= last < 0.05 * first, (first, last)


@each_case
def test_eight_devices_equal_one(name, options, labels, floor):
  objective, batch = _build(name, options), _batch(labels)
  results = [
    _train(objective, batch, optax.sgd(0.1), 3, sharding.make_mesh(devices=d))
    for d in (jax.devices()[:1], jax.devices())
  ]
  (one, one_history), (eight, eight_history) = results
  for a, b in zip(one_history, eight_history, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_allclose(a[key], b[key], rtol=1e-5, err_msg=key)
  for key, x in trees.flatten(one.params).items():
    # float32 sums over the batch in another order.
    np.testing.assert_allclose(
      x, trees.flatten(eight.params)[key], atol=1e-5, err_msg=key
    )


@each_case
def test_equal_keys_give_equal_bits_and_others_do_not(
  name, options, labels, floor
):
  objective = _build(name, options, dropout_rate=0.1)
  batch = _batch(labels)
  state = _state(objective, batch, optax.identity())
  # A head of zeros would hide what dropout does.
  params = jax.tree.map(
    lambda x: x + 0.1 * np.sin(np.arange(x.size)).reshape(x.shape), state.params
  )
  state = state.replace(params=params)
  loss = jax.jit(lambda rng: objective.loss(state.params, state, batch, rng))
  (a, aux_a), (b, aux_b) = loss(jax.random.key(3)), loss(jax.random.key(3))
  jax.tree.map(np.testing.assert_array_equal, (a, aux_a), (b, aux_b))
  assert a != loss(jax.random.key(4))[0]


@each_case
def test_init_reads_only_shapes_and_is_a_function_of_the_key(
  name, options, labels, floor
):
  objective, batch = _build(name, options), _batch(labels)
  shapes = jax.eval_shape(lambda: batch)
  a = jax.jit(objective.init)(jax.random.key(0), batch)
  b = jax.jit(lambda rng: objective.init(rng, shapes))(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  kernels = [
    jax.jit(objective.init)(jax.random.key(i), batch)[0]['patch_embedding']
    for i in (0, 1)
  ]
  assert not np.array_equal(kernels[0]['kernel'], kernels[1]['kernel'])
  assert {x.dtype for x in jax.tree.leaves(a[0])} == {jnp.dtype('float32')}


@each_case
def test_predict_returns_documented_outputs_row_by_row(
  name, options, labels, floor
):
  objective, batch = _build(name, options), _batch(labels)
  state, _ = _train(objective, batch, optax.adam(3e-3), 3)
  predict = jax.jit(objective.predict)
  outputs = predict(state.params, batch)
  documented = {
    'logits',
    'features',
    'tokens',
    'prefix',
    'image_embedding',
    'text_embedding',
  }
  assert set(outputs) <= documented and outputs
  alone = predict(state.params, jax.tree.map(lambda x: x[:2], batch))
  for key, x in outputs.items():
    assert x.dtype == jnp.float32 and len(x) == 8
    np.testing.assert_allclose(x[:2], alone[key], atol=1e-5, err_msg=key)


@each_case
def test_the_extra_state_keeps_its_structure(name, options, labels, floor):
  objective, batch = _build(name, options), _batch(labels)
  tx = optax.identity()
  state = _state(objective, batch, tx)
  after, metrics = jax.eval_shape(
    functools.partial(_step, objective, tx), state, batch
  )
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert {(m.shape, str(m.dtype)) for m in metrics.values()} == {
    ((), 'float32')
  }
