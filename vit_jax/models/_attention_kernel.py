"""Self-attention of short sequences in one kernel, for TPUs.

An image's queries, keys and values and all intermediate results fit into the
fast memory of a chip. As separate operations they cost a third of the training
step of a B/16 (by the compiler's estimate), for 4 % of its multiplications:
heads of 64 fill half of the 128 columns of the matrix units, and weights [L, L]
go through memory several times.

A head is not cut out of its 128 columns: the others are set to zero in one
factor of each product, which changes no sum and costs nothing, since a product
always has 128 columns. The backward pass recomputes the weights. Softmax and
all sums are float32; factors of products are in the dtype of the arguments,
also the weights, which are divided by their sum afterwards.

Shapes: B images, L tokens, D width, `qkv_BLE` queries, keys and values beside
each other, E = 3 D.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vit_jax.parallel import activations

_TILE = 128
# v2 and v3 do not multiply bfloat16 in kernels, v4 has too little fast memory.
_KINDS = ('TPU v5 lite', 'TPU v5', 'TPU v6 lite', 'TPU7x')
# 16 x 16 patches and a few tokens more. Beyond, weights [L, L] of a head crowd
# the registers.
_MAX_TOKENS = 272
_FAST_MEMORY = 100 * 2**20


def fits(shape: tuple[int, int, int], dtype: Any, num_heads: int) -> bool:
  """Returns whether `attention` supports these shapes on these devices.

  TPUs from v5e on, in bfloat16, with heads that are not sharded over devices.
  The devices must be known while tracing, from `activations.use`.

  Args:
    shape: [B, L, D] of the tokens.
    dtype: of the computation.
    num_heads: N.
  """
  B, L, D = shape
  return (
    activations.device_kind() in _KINDS
    and activations.splits_batch_only(B)
    and jnp.dtype(dtype) == jnp.bfloat16
    and L <= _MAX_TOKENS
    and D % _TILE == 0
    and D % num_heads == 0
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def attention(
  qkv_BLE: jax.Array,
  bias_D: jax.Array,
  num_heads: int,
  interpret: bool = False,
) -> jax.Array:
  """Returns softmax((query + bias) key / sqrt(K)) value, `[B, L, D]`.

  A bias of keys adds the same to all logits of a query, which softmax does not
  see; one of values can be added to the result.

  Args:
    qkv_BLE: queries, keys and values, each [B, L, D]; a head is K = D / N
      neighbouring columns. D divides by 128.
    bias_D: of queries. It is added here so that the backward pass can start
      from the product that made `qkv_BLE`.
    num_heads: N.
    interpret: compute with the operations of any device, for tests.
  """
  return _attention_forward(qkv_BLE, bias_D, num_heads, interpret)[0]


def _attention_forward(qkv_BLE, bias_D, num_heads, interpret):
  (out_BLD,) = _run(_forward, num_heads, interpret, qkv_BLE, bias_D)
  return out_BLD, (qkv_BLE, bias_D)


def _attention_backward(num_heads, interpret, saved, d_out_BLD):
  qkv_BLE, bias_D = saved
  d_qkv_BLE, d_bias_B1D = _run(
    _backward, num_heads, interpret, qkv_BLE, bias_D, d_out_BLD
  )
  return d_qkv_BLE, d_bias_B1D.sum(axis=(0, 1)).astype(bias_D.dtype)


attention.defvjp(_attention_forward, _attention_backward)


def _run(kernel, num_heads: int, interpret: bool, qkv_BLE, bias_D, *d_out):
  """Runs a kernel for each image; returns the list of its results."""
  L, E = qkv_BLE.shape[1:]
  D = E // 3

  def on_device(bias_11D, *args):
    B, dtype = args[0].shape[0], args[0].dtype
    out = [jax.ShapeDtypeStruct((B, L, D), dtype)]
    if kernel is _backward:
      out = [
        jax.ShapeDtypeStruct((B, L, E), dtype),
        jax.ShapeDtypeStruct((B, 1, D), jnp.float32),
      ]
    return pl.pallas_call(
      functools.partial(kernel, width=D, head=D // num_heads),
      out_shape=out,
      grid=(B,),
      in_specs=[
        pl.BlockSpec((1, 1, D), lambda b: (0, 0, 0)),
        *map(_image, args),
      ],
      out_specs=[_image(x) for x in out],
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel',), vmem_limit_bytes=_FAST_MEMORY
      ),
      cost_estimate=_cost(B, L, D, num_heads, 5 if d_out else 2),
      interpret=interpret,
      name=f'attention{kernel.__name__}',
    )(bias_11D, *args)

  bias_11D = bias_D.astype(jnp.float32)[None, None]
  return activations.on_each_device(
    on_device, (qkv_BLE, *d_out), whole=(bias_11D,)
  )


def _image(x) -> pl.BlockSpec:
  return pl.BlockSpec((1, *x.shape[1:]), lambda b: (b, 0, 0))


def _cost(B, L, D, num_heads, products) -> pl.CostEstimate:
  """Returns the work of one kernel; the products count for MFU too."""
  return pl.CostEstimate(
    flops=products * 2 * B * L * L * D,
    transcendentals=B * num_heads * L * L,
    bytes_accessed=2 * B * L * D * (products + 2),
  )


def _forward(bias, qkv, out, *, width: int, head: int):
  results = {}
  for window, heads in _windows(width, head):
    query, key, value = _load(qkv, bias, window, width, head)
    for mine in heads:
      logits = _dot(query, jnp.where(mine, key, 0), 1, 1)
      weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
      total = weights.sum(axis=1, keepdims=True)
      one = _dot(weights.astype(value.dtype), value, 1, 0) / total
      _collect(results, window, mine, (one,))
    for start, (tile,) in _finished(results, window, width, head):
      out[0, :, start : start + _TILE] = tile.astype(out.dtype)


def _backward(bias, qkv, gradient, out, d_bias, *, width: int, head: int):
  # Weights are [keys, queries] here: four of the five products are then of
  # matrices as stored, and sums over keys need no exchange between columns.
  results = {}
  for window, heads in _windows(width, head):
    query, key, value = _load(qkv, bias, window, width, head)
    d_out = gradient[0, :, _part(0, window, width)]
    for mine in heads:
      logits = _dot(jnp.where(mine, key, 0), query, 1, 1)
      weights = jnp.exp(logits - logits.max(axis=0, keepdims=True))
      weights *= 1 / weights.sum(axis=0, keepdims=True)
      d_weights = _dot(jnp.where(mine, value, 0), d_out, 1, 1)
      mean = (weights * d_weights).sum(axis=0, keepdims=True)
      d_logits = (weights * (d_weights - mean)).astype(query.dtype)
      d_query = _dot(d_logits, key, 0, 0) * head**-0.5
      d_key = _dot(d_logits, query, 1, 0)
      d_value = _dot(weights.astype(d_out.dtype), d_out, 1, 0)
      _collect(results, window, mine, (d_query, d_key, d_value))
    for start, tile in _finished(results, window, width, head):
      for i, array in enumerate(tile):
        columns = _part(i, (start, start + _TILE), width)
        out[0, :, columns] = array.astype(out.dtype)
      d_bias[0, :, start : start + _TILE] = tile[0].sum(axis=0, keepdims=True)


def _load(qkv, bias, window, width: int, head: int):
  """Returns (query + bias) / sqrt(K), key and value of some columns."""
  query, key, value = (qkv[0, :, _part(i, window, width)] for i in range(3))
  biased = query.astype(jnp.float32) + bias[0, :, _part(0, window, width)]
  return (biased * head**-0.5).astype(query.dtype), key, value


def _windows(width: int, head: int):
  """Yields whole tiles of 128 columns, and the masks of heads within them."""
  heads: dict[tuple[int, int], list[jax.Array]] = {}
  for start in range(0, width, head):
    stop = start + head
    window = (start // _TILE * _TILE, -(-stop // _TILE) * _TILE)
    column = jax.lax.broadcasted_iota(jnp.int32, (1, window[1] - window[0]), 1)
    mine = (column >= start - window[0]) & (column < stop - window[0])
    heads.setdefault(window, []).append(mine)
  return heads.items()


def _part(number: int, window: tuple[int, int], width: int) -> slice:
  """Returns where query (0), key (1) or value (2) have these columns."""
  return slice(number * width + window[0], number * width + window[1])


def _collect(results, window, mine, arrays) -> None:
  """Puts the columns of a head into the tiles that they belong to."""
  for start in range(window[0], window[1], _TILE):
    here = slice(start - window[0], start - window[0] + _TILE)
    tile = [array[:, here] for array in arrays]
    if start in results:
      masked = functools.partial(jnp.where, mine[:, here])
      tile = list(map(masked, tile, results[start]))
    results[start] = tile


def _finished(results, window, width: int, head: int):
  """Yields tiles, and forgets them, that no window after this one touches."""
  windows = [window for window, _ in _windows(width, head)]
  later = windows[windows.index(window) + 1 :]
  for start in sorted(results):
    if not later or start < later[0][0]:
      yield start, results.pop(start)


def _dot(a, b, a_dim: int, b_dim: int) -> jax.Array:
  dims = (((a_dim,), (b_dim,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
