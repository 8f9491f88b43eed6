"""Layer-wise learning-rate decay against answers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.optim import chain, roles

# Of a model with two blocks, at a decay of 0.5, by the start of the name.
BY_HAND = {
  'patch_embedding/': 0.125,
  'position_embedding': 0.125,
  'class_token': 0.125,
  'registers': 0.125,
  'encoder/block_00/': 0.25,
  'encoder/block_01/': 0.5,
  'encoder/norm/': 1.0,
  'norm/': 1.0,
  'pooling/': 1.0,
  'representation/': 1.0,
  'head/': 1.0,
}


def by_hand(name):
  return next(v for start, v in BY_HAND.items() if name.startswith(start))


def shapes(variant='mu/4', **section):
  section = dict(num_classes=2, depth=2) | section
  model = vit.Model(variant, **section)
  image = jnp.zeros((1, 8, 8, 3))
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


def multipliers(names, decay):
  """Returns what layer decay makes of an update of 1, by name."""
  params = {name: np.zeros(()) for name in names}
  tx, _ = chain.make(
    params,
    learning_rate=1.0,
    total_steps=9,
    schedule='constant',
    name='sgd',
    momentum=0.0,
    layer_decay=decay,
    roles=vit.ViT.ROLES,
  )
  ones = {name: np.ones((), 'f') for name in names}
  updates, _ = tx.update(ones, tx.init(params), params)
  return {name: -float(x) for name, x in updates.items()}


def test_twelve_blocks_have_the_multipliers_of_mae():
  # decay ** (depth + 1 - layer) of MAE's util/lr_decay.py.
  names = trees.flatten(shapes(depth=12))
  found = multipliers(names, 0.75)
  assert found['patch_embedding/kernel'] == pytest.approx(0.023757, rel=1e-4)
  assert found['encoder/block_00/mlp/up/bias'] == pytest.approx(
    0.031676, rel=1e-4
  )
  assert found['encoder/block_10/mlp/up/bias'] == 0.5625
  assert found['encoder/block_11/mlp/up/bias'] == 0.75
  assert found['encoder/norm/scale'] == found['head/kernel'] == 1


@pytest.mark.parametrize(
  'section',
  [
    dict(pooling='token', num_registers=1, layer_scale=1e-5, qk_norm=True),
    dict(pooling='mean', final_norm='features', position='none'),
    dict(pooling='map', representation_size=True, head_hidden_dim=8),
  ],
)
def test_multipliers_are_those_worked_by_hand(section):
  names = list(trees.flatten(shapes(**section)))
  expected = {name: by_hand(name) for name in names}
  assert multipliers(names, 0.5) == expected
  assert len(set(expected.values())) == 4


@pytest.mark.parametrize('options', [dict(name='sgd'), dict(name='adamw')])
def test_updates_and_weight_decay_are_multiplied(options):
  params = jax.tree.map(lambda x: np.ones(x.shape, 'f'), shapes())
  options |= dict(learning_rate=0.1, total_steps=9, weight_decay=0.5)
  options['roles'] = vit.ViT.ROLES
  options['learning_rate_mults'] = [('head/.*', 4.0)]

  def updates(**more):
    tx, _ = chain.make(params, **options, **more)
    step = jax.jit(lambda p: tx.update(p, tx.init(p), p)[0])
    return trees.flatten(step(params))

  plain, decayed = updates(), updates(layer_decay=0.5)
  for name, update in decayed.items():
    assert (plain[name] != 0).all()
    np.testing.assert_allclose(
      update, by_hand(name) * plain[name], rtol=1e-6, err_msg=name
    )


def test_frozen_parameters_stay_under_layer_decay():
  params = jax.tree.map(lambda x: np.ones(x.shape, 'f'), shapes())
  tx, _ = chain.make(
    params,
    learning_rate=0.1,
    total_steps=9,
    layer_decay=0.5,
    roles=vit.ViT.ROLES,
    freeze=['patch_embedding/.*', 'encoder/block_00/.*'],
  )
  new = jax.jit(lambda p: tx.update(p, tx.init(p), p)[0])(params)
  for name, update in trees.flatten(new).items():
    frozen = name.startswith(('patch_embedding', 'encoder/block_00'))
    assert (update == 0).all() == frozen, name


def make(decay, **section):
  return chain.make(
    shapes(**section),
    learning_rate=0.1,
    total_steps=9,
    layer_decay=decay,
    roles=vit.ViT.ROLES,
  )


def test_stacked_blocks_are_an_error_that_says_what_to_set():
  with pytest.raises(UserError, match=r'scan.*--config\.model\.scan=False'):
    make(0.5, scan=True)


@pytest.mark.parametrize('decay', [0, -0.5, 1.01, 'high', True])
def test_a_decay_out_of_range_is_an_error(decay):
  with pytest.raises(UserError, match=r'layer_decay=.* in \(0, 1\]'):
    make(decay)


def test_a_decay_of_one_changes_nothing():
  names = trees.flatten(shapes())
  assert set(multipliers(names, 1.0).values()) == {1.0}


def test_names_without_a_layer_are_an_error_that_lists_them():
  names = [*trees.flatten(shapes()), 'stem/kernel', 'encoder/mixer_00/kernel']
  with pytest.raises(UserError, match='but not encoder/mixer_00/kernel, stem'):
    multipliers(names, 0.5)
  with pytest.raises(UserError, match='but not a model without blocks'):
    multipliers(['head/kernel', 'class_token'], 0.5)


def test_a_model_that_does_not_say_its_layers_is_an_error():
  with pytest.raises(UserError, match='does not say which layers it has'):
    chain.make(shapes(), learning_rate=1.0, total_steps=9, layer_decay=0.5)


def test_another_family_brings_its_own_layers():
  family = roles.Roles(layers=lambda names: {n: int(n[-1]) for n in names})
  params = {f'stage_{i}': jnp.zeros(2) for i in range(3)}
  tx, _ = chain.make(
    params,
    learning_rate=1.0,
    total_steps=9,
    schedule='constant',
    name='sgd',
    layer_decay=0.5,
    roles=family,
  )
  ones = {name: jnp.ones(2) for name in params}
  updates, _ = tx.update(ones, tx.init(params), params)
  assert [-float(x[0]) for x in updates.values()] == [0.25, 0.5, 1.0]
