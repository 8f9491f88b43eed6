import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.parallel import sharding
from vit_jax.training import train_state


class Objective:
  """One matrix and one vector; counts the batches in `extra`."""

  def init(self, rng, batch):
    kernel = jax.random.normal(rng, (batch['image'].shape[-1], 16))
    params = {'up': {'kernel': kernel, 'bias': jnp.zeros(16)}}
    return params, {'count': jnp.int32(0)}


BATCH = {'image': jax.ShapeDtypeStruct((8, 32), jnp.uint8)}
OPTIMIZER = optax.adam(1e-3, mu_dtype=jnp.bfloat16)


def create(mesh=None, seed=0, ema=True, **kw):
  mesh = mesh or sharding.make_mesh(data=1, fsdp=8)
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
  }
  assert (state.step, state.skipped_updates) == (0, 0)
  assert state.step.dtype == state.skipped_updates.dtype == jnp.int32
  assert (state.frozen, list(state.extra)) == ({}, ['count'])


def test_parameters_are_the_same_bits_on_every_mesh():
  one = sharding.make_mesh(devices=jax.devices()[:1])
  kernels = [
    np.asarray(create(mesh)[1]().params['up']['kernel'])
    for mesh in (one, sharding.make_mesh(), None)
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


def test_abstract_init_gives_the_shapes_without_computing():
  params, extra = train_state.abstract_init(Objective(), BATCH)
  assert params['up']['kernel'] == jax.ShapeDtypeStruct((32, 16), jnp.float32)
  assert extra['count'].shape == ()


def test_rules_reach_the_state():
  abstract, _ = create(rules=[('.*', 'replicated')])
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(abstract))


def test_average_moves_by_one_minus_decay():
  ema = train_state.ema_update(
    {'a': jnp.float32(1)}, {'a': jnp.float32(2)}, 1, decay=0.75
  )
  assert ema == {'a': 1.25}


def test_average_with_warmup_forgets_the_start():
  # Update 8: (1 + 8) / (10 + 8) = 1 / 2; late updates: the decay itself.
  def move(step):
    return train_state.ema_update(
      {'a': jnp.float32(0)},
      {'a': jnp.float32(1)},
      step,
      decay=0.75,
      warmup=True,
    )['a']

  assert move(jnp.int32(8)) == 0.5
  assert move(10_000) == 0.25


@pytest.mark.parametrize('decay', [1.0, -0.1, 99.99])
def test_decay_out_of_range_is_refused(decay):
  with pytest.raises(UserError, match='expected 0 <= decay < 1'):
    train_state.ema_update({}, {}, 1, decay=decay)
