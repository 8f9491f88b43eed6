"""Pictures of one parameter of a model, however it is sharded."""

import abc
import dataclasses
import os
import pathlib
from typing import Any, ClassVar

import jax
import numpy as np

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib


@dataclasses.dataclass(eq=False)
class Picture(abc.ABC):
  """A picture of the parameter `parameter`, for `config.pictures`.

  Args:
    predict, mesh: as every picture gets them; not used.
  """

  predict: Any = None
  mesh: Any = None
  _: dataclasses.KW_ONLY
  parameter: str

  hint: ClassVar[str]  # Why a model may lack the parameter.

  def draw(self, weights: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the picture as a PNG file, atomically, and returns its path.

    With several processes all call this and process 0 writes.

    Raises:
      UserError: the model has no such parameter.
    """
    value = _fetch(weights['params'], self.parameter, self.hint)
    if jax.process_index() == 0:
      self.plot(value, path)
    return pathlib.Path(path)

  @abc.abstractmethod
  def plot(
    self, value: np.ndarray, path: str | os.PathLike[str]
  ) -> pathlib.Path:
    """Writes the picture of a parameter at hand and returns its path."""


def _fetch(params: Any, name: str, hint: str) -> np.ndarray:
  """Returns the parameter of this name; all processes call it."""
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
