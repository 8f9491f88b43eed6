"""Shardings of the leaves of a state, by rules over their names."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib, rules as rules_lib


def test_fsdp_holds_an_eighth_of_the_state_on_each_device():
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  shapes = {
    'up/kernel': (256, 1024),
    'up/bias': (1024,),
    'norm/scale': (256,),
    'query/kernel': (256, 4, 64),
  }
  params = trees.unflatten(
    {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  )
  moments = optax.adamw(1e-3, mu_dtype='bfloat16').init(params)
  state = dict(params=params, opt_state=moments, ema_params=params)
  shardings = rules_lib.state_shardings(state, mesh, min_size=2**10)
  leaves = jax.tree.leaves(jax.device_put(state, shardings))
  total = sum(x.nbytes for x in leaves)
  held = [
    sum(x.addressable_shards[device].data.nbytes for x in leaves)
    for device in range(8)
  ]
  assert max(held) / total < 1 / 8 + 0.01  # The scale is whole.
  # What the report says is what the devices hold.
  report = rules_lib.report(state, mesh, min_size=2**10)
  assert (report.total_bytes, {report.device_bytes}) == (total, set(held))


def specs_of(shapes, mesh, rules=None, min_size=1, **branches):
  """`{name: spec}` of float32 parameters given as `{name: shape}`."""
  tree = {
    branch: trees.unflatten(
      {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in leaves.items()}
    )
    for branch, leaves in dict(params=shapes, **branches).items()
  }
  shardings = rules_lib.state_shardings(tree, mesh, rules, min_size=min_size)
  specs = {n: s.spec for n, s in trees.flatten(shardings).items()}
  return {n.removeprefix('params/'): s for n, s in specs.items()}


def test_default_rules_split_heads_and_mlps_over_tensor_and_fsdp():
  mesh = mesh_lib.make_mesh(data=1, fsdp=2, tensor=4)
  block = 'encoder/block_00/'
  shapes = {
    'attention/query/kernel': (32, 4, 8),
    'attention/query/bias': (4, 8),
    'attention/out/kernel': (4, 8, 32),
    'mlp/up/kernel': (32, 64),
    'mlp/up/bias': (64,),
    'mlp/down/kernel': (64, 32),
    'norm_mlp/scale': (32,),
  }
  want = {
    'attention/query/kernel': P('fsdp', 'tensor'),
    'attention/query/bias': P('tensor'),
    'attention/out/kernel': P('tensor', None, 'fsdp'),
    'mlp/up/kernel': P('fsdp', 'tensor'),
    'mlp/up/bias': P('tensor'),
    'mlp/down/kernel': P('tensor', 'fsdp'),
    'norm_mlp/scale': P('fsdp'),
  }
  named = {block + name: shape for name, shape in shapes.items()}
  assert specs_of(named, mesh) == {block + n: s for n, s in want.items()}
  # With a leading layer dimension the same rules give the same split.
  stacked = {name: (3, *shape) for name, shape in named.items()}
  assert specs_of(stacked, mesh) == {
    block + n: P(None, *spec) for n, spec in want.items()
  }


def test_fsdp_takes_the_largest_dimension_that_it_divides():
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  shapes = {'a': (24, 16), 'b': (100, 16), 'c': (10, 10), 'd': ()}
  assert specs_of(shapes, mesh) == {
    'a': P('fsdp'),
    'b': P(None, 'fsdp'),
    'c': P(),
    'd': P(),
  }
  # The rule prefers dimension 0, which 8 does not divide.
  assert specs_of({'mlp/up/kernel': (12, 64)}, mesh) == {
    'mlp/up/kernel': P(None, 'fsdp')
  }


def test_small_leaves_stay_whole_for_fsdp_but_not_for_tensor():
  mesh = mesh_lib.make_mesh(data=1, fsdp=2, tensor=4)
  shapes = {'a': (8, 8), 'b': (8, 16), 'mlp/up/kernel': (8, 8)}
  assert specs_of(shapes, mesh, min_size=100) == {
    'a': P(),
    'b': P(None, 'fsdp'),
    'mlp/up/kernel': P(None, 'tensor'),
  }


def test_moments_are_split_like_their_parameter_only_if_they_have_its_shape():
  mesh = mesh_lib.make_mesh(data=1, fsdp=2, tensor=4)
  name = 'encoder/mlp/up/kernel'
  specs = specs_of(
    # The shorter name is a parameter too: the longest suffix must win.
    {name: (8, 64), 'mlp/up/kernel': (8, 64)},
    mesh,
    rules=[(name, ('fsdp', 'tensor')), ('.*', 'replicated')],
    opt_state={f'0/mu/{name}': (8, 64), f'0/row/{name}': (8,)},
    frozen={f'teacher/{name}': (8, 32)},
  )
  assert specs[f'opt_state/0/mu/{name}'] == P('fsdp', 'tensor')
  assert specs[f'opt_state/0/row/{name}'] == P('fsdp')
  assert specs['mlp/up/kernel'] == P()
  assert specs[f'frozen/teacher/{name}'] == P()


def test_report_names_the_leaves_that_could_not_be_split():
  mesh = mesh_lib.make_mesh(data=1, fsdp=2, tensor=4)
  tree = {
    'params': {
      'mlp': {'up': {'kernel': jax.ShapeDtypeStruct((8, 6), np.float32)}},
      'odd': jax.ShapeDtypeStruct((3, 5), np.float32),
      'even': jax.ShapeDtypeStruct((16, 5), np.float32),
    }
  }
  found = rules_lib.report(tree, mesh, min_size=1)
  assert found.total_bytes == 4 * (48 + 15 + 80)
  assert found.device_bytes == 4 * (24 + 15 + 40)
  assert found.unsplit == (
    ('params/mlp/up/kernel', (8, 6), 96, ('tensor',)),
    ('params/odd', (3, 5), 60, ('fsdp',)),
  )
  assert '156 B on each device could not be split' in str(found)
  assert 'params/odd [3, 5] over fsdp: 60 B' in str(found)


def test_own_rules_must_be_sound():
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  shapes = {'a': (8, 8), 'b': (8,)}
  with pytest.raises(UserError, match=r"wrong: 'a': 'fdsp'; 'b': .*'model'"):
    specs_of(shapes, mesh, rules=[('a', 'fdsp'), ('b', ['model'])])
  with pytest.raises(UserError, match=r"b \[8\]: \('fsdp', None\)"):
    specs_of(shapes, mesh, rules=[('.*', ['fsdp', None])])
  with pytest.raises(UserError, match='no rule matches b'):
    specs_of(shapes, mesh, rules=[('a', 'fsdp')])
  assert specs_of(shapes, mesh, rules=[('a', [None, 'fsdp']), ('.*', 'fsdp')])[
    'a'
  ] == P(None, 'fsdp')
