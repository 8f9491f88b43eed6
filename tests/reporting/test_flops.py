"""Counted FLOPs of operations against numbers by hand."""

import types

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from vit_jax.models import vit
from vit_jax.reporting import flops


def spec(*shape, dtype='float32'):
  return jax.ShapeDtypeStruct(shape, dtype)


def test_a_matrix_product_is_2mkn():
  assert flops.count(jnp.matmul, spec(3, 4), spec(4, 5)) == 2 * 3 * 4 * 5
  assert flops.count(jnp.dot, spec(4), spec(4)) == 2 * 4


def test_batch_dimensions_multiply():
  def scores(q, k):
    return jnp.einsum('blnk,bmnk->bnlm', q, k)

  count = flops.count(scores, spec(2, 7, 3, 5), spec(2, 11, 3, 5))
  assert count == 2 * (2 * 3) * 7 * 11 * 5


def test_elementwise_work_is_free():
  assert flops.count(lambda x: jax.nn.softmax(jnp.tanh(x) + 1), spec(8, 8)) == 0


@pytest.mark.parametrize(
  ('conv', 'image', 'expected'),
  [
    # 2x2 patches of 8x6 are a [12, 12] x [12, 5] product.
    (dict(features=5, kernel_size=(2, 2), strides=2), (1, 8, 6, 3), 1440),
    # 3x3 over 4x4 with padding, 2 groups of 2 inputs: 16 * 6 * (9 * 2) * 2.
    (
      dict(features=6, kernel_size=(3, 3), feature_group_count=2),
      (1, 4, 4, 4),
      3456,
    ),
  ],
)
def test_a_convolution_counts_the_window_of_its_group(conv, image, expected):
  conv = nn.Conv(**conv)
  variables = jax.eval_shape(conv.init, jax.random.key(0), spec(*image))
  assert flops.count(conv.apply, variables, spec(*image)) == expected


def test_wrappers_change_nothing():
  def f(x, w):
    return jax.nn.relu(x @ w)  # relu is a custom_jvp

  f_vjp = jax.custom_vjp(f)
  f_vjp.defvjp(lambda x, w: (f(x, w), None), lambda *_: (None, None))
  for wrapped in (f, jax.jit(f), jax.checkpoint(f), f_vjp, jax.jit(jax.jit(f))):
    assert flops.count(wrapped, spec(3, 4), spec(4, 4)) == 2 * 3 * 4 * 4


def test_a_scan_counts_its_length_also_within_another():
  def f(x, w):
    def inner(x, _):
      return jax.checkpoint(lambda x: x @ w)(x), None

    def outer(x, _):
      return jax.lax.scan(inner, x, None, length=5)[0], None

    return jax.lax.scan(outer, x, None, length=3)[0]

  assert flops.count(f, spec(2, 4), spec(4, 4)) == 3 * 5 * 2 * 2 * 4 * 4


def test_of_a_conditional_the_dearest_branch_counts():
  def f(i, x):
    branches = [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x]
    return jax.lax.switch(i, branches, x)

  assert flops.count(f, spec(dtype='int32'), spec(4, 4)) == 2 * 2 * 4**3


def test_a_loop_of_unknown_length_is_an_error_if_it_multiplies():
  def power(n, x):
    return jax.lax.fori_loop(0, n, lambda _, y: y @ x, x)

  def times(n, x):
    return jax.lax.fori_loop(0, n, lambda _, y: y + x, x)

  with pytest.raises(ValueError, match='length is not known'):
    flops.count(power, spec(dtype='int32'), spec(4, 4))
  assert flops.count(lambda x: power(3, x), spec(4, 4)) == 3 * 2 * 4**3
  assert flops.count(times, spec(dtype='int32'), spec(4, 4)) == 0


