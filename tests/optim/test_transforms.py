"""Each optimizer against its formula in NumPy, on leaves with real names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models.vit import ViT
from vit_jax.optim import chain, roles, transforms
from vit_jax.parallel import mesh as mesh_lib, rules as rules_lib

D, N, K, F, DEPTH = 32, 4, 8, 64, 2
BLOCK = {
  **{f'attention/{x}/kernel': (D, N, K) for x in ('query', 'key', 'value')},
  'attention/query/bias': (N, K),
  'attention/out/kernel': (N, K, D),
  'mlp/up/kernel': (D, F),
  'mlp/down/kernel': (F, D),
  'norm_mlp/scale': (D,),
}
NAMES = ('lamb', 'lion', 'adafactor', 'muon')


def make_tree(seed, scan=False):
  """Returns `{name: float64 array}`; the same numbers with and without scan."""
  rng = np.random.default_rng(seed)
  tree = {'head/kernel': rng.normal(size=(D, 40)), 'head/bias': np.ones(40)}
  for name, shape in BLOCK.items():
    stack = rng.normal(size=(DEPTH, *shape))
    if scan:
      tree[f'encoder/blocks/{name}'] = stack
    else:
      for i in range(DEPTH):
        tree[f'encoder/block_{i:02d}/{name}'] = stack[i]
  return tree


def run(num, scan=False, mesh=None, **options):
  """Returns the parameters after some updates, and the optimizer's state."""
  params = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32), trees.unflatten(make_tree(0, scan))
  )
  options = dict(
    learning_rate=0.1, total_steps=9, schedule='constant', **options
  )
  tx, _ = chain.make(params, roles=ViT.ROLES, **options)
  state = tx.init(params)
  if mesh is not None:
    whole = {'params': params, 'opt_state': state}
    split = rules_lib.state_shardings(whole, mesh, min_size=1)
    whole = jax.device_put(whole, split)
    params, state = whole['params'], whole['opt_state']

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for i in range(num):
    grads = jax.tree.map(jnp.float32, trees.unflatten(make_tree(i + 1, scan)))
    params, state = step(params, state, grads)
  return trees.flatten(params), state


def numpy_run(num, update, scan=False):
  """`update(name, parameter, gradient, memory, k) -> step`, all float64."""
  params = make_tree(0, scan)
  memory = {name: {} for name in params}
  for k in range(1, num + 1):
    grads = make_tree(k, scan)
    steps = update(params, grads, memory, k)
    params = {name: p - 0.1 * steps[name] for name, p in params.items()}
  return params


def assert_close(actual, expected, **tolerance):
  assert actual.keys() == expected.keys()
  for name, x in actual.items():
    np.testing.assert_allclose(x, expected[name], err_msg=name, **tolerance)


def adam(name, grad, memory, k):
  mu = memory['mu'] = 0.9 * memory.get('mu', 0) + 0.1 * grad
  nu = memory['nu'] = 0.999 * memory.get('nu', 0) + 0.001 * grad**2
  return mu / (1 - 0.9**k) / (np.sqrt(nu / (1 - 0.999**k)) + 1e-8)


