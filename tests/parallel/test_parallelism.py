"""Every way to spread a training step computes what one device computes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.parallel import activations, mesh as mesh_lib
from vit_jax.pretrained import blocks
from vit_jax.training import gradients, run as run_lib, train_state

SCAN = dict(scan=True)
TOKENS = dict(split_tokens=True)
REMAT = dict(remat='dots_with_no_batch_dims_saveable')
# name: (mesh, config.sharding, model, micro_batches)
WAYS = {
  'data, parts': (dict(data=8), {}, {}, 2),
  'fsdp': (dict(data=1, fsdp=8), {}, {}, 1),
  'data x fsdp, parts': (dict(data=2, fsdp=4), {}, {}, 2),
  'tensor, tokens, remat': (dict(data=2, tensor=4), TOKENS, REMAT, 1),
  'fsdp x tensor, scan': (dict(data=1, fsdp=2, tensor=4), {}, SCAN, 1),
  'all, parts, tokens, scan, remat': (
    dict(data=2, fsdp=2, tensor=2),
    TOKENS,
    SCAN | REMAT,
    4,
  ),
}


def build(mesh, options=None, model=None, micro_batches=1, **changes):
  data = dict(name='synthetic', split='train', num_examples=64)
  config = dict(
    model=dict(
      name='vit',
      variant='mu/4',
      depth=2,
      width=64,
      num_heads=4,
      num_classes=8,
      # A token that starts at zero has a gradient of 1 / epsilon.
      pooling='mean',
      # A gradient that goes through all of the model.
      head_zero_init=False,
      **(model or {}),
    ),
    objective=dict(name='supervised'),
    input=dict(
      data=dict(data, image_size=8, num_classes=8),
      ops='',
      device_ops='normalize(-1, 1)',
      batch_size=32,
    ),
    # Linear in the gradient: Adam would turn its rounding into updates. The
    # momentum is split as its parameter is.
    optimizer=dict(
      name='sgd', learning_rate=0.1, momentum=0.9, schedule='constant'
    ),
    total_steps=2,
    total_epochs=None,
    seed=0,
    ema=dict(decay=0.5),
    mesh=mesh,
    sharding=dict(min_size=1, min_rows=1, max_unsplit=1) | (options or {}),
    on_nonfinite='stop',
    micro_batches=micro_batches,
    loggers=None,
    loss_scale=None,
  )
  return run_lib.build({**config, **changes})


@functools.cache
def start():
  """Returns the first state, `{name: array}`, and batch, on the host."""
  run = build(dict(devices=jax.devices()[:1]))
  batch = next(run.input.batches())
  del batch['index']
  return trees.flatten(jax.device_get(run.init())), batch


def place(run, scan=False):
  """Returns the first state and batch, spread as the run wants them."""
  named, batch = start()
  named = blocks.stack(named) if scan else named
  state = trees.map_named(
    lambda name, x: jax.device_put(named[name], x.sharding), run.abstract_state
  )
  return state, jax.device_put(batch, mesh_lib.batch_sharding(run.mesh))


def train(run, scan=False):
  """Returns the metrics of two steps and the last state, on the host."""
  state, batch = place(run, scan)
  rows = []
  for _ in range(2):
    state, metrics = run.step(state, batch)
    rows.append(jax.device_get(metrics))
  named = trees.flatten(jax.device_get(state))
  return rows, blocks.unstack(named) if scan else named


@functools.cache
def on_one_device():
  run = build(dict(devices=jax.devices()[:1]))
  assert run.mesh.size == 1
  return train(run)


@pytest.mark.parametrize('name', WAYS)
def test_every_way_trains_like_one_device(name):
  mesh, options, model, micro_batches = WAYS[name]
  want_rows, want = on_one_device()
  run = build(mesh, options, model, micro_batches)
  rows, state = train(run, 'scan' in model)
  for row, want_row in zip(rows, want_rows, strict=True):
    assert row.keys() == want_row.keys()
    for key, value in row.items():
      np.testing.assert_allclose(value, want_row[key], rtol=3e-6, err_msg=key)
  assert state.keys() == want.keys()
  for key, value in state.items():
    np.testing.assert_allclose(value, want[key], atol=1e-6, err_msg=key)


def collectives(text):
  """Returns the kinds of collectives of a program: {in a loop: kinds}."""
  loops = set(re.findall(r'body=%?([\w.\-]+)', text))
  found, name = {False: [], True: []}, ''
  for line in text.splitlines():
    start = re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    name = start[1] if start else name
    kind = re.search(r' (all-\w+|reduce-scatter|collective-permute)\(', line)
    if kind:
      found[name in loops].append(kind[1])
  return found


def test_devices_exchange_gradients_once_for_all_micro_batches():
  run = build(dict(data=8), micro_batches=4)
  text = run.step.lower(*place(run)).compile().as_text()
  found = collectives(text)
  assert found[True] == []
  # Nor are rows sent to another device.
  assert set(found[False]) == {'all-reduce'}


def _draws(mesh, micro_batches, num_rows=16):
  """Returns what every row's micro-batch drew."""

  def loss_fn(params, state, batch, rng):
    del state
    draw = jax.random.uniform(rng)
    loss = jnp.mean(params[batch['row']] * draw)
    return loss, ({'loss': loss}, {})

  batch = {'row': jnp.arange(num_rows)}
  if mesh is not None:
    batch = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
  state = train_state.TrainState(step=0, params=None, opt_state=None)
  grad_fn = gradients.value_and_grad(
    loss_fn, micro_batches=micro_batches, mesh=mesh
  )
  _, grads = jax.jit(lambda p, b, r: grad_fn(p, state, b, r))(
    jnp.ones(num_rows), batch, jax.random.key(0)
  )
  return np.asarray(grads) * num_rows


