"""Comparison of trees to the bit."""

import jax

from vit_jax import trees


def assert_same_bits(found, want):
  assert jax.tree.structure(found) == jax.tree.structure(want)
  want = trees.flatten(want)
  for name, x in trees.flatten(jax.device_get(found)).items():
    assert x.dtype == want[name].dtype, name
    assert x.tobytes() == want[name].tobytes(), name
