"""Random inputs and parameters, without compiling an init."""

import jax
import numpy as np


def normal(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def params(module, *inputs, seed=1):
  """Returns parameters `{'params': tree}`, none of them zero or one."""
  key = jax.random.key(0)
  shapes = jax.eval_shape(lambda: module.init(key, *inputs))['params']
  rng = np.random.default_rng(seed)
  return {
    'params': jax.tree.map(
      lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes
    )
  }
