"""Dropout with cheap random numbers, and stochastic depth.

With 100 instructions for each number of JAX's Threefry, and again wherever the
compiler recomputes the mask, dropout was a third of a training step of ViT-L/16
by the TPU compiler's estimate, and most of the time to compile it. Here
Threefry seeds each token, and a short hash makes the numbers of its elements.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# The multipliers of MurmurHash3's finalizer, and 2**32 over the golden ratio.
_FIRST, _SECOND, _STEP = 0x85EBCA6B, 0xC2B2AE35, 0x9E3779B9


class Dropout(nn.Module):
  """Sets elements to zero and scales the others, to the same expected value.

  In place of `flax.linen.Dropout` (https://jmlr.org/papers/v15/srivastava14a):
  the collection of random numbers is 'dropout', too, and a mask depends on the
  key and the place of an element alone, not on devices.

  Attributes:
    rate: the probability of being zeroed, in [0, 1).
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns `x` of any shape with elements dropped, if `train`."""
    if not train or self.rate == 0:
      return x
    keep = keep_mask(self.make_rng('dropout'), x.shape, 1 - self.rate)
    return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


def keep_mask(rng: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
  """Returns bool `shape`, True with probability `rate`, to 32 bits.

  Each position of all dimensions but the last has 64 random bits from `rng`.
  With these two words an element's number is hashed: a Weyl sequence, mixed as
  in SplitMix (https://doi.org/10.1145/2714064.2660195), half of the key before
  each multiplication.
  """
  words = jax.random.bits(rng, (2, *shape[:-1], 1), jnp.uint32)
  place = jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
  x = words[0] + place * jnp.uint32(_STEP)
  x = (x ^ (x >> 16)) * jnp.uint32(_FIRST) ^ words[1]
  x = (x ^ (x >> 13)) * jnp.uint32(_SECOND)
  return x < jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def drop_examples(rng, x, rate):
  """Returns `x` with whole examples zeroed and the rest scaled to compensate.

  Stochastic depth (https://arxiv.org/abs/1603.09382) in its inverted form: the
  expected value is `x`, so that nothing changes in evaluation.

  Args:
    rng: a key.
    x: `[B, ...]`.
    rate: the probability of being zeroed, in [0, 1); may be traced.
  """
  shape = x.shape[:1] + (1,) * (x.ndim - 1)
  kept = jax.random.bernoulli(rng, 1 - rate, shape)
  return x * (kept / (1 - rate)).astype(x.dtype)