def test_each_micro_batch_draws_afresh_and_holds_every_kth_row():
  draws = _draws(None, 4)
  assert len(set(draws)) == 4
  np.testing.assert_array_equal(draws, np.tile(draws[:4], 4))


def test_devices_draw_different_numbers():
  draws = _draws(mesh_lib.make_mesh(data=2, fsdp=4), 2)
  assert len(set(draws)) == 4
  np.testing.assert_array_equal(draws[:8], np.tile(draws[:2], 4))
  np.testing.assert_array_equal(draws[8:], np.tile(draws[8:10], 4))


def test_micro_batches_must_divide_the_rows_of_a_device():
  with pytest.raises(
    UserError, match=r'micro_batches=3 on 8 dev.*use 24 or 48'
  ):
    build(dict(data=8), micro_batches=3)
  with pytest.raises(UserError, match='micro_batches=0: expected'):
    build(dict(data=8), micro_batches=0)


def test_an_objective_that_compares_examples_is_refused():
  class Contrastive:
    pass

  gradients.check_objective(Contrastive(), 1)
  with pytest.raises(UserError, match=r'test_parallelism.*micro_batches=1'):
    gradients.check_objective(Contrastive(), 2)


@pytest.mark.parametrize(
  'dims, split_tokens, want',
  [
    ('BLD', False, P(('data', 'fsdp'))),
    ('BLD', True, P(('data', 'fsdp'), 'tensor')),
    ('BLF', True, P(('data', 'fsdp'), None, 'tensor')),
    ('BLNK', True, P(('data', 'fsdp'), None, 'tensor')),
  ],
)
def test_letters_say_how_activations_are_split(dims, split_tokens, want):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)

  def constrained(x):
    with activations.use(mesh, split_tokens=split_tokens):
      return activations.constrain(x, dims)

  x = jax.jit(constrained)(np.zeros((8,) * len(dims), np.float32))
  assert x.sharding.is_equivalent_to(NamedSharding(mesh, want), x.ndim)


def test_without_a_mesh_activations_stay_as_they_are():
  x = np.zeros((8, 4, 4), np.float32)
  assert activations.constrain(x, 'BLD') is x
  with activations.use(mesh_lib.make_mesh(data=8)):
    assert activations.constrain(x, 'BLD') is x
  assert activations.constrain(x, 'BLD') is x