def test_lion_takes_the_sign_of_an_interpolated_average():
  def update(params, grads, memory, k):
    steps = {}
    for name, g in grads.items():
      mu = memory[name].get('mu', 0)
      steps[name] = np.sign(0.9 * mu + 0.1 * g)
      memory[name]['mu'] = 0.99 * mu + 0.01 * g
      if name.endswith('kernel'):
        steps[name] = steps[name] + 0.5 * params[name]
    return steps

  got, _ = run(4, name='lion', weight_decay=0.5)
  assert_close(got, numpy_run(4, update), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('clip', [None, 0.5])
def test_adafactor_is_that_of_scaling_vision_transformers(clip):
  def update(params, grads, memory, k):
    steps = {}
    b2 = min(0.4, 1 - k**-0.8)  # The cap is met at the second update.
    for name, g in grads.items():
      m, square = memory[name], g**2 + 1e-30
      # The two largest sides, where both have 32 or more.
      sides = np.argsort(g.shape, kind='stable')[-2:]
      if g.ndim > 1 and g.shape[sides[0]] >= 32:
        small, large = (int(x) for x in sides)
        row = m['row'] = b2 * m.get('row', 0) + (1 - b2) * square.mean(
          large, keepdims=True
        )
        col = m['col'] = b2 * m.get('col', 0) + (1 - b2) * square.mean(
          small, keepdims=True
        )
        v = row * col / row.mean(small, keepdims=True)
      else:
        v = m['v'] = b2 * m.get('v', 0) + (1 - b2) * square
      step = g / np.sqrt(v)
      if clip:
        step /= max(1, np.sqrt((step**2).mean()) / clip)
      m['ema'] = steps[name] = 0.9 * m.get('ema', 0) + 0.1 * step
    return steps

  got, state = run(
    4, name='adafactor', b2=0.4, mu_dtype='float32', clip_update_rms=clip
  )
  assert_close(got, numpy_run(4, update), rtol=1e-4, atol=1e-5)
  sizes = {n: x.size for n, x in trees.flatten(state).items()}
  up = 'encoder/block_00/mlp/up/kernel'
  found = {
    n.split(up)[0].split('/')[-2]: s for n, s in sizes.items() if up in n
  }
  assert found == {'v_row': D, 'v_col': F, 'v': 1, 'ema': D * F}


def test_the_momentum_of_adafactor_is_stored_in_half_the_bytes():
  leaves = trees.flatten(run(1, name='adafactor')[1]).items()
  assert {x.dtype for n, x in leaves if '/ema/' in n} == {jnp.dtype('bfloat16')}
  assert {x.dtype for n, x in leaves if '/v_row/' in n} == {
    jnp.dtype('float32')
  }


@pytest.mark.parametrize('scan', [False, True])
def test_lamb_scales_updates_of_layers_to_the_norm_of_the_layer(scan):
  def layers(name):
    """Which leaves, and which of their dimensions, have one norm."""
    others = [name]
    for part in ('query', 'key', 'value'):
      if f'/{part}/kernel' in name:
        others = [name.replace(part, x) for x in ('query', 'key', 'value')]
    return others

  def update(params, grads, memory, k):
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    steps = {
      name: adam(name, g / max(1, norm), memory[name], k)
      + 0.5 * params[name] * name.endswith('kernel')
      for name, g in grads.items()
    }
    scaled = dict(steps)
    for name in steps:
      if name.endswith('kernel'):
        first = 1 if '/blocks/' in name else 0

        def length(tree, name=name, first=first):
          return np.sqrt(
            sum(
              (tree[n] ** 2).sum(
                tuple(range(first, tree[n].ndim)), keepdims=True
              )
              for n in layers(name)
            ).reshape((-1,) + (1,) * (tree[name].ndim - 1))
          )

        ratio = length(params) / length(steps)
        scaled[name] = (ratio if first else ratio.item()) * steps[name]
    return scaled

  got, _ = run(
    4, scan, name='lamb', weight_decay=0.5, grad_clip_norm=1.0, b1=0.9
  )
  assert_close(got, numpy_run(4, update, scan), rtol=2e-4, atol=1e-5)


def test_lamb_leaves_an_update_whose_norm_or_parameter_is_zero():
  tx = transforms.trust_ratio(['a/kernel', 'b/kernel'], roles.Roles())
  params = {'a': {'kernel': jnp.zeros(2)}, 'b': {'kernel': jnp.ones(2)}}
  updates = {'a': {'kernel': jnp.ones(2)}, 'b': {'kernel': jnp.zeros(2)}}
  got, _ = tx.update(updates, tx.init(params), params)
  np.testing.assert_array_equal(got['a']['kernel'], [1, 1])
  np.testing.assert_array_equal(got['b']['kernel'], [0, 0])


def as_matrices(name, x):
  """Returns `[blocks, rows, columns]` as Muon sees a kernel."""
  first = DEPTH if '/blocks/' in name else 1
  if '/out/' in name:
    return x.reshape(first, N * K, D)
  return x.reshape(first, F if 'down' in name else D, -1)


def test_muon_makes_kernels_orthogonal_and_leaves_others_to_adam():
  got, _ = run(1, name='muon')
  start, by_adam = make_tree(0), run(1, name='adam')[0]
  for name, x in got.items():
    if not name.endswith('kernel') or name.startswith('head'):
      np.testing.assert_allclose(x, by_adam[name], rtol=1e-6, err_msg=name)
      continue
    step = as_matrices(name, (start[name] - np.asarray(x)) / 0.1)[0]
    singular = np.linalg.svd(step / 0.2, compute_uv=False)
    # Newton and Schulz bring singular values near 1, but for the smallest.
    scale = np.sqrt(max(step.shape))
    assert 0.6 * scale < np.quantile(singular, 0.1), name
    assert singular.max() < 1.3 * scale, name
    # Of the gradient's own directions.
    gradient = as_matrices(name, make_tree(1)[name])[0]
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    cosine = np.sum(step * (u @ vt)) / np.linalg.norm(step) / np.sqrt(len(vt))
    assert cosine > 0.95, name


def test_muon_makes_the_convolutions_of_a_stem_orthogonal():
  shapes = {
    'patch_embedding/convolution_0/kernel': (3, 3, 4, 16),
    'patch_embedding/out/kernel': (16, 32),
  }
  rng = np.random.default_rng(0)
  grads = {n: jnp.asarray(rng.normal(size=s)) for n, s in shapes.items()}
  params = jax.tree.map(jnp.zeros_like, trees.unflatten(grads))
  tx, _ = chain.make(
    params,
    name='muon',
    learning_rate=1.0,
    total_steps=9,
    schedule='constant',
    roles=ViT.ROLES,
  )
  updates, _ = tx.update(trees.unflatten(grads), tx.init(params), params)
  for name, update in trees.flatten(updates).items():
    # Rows are all that an output reads: 3 x 3 pixels of each channel.
    matrix = np.asarray(update).reshape(-1, shapes[name][-1]) / 0.2
    singular = np.linalg.svd(matrix, compute_uv=False)
    scale = np.sqrt(max(matrix.shape))
    assert 0.6 * scale < singular.min(), name
    assert singular.max() < 1.3 * scale, name


def stacked(named):
  """Returns the parameters of blocks stacked as with scan."""
  out = {}
  for name, x in named.items():
    if name.startswith('encoder/block_'):
      rest = name.split('/', 2)[2]
      out.setdefault(f'encoder/blocks/{rest}', []).append(x)
    else:
      out[name] = x
  return {n: np.stack(x) if isinstance(x, list) else x for n, x in out.items()}


@pytest.mark.parametrize('name', ['lamb', 'lion', 'muon', 'adafactor'])
def test_scanned_blocks_get_the_updates_of_single_ones(name):
  options = dict(name=name, weight_decay=0.1)
  single, scanned = run(3, **options)[0], run(3, scan=True, **options)[0]
  # Muon's matrix products add in another order.
  assert_close(scanned, stacked(single), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_frozen_parameters_stay_and_have_no_state(name):
  frozen = ['head/kernel', 'encoder/block_00/attention/.*']
  got, state = run(
    2, name=name, freeze=frozen, layer_decay=0.5, grad_clip_norm=1.0
  )
  start = make_tree(0)
  is_frozen = {n: 'block_00/att' in n or n == 'head/kernel' for n in start}
  for n, x in got.items():
    same = np.array_equal(x, np.float32(start[n]))
    assert same == is_frozen[n], n
  kept = [
    n
    for n in trees.flatten(state)
    if any(n.endswith(f) for f, held in is_frozen.items() if held)
  ]
  assert kept == []


@pytest.mark.parametrize('name', NAMES)
def test_layer_decay_scales_the_updates(name):
  start, (full, _) = make_tree(0), run(1, name=name)
  decayed, _ = run(1, name=name, layer_decay=0.5)
  for block, factor in ((1, 0.5), (0, 0.25)):
    for leaf in ('mlp/up/kernel', 'norm_mlp/scale'):
      n = f'encoder/block_{block:02d}/{leaf}'
      np.testing.assert_allclose(
        decayed[n] - start[n],
        factor * (full[n] - start[n]),
        rtol=2e-3,
        atol=1e-6,
      )


@pytest.mark.parametrize('name', NAMES)
def test_first_moments_are_split_like_their_parameters(name):
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32),
    trees.unflatten(make_tree(0, scan=True)),
  )
  tx, _ = chain.make(
    params, name=name, learning_rate=1.0, total_steps=9, roles=ViT.ROLES
  )
  state = {'params': params, 'opt_state': jax.eval_shape(tx.init, params)}
  mesh = mesh_lib.make_mesh(fsdp=4, tensor=2)
  split = trees.flatten(rules_lib.state_shardings(state, mesh, min_size=1))
  up = 'encoder/blocks/mlp/up/kernel'
  wanted = split[f'params/{up}']
  moment = 'ema' if name == 'adafactor' else 'mu'
  found = [s for n, s in split.items() if n.endswith(f'/{moment}/{up}')]
  assert found == [wanted] and wanted.spec[1:] == ('fsdp', 'tensor')


