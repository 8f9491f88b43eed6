"""The kernel computes what the written-out attention does, on any device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import _attention, _attention_kernel
from vit_jax.parallel import activations, mesh as mesh_lib

# The kernel sums in another order.
_TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def _normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _written_out(qkv_BLE, bias_D, num_heads):
  qkv_BLE = qkv_BLE.at[..., : len(bias_D)].add(bias_D[None, None])
  B, L, E = qkv_BLE.shape
  heads = (B, L, num_heads, E // 3 // num_heads)
  query, key, value = (x.reshape(heads) for x in jnp.split(qkv_BLE, 3, axis=-1))
  weights = _attention.attention_weights(query, key)
  return _attention.weighted_values(weights, value).reshape(B, L, E // 3)


# Heads of 64 share a tile of 128 columns, one of 80 lies in two tiles.
@pytest.mark.parametrize(('width', 'num_heads'), [(256, 4), (640, 8), (128, 1)])
def test_kernel_and_its_gradients_are_those_of_attention(width, num_heads):
  qkv, gradient = _normal(0, 2, 13, 3 * width), _normal(1, 2, 13, width)
  bias = _normal(2, width)
  ours, ours_backward = jax.vjp(
    lambda *args: _attention_kernel.attention(*args, num_heads, True), qkv, bias
  )
  reference, backward = jax.vjp(
    lambda *args: _written_out(*args, num_heads), qkv, bias
  )
  np.testing.assert_allclose(ours, reference, **_TOLERANCE)
  for one, other in zip(
    ours_backward(gradient), backward(gradient), strict=True
  ):
    np.testing.assert_allclose(one, other, **_TOLERANCE)


def test_kernel_survives_logits_that_overflow_an_exponential():
  qkv, bias = _normal(0, 1, 5, 3 * 128) * 40, jnp.zeros(128)
  ours, backward = jax.vjp(
    lambda x: _attention_kernel.attention(x, bias, 2, True), qkv
  )
  reference = _written_out(qkv, bias, 2)
  np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)
  assert np.isfinite(backward(jnp.ones_like(ours))[0]).all()


@pytest.mark.parametrize('mesh', [dict(data=8), dict(data=2, fsdp=4)])
def test_each_device_computes_its_own_images(mesh):
  qkv, bias = _normal(0, 8, 5, 3 * 128), _normal(1, 128)
  mesh = mesh_lib.make_mesh(**mesh)
  on_mesh = jax.device_put(qkv, mesh_lib.batch_sharding(mesh))

  def compute(qkv):
    with activations.use(mesh):
      return _attention_kernel.attention(qkv, bias, 2, True)

  out = jax.jit(compute)(on_mesh)
  assert out.sharding.shard_shape(out.shape) == (1, 5, 128)
  reference = _written_out(qkv, bias, 2)
  np.testing.assert_allclose(out, reference, **_TOLERANCE)


@pytest.fixture
def tpu(monkeypatch):
  """Makes attention believe that it is on a TPU, and the kernel run here."""
  run = _attention_kernel._run
  kind = 'TPU v5 lite'
  monkeypatch.setattr(activations, 'platform', lambda: 'tpu')
  monkeypatch.setattr(activations, 'device_kind', lambda: kind)
  monkeypatch.setattr(
    _attention_kernel,
    '_run',
    lambda kernel, heads, interpret, *args: run(kernel, heads, True, *args),
  )
  with activations.use(mesh_lib.make_mesh(devices=jax.devices()[:1])):
    yield


@pytest.mark.parametrize(
  ('qkv_bias', 'weight_init'), [(True, 'google'), (False, 'torch')]
)
def test_module_has_the_same_parameters_and_output_on_a_tpu(
  tpu, qkv_bias, weight_init
):
  x = _normal(0, 2, 7, 128)
  module = _attention.Attention(
    num_heads=2, qkv_bias=qkv_bias, weight_init=weight_init, dtype='bfloat16'
  )
  plain = module.clone(implementation='einsum')
  params = module.init(jax.random.key(0), x)
  jax.tree.map(
    np.testing.assert_array_equal, params, plain.init(jax.random.key(0), x)
  )
  # Biases start at zero: give them something to do.
  params = jax.tree.map(lambda p: p + 0.1 * _normal(1, *p.shape), params)
  text = str(jax.make_jaxpr(module.apply)(params, x))
  assert 'pallas_call' in text
  # Three roundings to 8 bits, of numbers of about 1.
  np.testing.assert_allclose(
    module.apply(params, x).astype('float32'),
    plain.apply(params, x).astype('float32'),
    atol=0.05,
  )


@pytest.mark.parametrize(
  'options',
  [
    dict(dtype='float32'),
    dict(qk_norm=True),
    dict(implementation='einsum'),
    dict(num_heads=1, width=64),
    dict(tokens=273),
  ],
)
def test_module_computes_the_rest_written_out(tpu, options):
  options = dict(num_heads=2, dtype='bfloat16') | options
  tokens, width = options.pop('tokens', 7), options.pop('width', 128)
  x = _normal(0, 2, tokens, width)
  module = _attention.Attention(**options)
  params = module.init(jax.random.key(0), x)
  assert 'pallas_call' not in str(jax.make_jaxpr(module.apply)(params, x))


def test_a_mask_or_a_bias_is_computed_written_out(tpu):
  x = _normal(0, 2, 7, 128)
  module = _attention.Attention(num_heads=2, dtype='bfloat16')
  params = module.init(jax.random.key(0), x)
  mask = jnp.arange(7)[None, None, None] < 5
  for options in (dict(mask=mask), dict(bias=_normal(1, 1, 2, 7, 7))):

    def apply(params, options=options):
      return module.apply(params, x, **options)

    assert 'pallas_call' not in str(jax.make_jaxpr(apply)(params))
  short = module.clone(implementation='einsum').apply(params, x[:, :5])
  masked = module.apply(params, x, mask=mask)[:, :5]
  np.testing.assert_allclose(
    masked.astype('float32'), short.astype('float32'), atol=0.02
  )


def test_weights_can_be_sown_on_a_tpu(tpu):
  x = _normal(0, 2, 7, 128)
  module = _attention.Attention(num_heads=2, dtype='bfloat16')
  params = module.init(jax.random.key(0), x)
  _, sown = module.apply(params, x, mutable='intermediates')
  weights = sown['intermediates']['attention_weights'][0]
  assert weights.shape == (2, 2, 7, 7)


def test_without_a_mesh_no_kernel_is_used():
  assert not _attention_kernel.fits((8, 7, 128), 'bfloat16', 2)


@pytest.mark.parametrize(
  ('kind', 'fits'),
  [('TPU v3', False), ('TPU v4', False), ('TPU v6 lite', True)],
)
def test_only_supported_devices_run_the_kernel(tpu, monkeypatch, kind, fits):
  monkeypatch.setattr(activations, 'device_kind', lambda: kind)
  assert _attention_kernel.fits((8, 7, 128), 'bfloat16', 2) == fits