def test_shard_map_counts_all_devices():
  mesh = jax.make_mesh(
    (4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  whole = 2 * 8 * 4 * 4
  for axes in ({'a', 'b'}, {'a'}):
    f = jax.shard_map(
      jnp.matmul,
      mesh=mesh,
      in_specs=(P(tuple(sorted(axes))), P()),
      out_specs=P(tuple(sorted(axes))),
      axis_names=axes,
    )
    assert flops.count(f, spec(8, 4), spec(4, 4)) == whole


def test_a_training_step_is_three_forward_passes():
  def loss(w, x):
    return jnp.sum(jnp.tanh(x @ w[0]) @ w[1])

  w = (spec(4, 4), spec(4, 4))
  forward = flops.count(loss, w, spec(2, 4))
  step = flops.count(jax.value_and_grad(loss, (0, 1)), w, spec(2, 4))
  assert step == flops.TRAINING_FACTOR * forward


def test_cudnn_attention_counts_like_the_products_it_replaces(monkeypatch):
  module = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
  monkeypatch.setattr(module, 'check_cudnn_version', lambda *_: 91000)
  monkeypatch.setattr(module, 'check_compute_capability', lambda *_: True)
  q, k = (spec(2, n, 3, 64, dtype='bfloat16') for n in (8, 16))
  counts = [
    flops.count(
      lambda q, k, name=name: jax.nn.dot_product_attention(
        q, k, k, implementation=name
      ),
      *(q, k),
    )
    for name in ('xla', 'cudnn')
  ]
  assert counts[0] == counts[1] == 2 * 2 * (2 * 3) * 8 * 16 * 64


def vit_flops(image, patch, width, depth, mlp_dim, classes=1000):
  """The matrix products of a ViT with a class token, worked by hand."""
  patches = (image // patch) ** 2
  tokens = patches + 1
  embedding = patches * 3 * patch**2 * width
  block = tokens * (4 * width**2 + 2 * width * mlp_dim) + 2 * tokens**2 * width
  return 2 * (embedding + depth * block + width * classes)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize(
  ('variant', 'sizes', 'gmacs'),
  [('S/16', (384, 12, 1536), 4.61), ('B/16', (768, 12, 3072), 17.58)],
)
def test_published_vits_have_their_flops(variant, sizes, gmacs, scan):
  model = vit.Model(variant, num_classes=1000, pooling='token', scan=scan)
  image = spec(1, 224, 224, 3)
  params = jax.eval_shape(model.init, jax.random.key(0), image)
  count = flops.count(lambda p, x: model.apply(p, x)['logits'], params, image)
  assert count == vit_flops(224, 16, *sizes)
  # What timm publishes; it counts normalisation and softmax as well.
  assert count == pytest.approx(2e9 * gmacs, rel=3e-3)


def device(kind, **kwargs):
  return types.SimpleNamespace(device_kind=kind, **kwargs)


# What device_kind says on the machines themselves.
@pytest.mark.parametrize(
  ('kind', 'tflops'),
  [
    ('TPU v2', 23),
    ('TPU v3', 61.5),
    ('TPU v4', 275),
    ('TPU v5 lite', 197),
    ('TPU v5e', 197),
    ('TPU v5', 459),
    ('TPU v5p', 459),
    ('TPU v6 lite', 918),
    ('TPU v6e', 918),
    ('TPU7x', 1153.5),
    ('NVIDIA A100-SXM4-40GB', 312),
    ('NVIDIA A100 80GB PCIe', 312),
    ('NVIDIA H100 80GB HBM3', 989.4),
    ('NVIDIA H100 PCIe', 756),
    ('NVIDIA H100 NVL', 835.5),
    ('NVIDIA H200', 989.4),
    ('NVIDIA GH200 480GB', 989.4),
    ('NVIDIA B200', 2250),
    ('NVIDIA GB200', 2500),
    ('NVIDIA L4', 121),
    ('NVIDIA L40S', 362),
    ('NVIDIA A10', 125),
    ('NVIDIA A10G', 70),
    ('Tesla T4', 65),
    ('Tesla V100-SXM2-16GB', 125),
    ('Tesla V100-PCIE-32GB', 112),
    ('NVIDIA GeForce RTX 3090', 71.2),
    ('NVIDIA GeForce RTX 4090', 165.2),
  ],
)
def test_known_devices_have_their_peak(kind, tflops):
  assert flops.peak_flops(device(kind)) == pytest.approx(tflops * 1e12)


def test_a_tpu_device_of_one_core_has_half_a_chip():
  assert flops.peak_flops(device('TPU v4', num_cores=1)) == 137.5e12
  assert flops.peak_flops(device('TPU v4', num_cores=2)) == 275e12
  assert flops.peak_flops(device('TPU v5 lite', num_cores=1)) == 197e12


@pytest.mark.parametrize(
  'kind',
  [
    'cpu',
    'TPU v4 lite',
    'NVIDIA GeForce RTX 4090 Laptop GPU',
    'NVIDIA A100-SXM4-40GB MIG 1g.5gb',
    'AMD Instinct MI300X',
    'Tesla K80',
  ],
)
def test_unknown_devices_have_no_peak(kind):
  assert flops.peak_flops(device(kind)) is None


def test_this_cpu_has_no_peak():
  assert flops.peak_flops(jax.devices()[0]) is None
