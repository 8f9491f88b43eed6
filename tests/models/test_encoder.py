"""The stack of blocks: scanning, recomputing, dropping, sowing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import draws
from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import _dropout
from vit_jax.models._encoder import REMAT_POLICIES, Block, Encoder
from vit_jax.models._norm import layer_norm
from vit_jax.parallel import activations

BLOCK = dict(num_heads=2, mlp_dim=24, norm_epsilon=1e-6)


def _stack(params, depth):
  """Returns the parameters of a scanned encoder for those of a loop."""
  blocks = [params.pop(f'block_{i:02d}') for i in range(depth)]
  return params | {'blocks': jax.tree.map(lambda *p: np.stack(p), *blocks)}


def _encoder(depth=3, *, block=None, **options):
  return Encoder(depth, Block(**BLOCK | (block or {})), **options)


def _params(depth=3):
  x = draws.normal(2, 5, 16)
  return draws.params(_encoder(depth), x)['params'], x


def test_a_scan_and_a_loop_give_the_same_values_and_gradients():
  params, x = _params()

  def loss(params, scan):
    out, _ = _encoder(scan=scan).apply({'params': params}, x)
    assert out.dtype == jnp.float32
    return (out**3).sum()

  value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  value, grads = value_and_grad(params, False)
  stacked = _stack(dict(params), 3)
  scan_value, scan_grads = value_and_grad(stacked, True)
  np.testing.assert_allclose(value, scan_value, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    _stack(grads, 3),
    scan_grads,
  )


def test_scanned_blocks_start_from_different_values():
  x = draws.normal(2, 5, 16)
  init = jax.jit(_encoder(scan=True).init)
  params = init(jax.random.key(0), x)['params']
  kernel = params['blocks']['mlp']['up']['kernel']
  assert kernel.shape == (3, 16, 24)
  assert np.abs(kernel[0] - kernel[1]).min() > 0


@pytest.mark.parametrize(
  'schedule, rates',
  [('linear', (0.0, 0.2, 0.4)), ('constant', (0.4, 0.4, 0.4))],
)
@pytest.mark.parametrize('scan', [False, True])
def test_stochastic_depth_grows_with_depth_or_is_constant(
  scan, schedule, rates, monkeypatch
):
  params, x = _params()
  # In place of a draw, a factor that only depends on the rate.
  monkeypatch.setattr(
    _dropout, 'drop_examples', lambda rng, x, rate: x * (1 - rate)
  )
  expected = x
  for i, rate in enumerate(rates):
    block = Block(**BLOCK)
    variables = {'params': params[f'block_{i:02d}']}
    rngs = {'dropout': jax.random.key(0)}
    expected = block.apply(variables, expected, rate, True, rngs=rngs)
  norm = layer_norm(1e-6, 'float32', name=None)
  expected = norm.apply({'params': params['norm']}, expected)

  encoder = _encoder(
    scan=scan,
    stochastic_depth_rate=0.4,
    stochastic_depth_schedule=schedule,
  )
  if scan:
    params = _stack(dict(params), 3)
  out, _ = encoder.apply({'params': params}, x, train=True, rngs=rngs)
  np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize('remat', [None, 'full'])
@pytest.mark.parametrize('scan', [False, True])
def test_every_branch_of_every_block_draws_from_its_own_key(
  scan, remat, monkeypatch
):
  params, x = _params()
  keys = set()

  def record(rng, x, rate):
    data = jax.random.key_data(rng)
    jax.debug.callback(lambda k: keys.add(tuple(np.asarray(k))), data)
    return x

  monkeypatch.setattr(_dropout, 'drop_examples', record)
  if scan:
    params = _stack(dict(params), 3)
  encoder = _encoder(scan=scan, remat=remat, stochastic_depth_rate=0.1)
  rngs = {'dropout': jax.random.key(0)}
  apply = jax.jit(encoder.apply, static_argnames='train')
  apply({'params': params}, x, train=True, rngs=rngs)
  jax.effects_barrier()
  assert len(keys) == 2 * 3


@pytest.mark.parametrize('scan', [False, True])
def test_recomputing_changes_the_work_and_not_the_gradients(scan):
  params, x = _params(depth=2)
  if scan:
    params = _stack(dict(params), 2)

  def trace(remat):
    encoder = _encoder(
      2,
      block=dict(dropout_rate=0.3),
      scan=scan,
      remat=remat,
      stochastic_depth_rate=0.3,
    )
    rngs = {'dropout': jax.random.key(0)}

    def loss(params):
      out, _ = encoder.apply({'params': params}, x, train=True, rngs=rngs)
      return (out**2).sum()

    return jax.jit(jax.grad(loss)).trace(params)

  traced = {remat: trace(remat) for remat in (None, *REMAT_POLICIES)}
  dots = {k: str(t.jaxpr).count('dot_general') for k, t in traced.items()}
  assert dots['full'] == dots['nothing_saveable'] > dots[None]
  assert dots['everything_saveable'] == dots['dots_saveable'] == dots[None]
  # The two products inside attention have batch dimensions.
  assert dots[None] < dots['dots_with_no_batch_dims_saveable'] < dots['full']

  plain, full = (traced[k].lower().compile()(params) for k in (None, 'full'))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    plain,
    full,
  )


def test_the_gradient_of_every_norm_is_computed_once():
  params, x = _params()

  def loss(params):
    return (_encoder().apply({'params': params}, x)[0] ** 2).sum()

  jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
  # Two in each of three blocks and one at the end, but for the first of all,
  # whose input is not differentiated here.
  assert jaxpr.count('optimization_barrier') == 6


@pytest.mark.parametrize(
  ('platform', 'is_rewritten'), [('cpu', True), ('gpu', False), ('tpu', False)]
)
def test_measures_for_cpus_are_taken_on_cpus_alone(
  platform, is_rewritten, monkeypatch
):
  monkeypatch.setattr(activations, 'platform', lambda: platform)
  monkeypatch.setattr(activations, 'device_kind', lambda: None)
  params, x = _params()

  def loss(params):
    return (_encoder().apply({'params': params}, x)[0] ** 2).sum()

  jaxpr = str(jax.make_jaxpr(jax.grad(loss))(params))
  assert ('optimization_barrier' in jaxpr) == is_rewritten
  assert ('checkpoint' in jaxpr or 'remat' in jaxpr) == is_rewritten


@pytest.mark.parametrize('scan', [False, True])
def test_weights_are_sown_by_every_block(scan):
  params, x = _params()
  if scan:
    params = _stack(dict(params), 3)
  encoder = _encoder(scan=scan, block=dict(attention='xla'))
  _, sown = encoder.apply({'params': params}, x, mutable=['intermediates'])
  shapes = {k: v.shape for k, v in trees.flatten(sown['intermediates']).items()}
  if scan:
    assert shapes == {'blocks/attention/attention_weights/0': (3, 2, 2, 5, 5)}
  else:
    assert shapes == {
      f'block_{i:02d}/attention/attention_weights/0': (2, 2, 5, 5)
      for i in range(3)
    }


def test_a_block_that_always_drops_is_the_identity_in_training_only():
  x = draws.normal(2, 5, 16)
  block = Block(**BLOCK)
  params = draws.params(block, x)
  rngs = {'dropout': jax.random.key(1)}
  almost_one = np.float32(1 - 1e-6)
  out = block.apply(params, x, almost_one, True, rngs=rngs)
  np.testing.assert_array_equal(out, x)
  out = block.apply(params, x, almost_one, False)
  np.testing.assert_array_equal(out, block.apply(params, x))
  assert np.abs(out - x).min() > 0


def test_layer_scale_multiplies_each_branch():
  x = draws.normal(2, 5, 16)
  plain = Block(**BLOCK)
  params = draws.params(plain, x)['params']
  scaled = Block(**BLOCK, layer_scale=0.5)
  init = jax.jit(scaled.init)(jax.random.key(0), x)['params']
  np.testing.assert_array_equal(init['scale_attention'], np.full(16, 0.5))
  np.testing.assert_array_equal(init['scale_mlp'], np.full(16, 0.5))
  zero, one = np.zeros(16, np.float32), np.ones(16, np.float32)

  def apply(_attention, mlp):
    scales = dict(scale_attention=_attention, scale_mlp=mlp)
    return scaled.apply({'params': params | scales}, x)

  expected = plain.apply({'params': params}, x)
  np.testing.assert_allclose(apply(one, one), expected, atol=1e-6)
  np.testing.assert_array_equal(apply(zero, zero), x)
  attention, both = apply(one, zero), apply(one, one)
  np.testing.assert_allclose(
    apply(one, one / 2), (attention + both) / 2, atol=1e-6
  )


@pytest.mark.parametrize('remat', [None, 'full'])
@pytest.mark.parametrize('scan', [False, True])
def test_every_block_gets_the_mask_and_the_bias(scan, remat):
  params, x = _params()
  bias = draws.normal(1, 2, 5, 5, seed=3)
  mask = np.array([True] * 4 + [False])[None, None, None]
  expected = x
  for i in range(3):
    variables = {'params': params[f'block_{i:02d}']}
    block = Block(**BLOCK)
    expected = block.apply(variables, expected, mask=mask, bias=bias)
  norm = layer_norm(1e-6, 'float32', name=None)
  expected = norm.apply({'params': params['norm']}, expected)
  if scan:
    params = _stack(dict(params), 3)
  encoder = _encoder(scan=scan, remat=remat)

  @jax.jit
  def run(params, bias):
    def loss(bias):
      out, _ = encoder.apply({'params': params}, x, mask=mask, bias=bias)
      return out[0, 0, 0], out

    return jax.value_and_grad(loss, has_aux=True)(bias)

  (_, out), gradient = run(params, bias)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  # The gradient reaches the logits of what is read, and no others.
  assert np.abs(gradient[..., :4, :4]).min() > 0
  np.testing.assert_array_equal(gradient[..., 4], 0)


@pytest.mark.parametrize('scan', [False, True])
def test_outputs_of_chosen_blocks_are_those_of_the_blocks(scan):
  params, x = _params()
  each, expected = [], x
  for i in range(3):
    variables = {'params': params[f'block_{i:02d}']}
    expected = Block(**BLOCK).apply(variables, expected)
    each.append(expected)
  if scan:
    params = _stack(dict(params), 3)
  encoder = _encoder(scan=scan)
  _, outputs = encoder.apply({'params': params}, x, blocks=(-1, -3))
  assert outputs.shape == (2, 2, 5, 16) and outputs.dtype == jnp.float32
  np.testing.assert_allclose(outputs[:, 0], each[2], atol=1e-5)
  np.testing.assert_allclose(outputs[:, 1], each[0], atol=1e-5)
  for number in (3, -4):
    with pytest.raises(UserError, match=f'no block {number}'):
      encoder.apply({'params': params}, x, blocks=(number,))


def test_outputs_of_blocks_cost_nothing_unless_asked_for():
  params, x = _params()
  params = _stack(dict(params), 3)

  def outputs(blocks):
    apply = _encoder(scan=True).apply
    jaxpr = jax.make_jaxpr(lambda p: apply({'params': p}, x, blocks=blocks))
    (loop,) = [e for e in jaxpr(params).eqns if e.primitive.name == 'scan']
    return [v.aval.shape for v in loop.outvars]

  assert outputs(()) == [(2, 5, 16)]
  assert outputs((1,)) == [(2, 5, 16), (3, 2, 5, 16)]
