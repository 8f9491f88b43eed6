"""Roles of a model's parameters for optimizers: layers, matrices, stacks."""

import dataclasses
from collections.abc import Callable, Iterable


@dataclasses.dataclass(frozen=True)
class Roles:
  """The roles of a model's parameters, as functions of their names.

  A model brings its own as the class attribute `ROLES`, see
  `models/_vit_roles.py`. The defaults are for a model that has none: no layer
  decay and no Muon, and each parameter is a layer.

  Attributes:
    layers: from all names to the number of each parameter's layer, for layer
      decay: 0 is farthest from the outputs. Raises UserError for names whose
      layer is unknown.
    matrix: from a name to the dimensions (rows, columns) of the matrix that
      Muon makes orthogonal, each a number or a tuple of them, counted from the
      end; None for a parameter that is left to Adam. Dimensions before them
      count blocks.
    is_stacked: from a name to whether dimension 0 counts blocks. LAMB and
      Adafactor treat each block alone.
    lamb_layer: from a name to a text that the parameters share whose norm LAMB
      takes together.
  """

  layers: Callable[[Iterable[str]], dict[str, int]] | None = None
  matrix: Callable[[str], tuple | None] = lambda name: None
  is_stacked: Callable[[str], bool] = lambda name: False
  lamb_layer: Callable[[str], str] = lambda name: name