@pytest.mark.parametrize('name', ['lamb', 'adafactor', 'muon'])
def test_updates_of_split_parameters_equal_those_of_whole_ones(name):
  options = dict(scan=True, name=name, weight_decay=0.1)
  split, _ = run(2, mesh=mesh_lib.make_mesh(fsdp=4, tensor=2), **options)
  assert len(split['encoder/blocks/mlp/up/kernel'].sharding.device_set) == 8
  whole, _ = run(2, **options)
  assert_close(split, whole, rtol=1e-4, atol=1e-5)


def test_muon_without_kernels_is_an_error():
  tx, _ = chain.make(
    {'scale': jnp.ones(3)}, name='muon', learning_rate=1.0, total_steps=9
  )
  with pytest.raises(UserError, match=r'this model has none.*: scale'):
    tx.init({'scale': jnp.ones(3)})


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(name='lion', eps=1e-8), "eps has no effect with name='lion'"),
    (dict(name='adamw', clip_update_rms=1.0), 'clip_update_rms has no effect'),
    (dict(name='adafactor', clip_update_rms=0), 'clip_update_rms=0 must be'),
    (dict(name='adafactor', b1=0.9), 'b1 has no effect'),
    (dict(name='adafactor', momentum=0, mu_dtype='float32'), 'mu_dtype has no'),
    (dict(name='muon', momentum=1.0), r'momentum=1\.0 must be a number in'),
    (
      dict(name='lamb', momentum=0.9),
      "momentum has no effect with name='lamb'",
    ),
  ],
)
def test_options_without_effect_are_errors(options, message):
  with pytest.raises(UserError, match=message):
    run(0, **options)
