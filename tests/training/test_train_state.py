"""Initial states: shardings, bits, averages, branches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.training import train_state


class Objective:
  """One matrix and one vector; counts the batches in `extra`."""

  def init(self, rng, batch):
    kernel = jax.random.normal(rng, (batch['image'].shape[-1], 16))
    params = {'up': {'kernel': kernel, 'bias': jnp.zeros(16)}}
    teacher = {'up': {'kernel': kernel + 1}}
    extra = {'count': jnp.int32(0)}
    return dict(params=params, extra=extra, frozen={'teacher': teacher})


BATCH = {'image': jax.ShapeDtypeStruct((8, 32), jnp.uint8)}
OPTIMIZER = optax.adam(1e-3, mu_dtype=jnp.bfloat16)


def create(mesh=None, seed=0, ema=True, **kw):
  mesh = mesh or mesh_lib.make_mesh(data=1, fsdp=8)
  return train_state.create(
    Objective(), OPTIMIZER, BATCH, mesh, seed=seed, ema=ema, min_size=1, **kw
  )


def test_state_is_born_with_the_shardings_of_the_abstract_state():
  abstract, init = create()
  state = init()
  assert jax.tree.structure(abstract) == jax.tree.structure(state)
  for (name, want), leaf in zip(
    trees.flatten(abstract).items(), jax.tree.leaves(state), strict=True
  ):
    assert (leaf.shape, leaf.dtype) == (want.shape, want.dtype), name
    assert leaf.sharding == want.sharding, name
  kernels = {
    name: leaf.addressable_shards[0].data.shape
    for name, leaf in trees.flatten(state).items()
    if name.endswith('kernel')
  }
  assert kernels == {
    'params/up/kernel': (4, 16),
    'opt_state/0/mu/up/kernel': (4, 16),
    'opt_state/0/nu/up/kernel': (4, 16),
    'ema_params/up/kernel': (4, 16),
    'frozen/teacher/up/kernel': (4, 16),
  }
  assert (state.step, state.skipped_updates) == (0, 0)
  assert state.step.dtype == state.skipped_updates.dtype == jnp.int32
  assert list(state.extra) == ['count']


def test_parameters_are_the_same_bits_on_every_mesh():
  one = mesh_lib.make_mesh(devices=jax.devices()[:1])
  kernels = [
    np.asarray(create(mesh)[1]().params['up']['kernel'])
    for mesh in (one, mesh_lib.make_mesh(), None)
  ]
  np.testing.assert_array_equal(kernels[1], kernels[0])
  np.testing.assert_array_equal(kernels[2], kernels[0])


def test_parameters_depend_on_the_seed_and_on_no_key_of_a_step():
  kernel = np.asarray(create(seed=3)[1]().params['up']['kernel'])
  key = jax.random.fold_in(jax.random.key(3), np.uint32(2**32 - 1))
  np.testing.assert_array_equal(kernel, jax.random.normal(key, (32, 16)))
  assert not np.array_equal(kernel, create()[1]().params['up']['kernel'])
  step_0 = jax.random.fold_in(jax.random.key(3), 0)
  assert not np.array_equal(kernel, jax.random.normal(step_0, (32, 16)))


def test_average_starts_as_a_copy_in_buffers_of_its_own():
  state = create()[1]()
  np.testing.assert_array_equal(
    state.ema_params['up']['kernel'], state.params['up']['kernel']
  )
  # One buffer behind two leaves could not be donated.
  step = jax.jit(
    lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s),
    donate_argnums=0,
  )
  assert step(state).step == 1
  assert state.params['up']['kernel'].is_deleted()
  assert create(ema=False)[0].ema_params is None


@pytest.mark.parametrize(
  ('found', 'words'),
  [
    (({}, {}), r'init\(\) returned a tuple; expected a dict with params'),
    (dict(params={}, teacher={}), r"unknown branches \['teacher'\]"),
    (dict(extra={}), r"no params; .* got \['extra'\]"),
  ],
)
def test_init_returns_branches_of_the_state(found, words):
  class Wrong:
    def init(self, rng, batch):
      return found

  with pytest.raises(UserError, match=words):
    train_state.init_branches(Wrong(), jax.random.key(0), BATCH)


def test_an_objective_may_apply_its_model_to_the_batch_of_init():
  class Direct:
    def init(self, rng, batch):
      return {'params': nn.Dense(3).init(rng, batch['x'])['params']}

  spec = {'x': jax.ShapeDtypeStruct((4, 2), jnp.float32)}
  init = functools.partial(train_state.init_branches, Direct())
  found = jax.eval_shape(lambda rng: init(rng, spec), jax.random.key(0))
  assert found['params']['kernel'].shape == (2, 3)


def test_rules_reach_the_state():
  abstract, _ = create(rules=[('.*', 'replicated')])
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(abstract))


def _move(e, p, step, **decay):
  at = train_state.ema_decay(total_steps=5, **decay)
  return train_state.ema_update(
    {'a': jnp.float32(e)}, {'a': jnp.float32(p)}, at(step)
  )['a']


def test_average_moves_by_one_minus_decay():
  assert _move(1, 2, 1, decay=0.75) == 1.25


def test_average_with_warmup_forgets_the_start():
  # Update 8: (1 + 8) / (10 + 8) = 1 / 2; late updates: the decay itself.
  assert _move(0, 1, jnp.int32(8), decay=0.75, warmup=True) == 0.5
  assert _move(0, 1, 10_000, decay=0.75, warmup=True) == 0.25


def test_a_decay_that_rises_to_one_stops_the_average_to_the_bit():
  decay = dict(name='cosine', start=0.5, end=1.0, over_steps=4)
  at = train_state.ema_decay(decay=decay, total_steps=100)
  # cos(pi p) at p = 0, 1/4, 1/2, 3/4, 1 and after.
  half = np.sqrt(0.5) / 4
  want = [0.5, 0.75 - half, 0.75, 0.75 + half, 1, 1]
  found = [at(k) for k in range(1, 7)]
  np.testing.assert_allclose(found, want, rtol=1e-6)
  assert found[4] == found[5] == 1
  for step in (5, 99):
    e = np.float32(0.1234567)
    assert _move(e, 7.7, step, decay=decay) == e
  assert _move(e, 7.7, 1, decay=1.0) == e


@pytest.mark.parametrize('decay', [1.01, -0.1, 99.99, '0.9'])
def test_decay_out_of_range_is_refused(decay):
  for value in (decay, dict(name='linear', start=0.5, end=decay)):
    with pytest.raises(UserError, match='expected a'):
      train_state.ema_decay(decay=value, total_steps=5)
