"""The dtype of the residual stream beside that of the products."""

import jax
import numpy as np
import pytest

from tests.models import draws
from vit_jax.errors import UserError
from vit_jax.models.vit import Model
from vit_jax.parallel import activations, mesh as mesh_lib, rules

IMAGE = draws.normal(2, 32, 48, 3)
HALF = dict(dtype='bfloat16', weight_init='torch')
MIXED = HALF | dict(residual_dtype='float32')


def _model(**options):
  return Model('mu/8', 5, **dict(depth=6, width=64, layer_scale=1e-4) | options)


def _init(model, seed=0):
  return jax.jit(model.init)(jax.random.key(seed), IMAGE)


def _effect_of_blocks(model, variables):
  """Returns what the blocks add to the patches' tokens."""

  def run(variables):
    before = model.apply(variables, IMAGE, method='embed')
    after = model.apply(variables, IMAGE, blocks=(-1,))['block_outputs'][:, 0]
    return (after - before)[:, 1:]

  return np.asarray(jax.jit(run)(variables)).ravel()


def test_a_float32_stream_keeps_what_small_branches_add():
  full, half, mixed = (_model(**options) for options in ({}, HALF, MIXED))
  variables = _init(full.clone(weight_init='torch'))
  exact = _effect_of_blocks(full, variables)

  def correlation(model):
    return np.corrcoef(exact, _effect_of_blocks(model, variables))[0, 1]

  # Six branches of 1e-4 disappear in the last of 8 bits of tokens of size 1.
  assert correlation(half) < 0.4
  assert correlation(mixed) > 0.999


@pytest.mark.parametrize('options', [{}, dict(pooling='map', num_registers=2)])
def test_a_float32_stream_multiplies_in_bfloat16(options):
  def products(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
    jaxpr = str(jax.make_jaxpr(model.apply)(shapes, IMAGE))
    lines = [line for line in jaxpr.splitlines() if 'dot_general' in line]
    return [line.split('=')[0].split(':')[1].split('[')[0] for line in lines]

  half = products(_model(**HALF, **options))
  assert half.count('bf16') > half.count('f32')
  assert products(_model(**MIXED, **options)) == half


def test_all_of_the_stream_is_in_its_dtype():
  model = _model(pooling='map', **MIXED)
  variables = _init(model)
  tokens = model.apply(variables, IMAGE, method='embed')
  assert tokens.dtype == np.float32
  # Positions are added in float32: a change below bfloat16's last bit is seen.
  params = variables['params']
  moved = params | {'position_embedding': params['position_embedding'] + 1e-5}
  others = model.apply({'params': moved}, IMAGE, method='embed')
  np.testing.assert_allclose(others - tokens, 1e-5, atol=5e-7)
  # Map pooling reads and returns it.
  _, kept = model.apply(
    variables, IMAGE, capture_intermediates=True, mutable=['intermediates']
  )
  for name in ('pooling', 'encoder'):
    (output,) = kept['intermediates'][name]['__call__']
    output = output[0] if name == 'encoder' else output
    assert output.dtype == np.float32, name
  block = kept['intermediates']['encoder']['block_00']
  assert block['__call__'][0].dtype == np.float32
  for norm in ('norm_attention', 'norm_mlp'):
    assert block[norm]['__call__'][0].dtype == 'bfloat16'


@pytest.mark.parametrize('remat', [None, 'dots_saveable'])
def test_a_scan_computes_the_same(remat):
  loop = _model(**MIXED, depth=2)
  scanned = _model(**MIXED, depth=2, scan=True, remat=remat)
  params = _init(loop)['params']
  encoder = dict(params['encoder'])
  blocks = [encoder.pop(f'block_{i:02d}') for i in range(2)]
  encoder['blocks'] = jax.tree.map(lambda *x: np.stack(x), *blocks)

  def loss(params, model):
    # Tokens of another dtype than the stream's.
    x = model.apply({'params': params}, IMAGE, method='embed')
    x, _ = model.apply(
      {'params': params}, x.astype('bfloat16'), method='encode'
    )
    return (
      model.apply({'params': params}, x, method='read_out')['features'] ** 2
    ).sum()

  value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  value, grads = value_and_grad(params, loop)
  other, other_grads = value_and_grad(params | {'encoder': encoder}, scanned)
  np.testing.assert_allclose(value, other, rtol=1e-5)
  np.testing.assert_allclose(
    grads['position_embedding'],
    other_grads['position_embedding'],
    rtol=1e-3,
    atol=1e-4,
  )


def test_without_it_the_stream_has_the_dtype_of_the_products():
  model = _model(**HALF)
  named = model.clone(residual_dtype='bfloat16')
  variables = _init(model)
  tokens = model.apply(variables, IMAGE, method='embed')
  assert tokens.dtype == 'bfloat16'
  apply = jax.jit(lambda model: model.apply(variables, IMAGE), static_argnums=0)
  jax.tree.map(np.testing.assert_array_equal, apply(model), apply(named))


def test_an_unknown_dtype_of_the_stream_is_an_error():
  with pytest.raises(UserError, match="residual_dtype='fp32': expected one of"):
    _model(residual_dtype='fp32')


def test_a_sharded_model_computes_the_same():
  model = _model(depth=2, scan=True, num_heads=4, **MIXED)
  variables, apply = _init(model), jax.jit(lambda v, x: model.apply(v, x))
  image = np.concatenate([IMAGE, IMAGE + 1])
  alone = apply(variables, image)['tokens']
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  shardings = rules.state_shardings(variables, mesh, min_size=1)
  sharded = jax.device_put(variables, shardings)
  # Compiled anew: what shards activations is read while tracing.
  apply = jax.jit(lambda v, x: model.apply(v, x))
  with activations.use(mesh, split_tokens=True):
    tokens = apply(
      sharded, jax.device_put(image, mesh_lib.batch_sharding(mesh))
    )['tokens']
  assert not sharded['params']['encoder']['blocks']['mlp']['up'][
    'kernel'
  ].sharding.is_fully_replicated
  # Products in bfloat16 are summed in another order, and LayerScale is 1e-4.
  np.testing.assert_allclose(tokens, alone, atol=1e-4)
