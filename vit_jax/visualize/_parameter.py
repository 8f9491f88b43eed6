"""Fetching one parameter of a model, however it is sharded."""

from typing import Any

import jax
import numpy as np

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib


def fetch(params: Any, name: str, hint: str) -> np.ndarray:
  """Returns the parameter of this name; all processes call it.

  Args:
    hint: why a model may lack it, for the message.

  Raises:
    UserError: there is none.
  """
  named = trees.flatten(params)
  if name not in named:
    tops = sorted({key.split('/')[0] for key in named})
    raise UserError(
      f'the model has no parameter {name!r}: {hint}; it has {", ".join(tops)}'
    )
  leaf = named[name]
  if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
    whole = mesh_lib.replicated(leaf.sharding.mesh)
    leaf = jax.jit(lambda x: x, out_shardings=whole)(leaf)
  return np.asarray(jax.device_get(leaf))
