"""The optimizer against NumPy, torch and answers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim import descent
from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.optim import chain


def _assert_close(actual, expected, **tolerance):
  actual, expected = trees.flatten(actual), trees.flatten(expected)
  assert actual.keys() == expected.keys()
  for name, x in actual.items():
    np.testing.assert_allclose(x, expected[name], err_msg=name, **tolerance)


def _numpy_run(params, gradients, *, rate, clip, decay, mults, adam, sgd):
  """Clipping, Adam or momentum, decoupled decay, in float64."""
  params = {k: np.float64(v) for k, v in trees.flatten(params).items()}
  first = {k: np.zeros_like(v) for k, v in params.items()}
  second = {k: np.zeros_like(v) for k, v in params.items()}
  for k, grads in enumerate(gradients, start=1):
    grads = {n: np.float64(g) for n, g in trees.flatten(grads).items()}
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    for name, p in params.items():
      g = grads[name] * min(1, clip / norm)
      if adam:
        b1, b2, eps = adam
        first[name] = b1 * first[name] + (1 - b1) * g
        second[name] = b2 * second[name] + (1 - b2) * g * g
        step = (first[name] / (1 - b1**k)) / (
          np.sqrt(second[name] / (1 - b2**k)) + eps
        )
      else:
        momentum, nesterov = sgd
        first[name] = momentum * first[name] + g
        step = g + momentum * first[name] if nesterov else first[name]
      if name.endswith('kernel'):
        step = step + decay * p
      params[name] = p - rate(k) * mults.get(name, 1.0) * step
  return trees.unflatten(params)


@pytest.mark.parametrize(
  'kwargs, oracle',
  [
    (dict(name='adamw'), dict(adam=(0.9, 0.999, 1e-8), sgd=None)),
    (
      dict(name='adamw', b1=0.8, b2=0.95, eps=1e-3),
      dict(adam=(0.8, 0.95, 1e-3), sgd=None),
    ),
    (dict(name='sgd'), dict(adam=None, sgd=(0.9, False))),
    (
      dict(name='sgd', momentum=0.7, nesterov=True),
      dict(adam=None, sgd=(0.7, True)),
    ),
    (dict(name='sgd', momentum=0.0), dict(adam=None, sgd=(0.0, False))),
  ],
)
def test_updates_equal_numpy_with_clip_decay_multipliers_and_warmup(
  kwargs, oracle
):
  tx, _ = descent.make(
    schedule='linear',
    warmup_steps=5,
    weight_decay=0.3,
    grad_clip_norm=3.0,
    learning_rate_mults=[('head/.*', 0.5)],
    **kwargs,
  )
  params, gradients = descent.params(), descent.gradients(12)
  actual = descent.run(tx, params, gradients)[0][-1]
  expected = _numpy_run(
    params,
    gradients,
    rate=lambda k: 0.1 * (k / 5 if k < 5 else 1 - (k - 5) / 15),
    clip=3.0,
    decay=0.3,
    mults={'head/kernel': 0.5, 'head/bias': 0.5},
    **oracle,
  )
  _assert_close(actual, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize('name', ['adamw', 'sgd', 'nesterov'])
def test_twenty_steps_equal_torch(name):
  torch = pytest.importorskip('torch')
  rate, decay, clip = 0.05, 0.2, 3.0
  options = dict(learning_rate=rate, grad_clip_norm=clip)
  if name == 'adamw':
    tx, _ = descent.make(
      weight_decay=decay, weight_decay_mults=[('.*', 1.0)], **options
    )
  else:
    tx, _ = descent.make(name='sgd', nesterov=name == 'nesterov', **options)
  params, gradients = descent.params(), descent.gradients(20)
  actual = descent.run(tx, params, gradients)[0][-1]

  leaves = [
    torch.nn.Parameter(torch.tensor(np.array(x)))
    for x in jax.tree.leaves(params)
  ]
  if name == 'adamw':
    torch_optimizer = torch.optim.AdamW(leaves, lr=rate, weight_decay=decay)
  else:
    torch_optimizer = torch.optim.SGD(
      leaves, lr=rate, momentum=0.9, nesterov=name == 'nesterov'
    )
  for grads in gradients:
    for leaf, grad in zip(leaves, jax.tree.leaves(grads), strict=True):
      leaf.grad = torch.tensor(np.array(grad))
    torch.nn.utils.clip_grad_norm_(leaves, clip)
    torch_optimizer.step()
  expected = jax.tree.unflatten(
    jax.tree.structure(params), [x.detach().numpy() for x in leaves]
  )
  # torch divides by (norm + 1e-6), which the twenty steps add up to 1e-6.
  _assert_close(actual, expected, rtol=2e-5, atol=2e-6)


def test_update_number_k_uses_the_rate_of_the_schedule_at_k():
  tx, schedule = descent.make(
    name='sgd', momentum=0.0, schedule='cosine', warmup_steps=3
  )
  params = descent.params()
  ones = jax.tree.map(jnp.ones_like, params)
  state = tx.init(params)
  for k in range(1, 21):
    updates, state = tx.update(ones, state, params)
    np.testing.assert_allclose(
      updates['head']['bias'], -schedule(k) * jnp.ones(2), rtol=1e-6
    )
  assert schedule(1) > 0 and schedule(3) == np.float32(0.1)


def test_clipping_scales_only_gradients_over_the_norm():
  tx, _ = descent.make(
    name='sgd', momentum=0.0, learning_rate=1.0, grad_clip_norm=1.0
  )
  params = {'kernel': jnp.zeros(2)}
  for grads, expected in (
    ([3.0, 4.0], [-0.6, -0.8]),
    ([0.3, 0.4], [-0.3, -0.4]),
  ):
    updates, _ = tx.update(
      {'kernel': jnp.array(grads)}, tx.init(params), params
    )
    np.testing.assert_allclose(updates['kernel'], expected, rtol=1e-6)


def test_weight_decay_spares_all_but_kernels():
  tx, _ = descent.make(weight_decay=0.5)
  params = descent.params()
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  for name, update in trees.flatten(updates).items():
    decay = 0.05 if name.endswith('/kernel') else 0.0
    parameter = trees.flatten(params)[name]
    np.testing.assert_allclose(update, -decay * parameter, rtol=1e-6)


def test_weight_decay_of_a_vit_takes_its_kernels_only():
  model = vit.Model('mu/4', num_classes=2, pooling='map', num_registers=1)
  image = jnp.zeros((1, 8, 8, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  params = jax.tree.map(lambda x: np.ones(x.shape, 'f'), shapes)
  zeros = jax.tree.map(np.zeros_like, params)
  tx, _ = chain.make(shapes, learning_rate=1.0, total_steps=9, weight_decay=0.5)
  updates = jax.jit(lambda g, p: tx.update(g, tx.init(p), p)[0])(zeros, params)
  decayed = {n for n, x in trees.flatten(updates).items() if x.any()}
  names = set(trees.flatten(params))
  assert decayed == {name for name in names if name.endswith('/kernel')}
  assert {'patch_embedding/kernel', 'head/kernel'} < decayed
  assert {'position_embedding', 'registers', 'pooling/probe'} < names - decayed


def test_a_model_without_kernels_needs_no_rules():
  shapes = {'scale': jnp.zeros(3)}
  tx, _ = chain.make(
    shapes, learning_rate=0.5, total_steps=9, schedule='constant', name='sgd'
  )
  update, _ = tx.update({'scale': jnp.ones(3)}, tx.init(shapes), shapes)
  np.testing.assert_array_equal(update['scale'], -0.5 * np.ones(3))


def test_weight_decay_multipliers_are_per_parameter():
  tx, _ = descent.make(
    weight_decay=0.5,
    weight_decay_mults=[('head/.*', 3.0), ('.*/kernel', 1.0), ('.*', 0.0)],
  )
  params = descent.params()
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  for path, mult in (
    ('head/bias', 3.0),
    ('head/kernel', 3.0),
    ('encoder/mlp/kernel', 1.0),
    ('encoder/mlp/bias', 0.0),
  ):
    expected = -0.1 * 0.5 * mult * trees.flatten(params)[path]
    np.testing.assert_allclose(
      trees.flatten(updates)[path], expected, rtol=1e-6
    )


FROZEN = ['encoder/norm/.*', 'head/kernel']


def test_frozen_parameters_stay_and_have_no_state():
  tx, _ = descent.make(freeze=FROZEN, weight_decay=0.1, grad_clip_norm=1.0)
  params = descent.params()
  (*_, new), state = descent.run(tx, params, descent.gradients(3))
  frozen = {'encoder/norm/scale', 'encoder/norm/bias', 'head/kernel'}
  for name, x in trees.flatten(new).items():
    same = np.array_equal(x, trees.flatten(params)[name])
    assert same == (name in frozen), name
  names = ' '.join(trees.flatten(state))
  assert 'mu/encoder/mlp/kernel' in names
  assert not any(name in names for name in frozen)


def test_frozen_gradients_take_no_part_in_the_clipped_norm():
  tx, _ = descent.make(freeze=FROZEN, grad_clip_norm=1.0, name='sgd')
  alone, _ = descent.make(grad_clip_norm=1.0, name='sgd')
  params = descent.params()
  grads = descent.gradients(1)[0]
  kept = {
    'encoder': {'mlp': grads['encoder']['mlp']},
    'head': {'bias': grads['head']['bias']},
  }
  expected, _ = alone.update(kept, alone.init(kept), kept)
  # Not even a gradient of NaN gets out of a frozen parameter.
  grads['head']['kernel'] = jnp.full((3, 2), jnp.nan)
  actual, _ = tx.update(grads, tx.init(params), params)
  for name, x in trees.flatten(expected).items():
    np.testing.assert_array_equal(trees.flatten(actual)[name], x, err_msg=name)
  np.testing.assert_array_equal(actual['head']['kernel'], jnp.zeros((3, 2)))


def test_frozen_update_equals_the_unfrozen_one_elsewhere():
  options = dict(weight_decay=0.1, learning_rate_mults=[('head/.*', 2.0)])
  frozen, _ = descent.make(freeze=FROZEN, **options)
  free, _ = descent.make(**options)
  params, gradients = descent.params(), descent.gradients(3)
  a, b = (descent.run(tx, params, gradients)[0][-1] for tx in (frozen, free))
  for path in ('encoder/mlp/kernel', 'encoder/mlp/bias', 'head/bias'):
    np.testing.assert_array_equal(
      trees.flatten(a)[path], trees.flatten(b)[path]
    )


@pytest.mark.parametrize(
  'name, moments', [('adamw', ('mu', 'nu')), ('sgd', ('trace',))]
)
@pytest.mark.parametrize('mu_dtype', [None, 'float32', 'bfloat16'])
def test_only_the_first_moment_has_the_chosen_dtype(name, moments, mu_dtype):
  tx, _ = descent.make(name=name, mu_dtype=mu_dtype)
  state = descent.run(tx, descent.params(), descent.gradients(2))[1]
  leaves = trees.flatten(state).items()
  for moment in moments:
    dtypes = {x.dtype for n, x in leaves if f'/{moment}/' in n}
    first = moment != 'nu'
    assert dtypes == {jnp.dtype((first and mu_dtype) or 'float32')}


def test_bfloat16_momentum_decays_by_the_momentum_itself():
  tx, _ = descent.make(name='sgd', learning_rate=1.0, mu_dtype='bfloat16')
  params = {'kernel': jnp.zeros(1)}
  state = tx.init(params)
  _, state = tx.update({'kernel': jnp.ones(1)}, state, params)
  update, _ = tx.update({'kernel': jnp.zeros(1)}, state, params)
  # In bfloat16 arithmetic it would be 0.8984.
  np.testing.assert_allclose(update['kernel'], [-0.9], rtol=1e-6)


def test_bfloat16_moments_stay_close_to_float32():
  # 8 bits of mantissa: each stored moment is off by up to 2 ** -9.
  params, gradients = descent.params(), descent.gradients(20)
  low, high = (
    descent.run(descent.make(mu_dtype=x)[0], params, gradients)[0][-1]
    for x in ('bfloat16', None)
  )
  _assert_close(low, high, atol=0.02)
  assert not np.array_equal(low['head']['kernel'], high['head']['kernel'])


def test_it_is_built_from_shapes_alone():
  options = dict(
    learning_rate=0.1, total_steps=10, freeze=FROZEN, weight_decay=0.1
  )
  tx, _ = chain.make(jax.eval_shape(descent.params), **options)
  same, _ = chain.make(descent.params(), **options)
  params, gradients = descent.params(), descent.gradients(3)
  found = descent.run(tx, params, gradients)[0][-1]
  _assert_close(found, descent.run(same, params, gradients)[0][-1], atol=0)


def test_evaluation_alone_needs_no_fitting_warmup():
  _, schedule = chain.make(
    descent.params(), learning_rate=0.1, total_steps=0, warmup_steps=10_000
  )
  assert np.isfinite(schedule(0))


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(name='adamax'), r"name='adamax'; expected one of \['adamw', 'adam'"),
    (dict(momentum=0.9), "momentum has no effect with name='adamw'"),
    (dict(name='adam', nesterov=False), "nesterov has no effect with name='a"),
    (dict(name='sgd', b1=0.9), "b1 has no effect with name='sgd', which takes"),
    (dict(name='sgd', momentum=0, nesterov=True), 'nesterov has no effect'),
    (dict(name='sgd', momentum=0, mu_dtype='bfloat16'), 'mu_dtype has no eff'),
    (dict(b1=1.0), r'b1=1\.0 must be a number in \[0, 1\)'),
    (dict(b2=-0.1), r'b2=-0\.1 must be a number in \[0, 1\)'),
    (dict(name='sgd', momentum=1.5), r'momentum=1\.5 must be'),
    (dict(eps=0), 'eps=0 must be a number > 0'),
    (dict(mu_dtype='float16'), "mu_dtype='float16'; expected"),
    (dict(weight_decay=-0.1), r'weight_decay=-0\.1: expected a number from 0'),
    (dict(name='adam', weight_decay=0.1), "needs name='adamw'"),
    (dict(weight_decay_mults=[('.*', 1.0)]), 'no effect with weight_decay=0'),
    (dict(grad_clip_norm=0.0), r'grad_clip_norm=0\.0 must be a number > 0'),
    (dict(warmup_steps=20), 'must be less than the 20 steps'),
    (
      dict(weight_decay=0.1, weight_decay_mults=[('.*/kernel', 1.0)]),
      r'(?s)weight_decay_mults: every.*no rule matches encoder/mlp/bias.*'
      'no rule matches head/bias',
    ),
    (
      dict(weight_decay=0.1, weight_decay_mults=[('.*', -1.0)]),
      r"multiplier of '\.\*' is -1\.0; expected a number >= 0",
    ),
    (
      dict(learning_rate_mults=[('hed/.*', 2.0)]),
      "(?s)learning_rate_mults.*'hed/.*' decides no parameter",
    ),
    (dict(learning_rate_mults=[('head/.*', 0.0)]), 'to hold it, freeze it'),
    (dict(learning_rate_mults=['head/.*']), 'is not a pair'),
    (dict(freeze=['encodr/.*']), "(?s)freeze.*'encodr/.*' decides no param"),
    (dict(freeze='head/.*'), r"expected a list of regexes: \['head/\.\*'\]"),
    (dict(freeze=['.*']), 'leaves no parameter to train'),
    (dict(freeze=['(']), 'not a regular expression'),
  ],
)
def test_impossible_optimizer_is_an_error_that_says_why(kwargs, message):
  with pytest.raises(UserError, match=message):
    descent.make(**kwargs)


def test_all_mistakes_of_the_moments_are_reported_at_once():
  with pytest.raises(UserError, match=r'momentum.*b1.*grad_clip_norm'):
    descent.make(momentum=0.9, b1=2.0, grad_clip_norm=-1)
