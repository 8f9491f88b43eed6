"""Activation functions by name."""

from collections.abc import Callable

import flax.linen as nn
import jax

from vit_jax.parallel import activations


def _recomputed_on_cpu(activation):
  """Returns the activation, recomputed in the backward pass on CPUs.

  Measured on a CPU, recomputing is cheaper than reading the two or three arrays
  [B, L, F] that would be stored otherwise. The TPU compiler does so by itself,
  within the matrix products before and after, where `jax.checkpoint` would be
  in its way.
  """
  recomputed = jax.checkpoint(activation)

  def apply(x):
    return recomputed(x) if activations.is_on_cpu() else activation(x)

  return apply


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  # Google's ViT and big_vision.
  'gelu_tanh': _recomputed_on_cpu(lambda x: nn.gelu(x, approximate=True)),
  # The exact function: timm, DeiT, DINO, MAE.
  'gelu': _recomputed_on_cpu(lambda x: nn.gelu(x, approximate=False)),
  # OpenAI's CLIP.
  'gelu_quick': _recomputed_on_cpu(lambda x: x * nn.sigmoid(1.702 * x)),
}
