"""Floating-point operations: how many a function needs, what a device can do.

Model FLOPs utilisation (MFU) is `model FLOPs per second / peak of the devices`
with these conventions, which are those of PaLM (arXiv:2204.02311, appendix B)
and of the scaling book (jax-ml.github.io/scaling-book):

* a multiply and an add are two FLOPs, so a `[m, k] x [k, n]` product has 2mkn;
  only matrix products and convolutions count;
* a training step needs three forward passes of the model: one forward and two
  for the products of the backward pass. What rematerialisation computes again
  is work of the machine, not of the model, and does not count;
* the peak is the dense bfloat16 one whatever the compute dtype.

timm and DeiT print "GMACs" or call multiply-adds "FLOPs": half of ours.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

# Forward passes that a training step is worth.
TRAINING_FACTOR = 3


def count(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
  """Returns the FLOPs of the matrix products and convolutions of `fn`.

  Nothing is computed or compiled: arguments may be arrays or
  `jax.ShapeDtypeStruct`. Loops count as often as they run, of a conditional the
  dearest branch counts, and under `shard_map` all devices together. Zeros count
  as well: the padding of a convolution, and what a mask hides in attention.

  Raises:
    ValueError: a `while` loop of unknown length holds matrix products.
  """
  return _count(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def kernel_grids(jaxpr: core.Jaxpr) -> dict[str, int]:
  """Returns the iterations of each Pallas kernel in a program, by its name.

  Of kernels with one name that is the largest number.
  """
  grids: dict[str, int] = {}
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'pallas_call':
      name = str(eqn.params['name'])
      size = math.prod(eqn.params['grid_mapping'].grid)
      grids[name] = max(size, grids.get(name, 0))
      continue
    for inner in _jaxprs(eqn.params):
      for name, size in kernel_grids(inner).items():
        grids[name] = max(size, grids.get(name, 0))
  return grids


def peak_flops(device: jax.Device) -> float | None:
  """Returns the bfloat16 peak of one jax device in FLOP/s, None if unknown.

  A jax device of a TPU is a chip (v4, v5e, v5p, v6e) or one of the chip's two
  cores (v2, v3, 7x; `device.num_cores` says which). GPUs without bfloat16
  matrix units (V100, T4) are given their float16 peak. Other devices, the CPU
  among them, have no entry and so no MFU.
  """
  kind = device.device_kind
  for pattern, per_core, num_cores in _TPU_CORES:
    if re.fullmatch(pattern, kind, re.IGNORECASE):
      return per_core * 1e12 * (getattr(device, 'num_cores', None) or num_cores)
  if ' MIG ' in kind:  # A slice of a GPU.
    return None
  for pattern, peak in _GPUS:
    if re.search(rf'\b{pattern}\b', kind, re.IGNORECASE):
      return peak * 1e12
  return None


# (device kind, TFLOP/s of one core, cores that are one jax device). Per chip:
# docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}, "Peak compute per
# chip (BF16)": 46, 123, 275, 197, 459, 918, 2307. Kinds and cores per device:
# jax/_src/pallas/mosaic/tpu_info.py.
_TPU_CORES = (
  (r'TPU v2', 23.0, 1),
  (r'TPU v3', 61.5, 1),
  (r'TPU v4', 137.5, 2),
  (r'TPU v5 lite|TPU v5e', 197.0, 1),
  (r'TPU v5p?', 229.5, 2),
  (r'TPU v6 lite|TPU v6e', 918.0, 1),
  (r'TPU7x?', 1153.5, 1),
)

# Dense bfloat16 TFLOP/s with float32 accumulation; the first match wins. From
# NVIDIA's data sheets, which print the figure with sparsity (twice this) for
# Ampere and later, and its GA102, AD102 and RTX Blackwell white papers.
_GPUS = (
  (r'GB[23]00', 2500.0),
  (r'B[23]00', 2250.0),
  (r'GH200', 989.4),
  (r'H[12]00 NVL', 835.5),
  (r'H[18]00 PCIe', 756.0),
  (r'H[128]00', 989.4),
  (r'H20', 148.0),
  (r'A[18]00', 312.0),
  (r'A30', 165.0),
  (r'A10', 125.0),
  (r'A10G', 70.0),
  (r'A40', 149.7),
  (r'RTX A6000', 154.8),
  (r'L40S', 362.0),
  (r'L40', 181.0),
  (r'L4', 121.0),
  (r'RTX 3090', 71.2),
  (r'RTX 4090(?! Laptop| D)', 165.2),
  (r'RTX 5090(?! Laptop| D)', 209.5),
  (r'T4', 65.0),
  (r'V100-PCIE', 112.0),
  (r'V100', 125.0),
)


def _count(jaxpr: core.Jaxpr) -> int:
  return sum(map(_equation, jaxpr.eqns))


def _equation(eqn: core.JaxprEqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    return _dot_general(eqn)
  if name == 'conv_general_dilated':
    return _convolution(eqn)
  if name.startswith('dot_product_attention_fwd'):
    return _cudnn_attention(eqn)
  if name == 'cond':
    return max(_count(branch) for branch in _jaxprs(params))
  if name == 'pallas_call' and params.get('cost_estimate') is not None:
    return params['cost_estimate'].flops
  inner = sum(_count(jaxpr) for jaxpr in _jaxprs(params))
  if not inner:
    return 0
  if name == 'while':
    raise ValueError(
      'cannot count the FLOPs of a while loop whose length is not known; '
      'use jax.lax.scan, or fori_loop with Python integers as bounds'
    )
  if name == 'scan':
    return inner * params['length']
  if name == 'shard_map':
    # The body is that of one device; axes that stay automatic see it whole.
    axes = params.get('newly_manual_axes', params['mesh'].axis_names)
    return inner * math.prod(params['mesh'].shape[axis] for axis in axes)
  if name == 'pallas_call':
    return inner * math.prod(params['grid_mapping'].grid)
  return inner  # jit, remat, custom_jvp, custom_vjp, custom_partitioning, ...


def _jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """Yields the functions among the parameters of an equation."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _dot_general(eqn: core.JaxprEqn) -> int:
  (contracted, _), _ = eqn.params['dimension_numbers']
  lhs = eqn.invars[0].aval.shape
  return 2 * eqn.outvars[0].aval.size * math.prod(lhs[d] for d in contracted)


def _convolution(eqn: core.JaxprEqn) -> int:
  # Every output element is a sum over the kernel's window and its inputs (of
  # one feature group): all dimensions of the kernel but that of the outputs.
  kernel = eqn.invars[1].aval
  outputs = kernel.shape[eqn.params['dimension_numbers'].rhs_spec[0]]
  return 2 * eqn.outvars[0].aval.size * (kernel.size // outputs)


def _cudnn_attention(eqn: core.JaxprEqn) -> int:
  # jax.nn.dot_product_attention(implementation='cudnn') is one opaque
  # primitive: query x key and weights x value over all S keys.
  query, key = (v.aval for v in eqn.invars[:2])
  num_keys = key.shape[1 if eqn.params['layout'] == 0 else 2]  # BSNK or BNSK
  return 2 * num_keys * (query.size + eqn.outvars[0].aval.size)
