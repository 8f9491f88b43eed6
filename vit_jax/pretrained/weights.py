"""What every format file reads into and writes from: weights of one model."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.printable import printable


@dataclasses.dataclass(frozen=True)
class Weights:
  """Parameters and all that must travel with them to give the same answers.

  Attributes:
    params: nested dict of numpy arrays under the names of `models/`, with
      blocks apart (`encoder/block_00/...`), in the dtype of the file.
    model: a `config.model` section that builds the model, for example
      `{'name': 'vit', 'variant': 'B/16', 'num_classes': 1000,
      'pooling': 'token', 'activation': 'gelu_tanh', 'norm_epsilon': 1e-6}`.
    preprocess: what images need for evaluation: 'image_size' (height, width) of
      the position table, or None; 'ops' for the host, as in
      `'decode|resize(256)|central_crop(224)'`; 'device_ops', as in
      `'normalize(-1, 1)'`. A key that nobody knows is absent.
    class_names: of the head's outputs in order, or None.
    source: where they are from: 'format', 'path', and whatever that format
      needs to be written back exactly.
    trusted: which of 'model', 'ops' and 'device_ops' the user gave and no file.
      Only they may name code outside this package (see docs/security.md), and
      their sizes are not limited.
  """

  params: dict[str, Any]
  model: dict[str, Any]
  preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
  class_names: list[str] | None = None
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  trusted: frozenset[str] = frozenset()

  def __repr__(self) -> str:
    """Returns the model, its size and where it is from, without the arrays."""
    arrays = trees.flatten(self.params).values()
    num_params = sum(math.prod(array.shape) for array in arrays)
    num_classes = self.model.get('num_classes')
    parts = [
      str(self.model.get('variant') or self.model.get('name')),
      f'{num_params:,} parameters',
      f'{num_classes:,} classes' if num_classes else 'no head',
    ]
    if 'path' in self.source:
      parts.append(f'from {self.source["path"]}')
    return printable(f'Weights({", ".join(parts)})')


def build_model(weights: Weights) -> Any:
  """Returns the flax module that weights are for.

  Raises:
    UserError: a model section that fits no model, or one from a file that names
      code outside this package.
  """
  trusted = 'model' in weights.trusted
  check_model_name(weights.model, trusted=trusted)
  return lookup.build('models', weights.model, 'Model', trusted=trusted)


def check_model_name(section: Mapping[str, Any], *, trusted: bool) -> None:
  """Raises UserError if a section from a file names code to import."""
  name = section.get('name')
  if not trusted and isinstance(name, str) and '.' in name:
    raise UserError(
      f'the file names {name!r} as the code of its model, and nothing that a'
      ' file names is imported. If you trust that module, name it yourself:'
      f' model={ {"name": name}!r} (on the command line --model)'
    )
