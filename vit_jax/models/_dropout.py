"""Dropout whose random numbers cost little.

Elements of activations are many: at 100 instructions for each number of JAX's
Threefry, and again wherever the compiler computes the mask anew, they were a
third of a training step of ViT-L/16, as TPU's compiler expects it, and most of
the time to compile it. Here Threefry seeds each token; a short hash does the
rest.
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
