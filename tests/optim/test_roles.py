"""What optimizers do by the roles of parameters, not by their shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim.test_transforms import assert_close, stacked
from vit_jax import trees
from vit_jax.models.vit import ViT
from vit_jax.optim import chain, roles


@pytest.mark.parametrize('clip', [None, 0.1])
def test_adafactor_does_not_factor_over_the_depth(clip):
  # More blocks than the 32 from which on a side is factored.
  depth, shapes = 33, {'norm/scale': (40,), 'mlp/up/kernel': (40, 50)}
  shapes['attention/query/bias'] = (2, 32)
  rng = np.random.default_rng(0)
  rows = {n: rng.normal(size=(depth, *s)) for n, s in shapes.items()}
  single = {
    f'encoder/block_{i:02d}/{n}': x[i]
    for n, x in rows.items()
    for i in range(depth)
  }
  scanned = {f'encoder/blocks/{n}': x for n, x in rows.items()}
  scanned['head/kernel'] = single['head/kernel'] = rng.normal(size=(40, 33))

  def after_two(named):
    params = jax.tree.map(jnp.float32, trees.unflatten(named))
    tx, _ = chain.make(
      params,
      name='adafactor',
      clip_update_rms=clip,
      learning_rate=0.1,
      total_steps=9,
      roles=ViT.ROLES,
    )
    state, update = tx.init(params), jax.jit(tx.update)
    for factor in (1.0, 2.0):
      grads = jax.tree.map(lambda x, f=factor: jnp.cos(f * x), params)
      updates, state = update(grads, state, params)
    return trees.flatten(updates), trees.flatten(state)

  expected, (got, state) = stacked(after_two(single)[0]), after_two(scanned)
  assert_close(got, expected, rtol=1e-4, atol=1e-6)
  sizes = {n: x.shape for n, x in state.items() if 'norm/scale' in n}
  found = {n.split('/encoder')[0].split('/')[-1]: s for n, s in sizes.items()}
  assert found['v'] == (depth, 40) and found['v_row'] == (depth, 1)


def test_the_state_of_adafactor_without_stacks_has_the_names_it_had():
  tx, _ = chain.make(
    {'a/kernel': jnp.ones((2, 3))},
    name='adafactor',
    learning_rate=0.1,
    total_steps=9,
    roles=ViT.ROLES,
  )
  names = list(trees.flatten(tx.init({'a/kernel': jnp.ones((2, 3))})))
  fields = ('count', 'v_row/a/kernel', 'v_col/a/kernel', 'v/a/kernel')
  assert names[:4] == [f'0/0/{field}' for field in fields]


def test_muon_takes_the_matrices_that_a_model_names():
  family = roles.Roles(matrix=lambda n: (-2, -1) if n == 'mix' else None)
  params = {'mix': jnp.zeros((4, 6)), 'other': jnp.zeros((4, 6))}
  tx, _ = chain.make(
    params, name='muon', learning_rate=1.0, total_steps=9, roles=family
  )
  rng = np.random.default_rng(0)
  grads = {n: jnp.asarray(rng.normal(size=(4, 6)), 'float32') for n in params}
  updates, _ = tx.update(grads, tx.init(params), params)
  singular = np.linalg.svd(updates['mix'])[1]
  assert singular.max() < 2 * singular.min()
  # The first step of Adam is the sign.
  np.testing.assert_allclose(
    updates['other'] / updates['other'][0, 0],
    np.sign(grads['other'] * grads['other'][0, 0]),
    rtol=1e-4,
  )
