"""Fingerprints: a number for each leaf that changes with any of its bits.

The storage layer does not notice a flipped bit in array data, so a checkpoint
carries these numbers and a restore compares them. They do not depend on the
mesh: a wrap-around sum is associative, and the weight of an element depends on
its position in the whole array alone.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import trees


def fingerprint(tree: Any) -> dict[str, int]:
  """Returns `{name of the leaf: number from 0 to 2**32 - 1}`.

  Runs on the devices that hold the leaves, which may be sharded in any way and
  may be numpy arrays; only the numbers are fetched. A change of one element of
  up to 4 bytes always changes the number of its leaf; any other change goes
  unseen once in 2**32. Compiles once per shape, dtype and sharding.
  """
  with jax.transfer_guard('allow'):
    numbers = {n: _number(leaf) for n, leaf in trees.flatten(tree).items()}
    return {n: int(v) for n, v in jax.device_get(numbers).items()}


@jax.jit
def _number(x: jax.Array) -> jax.Array:
  words = _words(x)
  # A hash of the position, from one iota per dimension: no reshape, so any
  # sharding stays as it is.
  position = jnp.zeros(words.shape, jnp.uint32)
  for dim in range(words.ndim):
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
    position = _mix(position ^ index)
  # Mixed once more, as a sum of plain words would miss a pair of flipped signs.
  return jnp.sum(_mix(words ^ position), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 that changes about half of the bits (murmur3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _words(x: jax.Array) -> jax.Array:
  """The bits of `x` as uint32; 8-byte types get a last dimension of two."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
