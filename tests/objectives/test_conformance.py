"""Conformance of every objective: a new file in objectives/ is found by itself.

It is tested with the model and the fields below; one that needs others exports

    TINY = dict(
      model=dict(...),  # A tiny model section.
      options=dict(...),  # Arguments of the objective.
      fields=dict(text=((7,), 'int32')),  # Shape of one example and dtype.
      least_loss=1.5,  # Of a model that knows the batch by heart.
    )

Its batches have the fields that `Objective.fields` names.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import lookup, trees
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.reporting import flops
from vit_jax.training import train_state, train_step

MODEL = dict(name='vit', variant='mu/4', num_classes=4)
# Of one example. Floats are uniform in -1..1, integers in 0..3.
FIELDS = {
  'image': ((16, 16, 3), 'float32'),
  'local_image': ((2, 8, 8, 3), 'float32'),
  'label': ((), 'int32'),
  'text': ((8,), 'int32'),
}
CLASS = np.arange(8, dtype=np.int32) % 4
SOFT = 0.7 * np.eye(4)[CLASS] + 0.3 * np.eye(4)[CLASS - 1]
MULTI_HOT = np.random.default_rng(1).random((8, 4)) > 0.5
SMOOTHED = -0.925 * np.log(0.925) - 3 * 0.025 * np.log(0.025)
MIXED = -0.7 * np.log(0.7) - 0.3 * np.log(0.3)
# Further cases: (objective, its options, fields, the least loss: the entropy of
# the targets).
CASES = [
  (name, dict(), dict(), None) for name in lookup.names('objectives')
] + [
  ('supervised', dict(label_smoothing=0.1), dict(label=CLASS), SMOOTHED),
  ('supervised', dict(), dict(label=SOFT), MIXED),
  ('supervised', dict(loss='sigmoid'), dict(label=MULTI_HOT), 0.0),
]
NUM_OBJECTIVES = len(lookup.names('objectives'))
each_case = pytest.mark.parametrize('case', range(len(CASES)))
each_objective = pytest.mark.parametrize(
  'case', range(NUM_OBJECTIVES), ids=lookup.names('objectives')
)


def _tiny(case):
  module = importlib.import_module(f'vit_jax.objectives.{CASES[case][0]}')
  return getattr(module, 'TINY', {})


@functools.cache
def _build(case, **model):
  """Returns the objective and a batch as it comes from the device ops."""
  name, options, fields, _ = CASES[case]
  tiny = _tiny(case)
  section = tiny.get('model', MODEL)
  model = lookup.build('models', section | model, 'Model')
  section = {'name': name, **tiny.get('options', {}), **options}
  objective = lookup.build('objectives', section, 'Objective', model)
  specs, rng = FIELDS | tiny.get('fields', {}), np.random.default_rng(0)
  batch = {}
  for field in objective.fields:
    shape, dtype = specs[field]
    value = rng.uniform(-1, 1, (8, *shape)).astype('float32')
    if dtype != 'float32':
      value = np.arange(value.size).reshape(value.shape) % 4
    value = np.asarray(fields.get(field, value))
    is_soft = field in fields and value.ndim > 1
    batch[field] = jnp.asarray(value, 'float32' if is_soft else dtype)
  return objective, batch


@functools.cache
def _init(case):
  """Returns the jitted init and what it gives for key 0."""
  objective, batch = _build(case)
  init = jax.jit(functools.partial(train_state.init_branches, objective))
  return init, init(jax.random.key(0), batch)


def _state(branches, opt_state=None):
  return train_state.TrainState(
    step=jnp.int32(0),
    opt_state=opt_state,
    ema_params=branches['params'],
    skipped_updates=jnp.int32(0),
    **branches,
  )


def _seen(batch):
  """Returns the batch as an evaluation has it: one view of each image."""
  return {k: x[:, 0] if x.ndim == 5 else x for k, x in batch.items()}


def _predict(case, state, batch):
  objective = _build(case)[0]
  weights = train_state.weights(objective, state)
  return objective.predict(weights.pop('params'), batch, **weights)


@functools.cache
def _gradients(case, num_devices):
  """Returns key -> ((loss, aux), gradients), with dropout, on some devices."""
  objective, batch = _build(case, dropout_rate=0.1)
  # A head of zeros would hide everything below it.
  branches = dict(_init(case)[1])
  branches['params'] = jax.tree.map(
    lambda x: x + 0.1 * np.sin(np.arange(x.size, dtype='f')).reshape(x.shape),
    branches['params'],
  )
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:num_devices])
  batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
  state = jax.device_put(_state(branches), mesh_lib.replicated(mesh))
  fn = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
  return lambda key: fn(state.params, state, batch, jax.random.key(key))


@functools.cache
def _overfitted(case):
  """Returns states and metrics before and after 120 steps on one batch."""
  objective, batch = _build(case)
  tx = optax.adam(3e-3)
  step = jax.jit(
    train_step.make_train_step(
      objective,
      tx,
      lambda k: jnp.float32(3e-3),
      device_ops=lambda batch, rng, train: batch,
      seed=1,
      ema_decay=lambda k: jnp.float32(0.9),
    )
  )
  branches = _init(case)[1]
  first = state = _state(branches, tx.init(branches['params']))
  history = []
  for _ in range(120):
    state, metrics = step(state, batch)
    history.append(metrics)
  return first, state, jax.device_get(history)


@each_case
def test_it_overfits_one_batch(case):
  _, _, history = _overfitted(case)
  least = CASES[case][-1]
  least = _tiny(case).get('least_loss', 0.0) if least is None else least
  first, last = (x['loss'] - least for x in (history[0], history[-1]))
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
  batch, state = _seen(_build(case)[1]), _overfitted(case)[1]
  predict = jax.jit(functools.partial(_predict, case))
  outputs = predict(state, batch)
  documented = ['logits', 'features', 'tokens', 'prefix_tokens']
  documented += ['image_embedding', 'text_embedding', 'value']
  # Of one task of several: logits/breed.
  assert outputs and {x.partition('/')[0] for x in outputs} <= set(documented)
  order = np.array([3, 0, 7, 1, 2, 6, 5, 4])
  moved = predict(state, jax.tree.map(lambda x: x[order], batch))
  for key, x in outputs.items():
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x[order], moved[key], atol=1e-5, err_msg=key)


@each_objective
def test_flops_of_a_step_can_be_counted(case):
  objective, batch = _build(case)
  state = _state(_init(case)[1])
  if hasattr(objective, 'flops'):
    found = objective.flops(*jax.eval_shape(lambda: (state.params, batch)))
  else:
    found = flops.count(functools.partial(_predict, case), state, _seen(batch))
  assert found > 0


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
  batch, (init, a) = _build(case)[1], _init(case)
  b = init(jax.random.key(0), jax.tree.map(jnp.zeros_like, batch))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  other = init(jax.random.key(1), batch)
  same = [
    np.array_equal(x, y)
    for x, y in zip(*map(jax.tree.leaves, (a, other)), strict=True)
  ]
  assert not all(same)
  assert {x.dtype for x in jax.tree.leaves(a['params'])} == {
    jnp.dtype('float32')
  }


@each_objective
def test_extra_and_frozen_are_not_differentiated(case):
  before, after, _ = _overfitted(case)
  jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)
  names = trees.flatten(_gradients(case, 1)(key=1)[1])
  assert set(names) == set(trees.flatten(before.params))
