"""Weights of one model with its section, preprocessing and class names."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.pretrained import blocks
from vit_jax.printable import printable


@dataclasses.dataclass(frozen=True)
class Weights:
  """Parameters and all that must travel with them to give the same answers.

  Attributes:
    params: arrays by the names of `models/`, such as
      `encoder/block_00/mlp/up/kernel`, in the dtype of the file. A nested tree
      becomes a flat dict, and stacked blocks are taken apart.
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
    trusted: which of 'model', 'ops' and 'device_ops' come from the user, not
      from a file. Only they may name code outside this package (see
      docs/security.md), and their sizes are not limited.
  """

  params: dict[str, Any]
  model: dict[str, Any]
  preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
  class_names: list[str] | None = None
  source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  trusted: frozenset[str] = frozenset()

  def __post_init__(self):
    params = blocks.unstack(trees.flatten(self.params))
    object.__setattr__(self, 'params', params)

  def with_preprocess(self, **options: str | None) -> 'Weights':
    """Returns a copy with the user's ops, which are trusted; None is no ops."""
    given = {key: x for key, x in options.items() if x is not None}
    return dataclasses.replace(
      self,
      preprocess=self.preprocess | given,
      trusted=self.trusted | given.keys(),
    )

  def __repr__(self) -> str:
    """Returns the model, its size and where it is from, without the arrays."""
    num_params = sum(math.prod(array.shape) for array in self.params.values())
    num_classes = self.model.get('num_classes')
    parts = [
      str(self.model.get('variant') or self.model.get('name')),
      f'{num_params:,} parameters',
      f'{num_classes:,} classes' if num_classes else 'no head',
    ]
    if 'path' in self.source:
      parts.append(f'from {self.source["path"]}')
    return printable(f'Weights({", ".join(parts)})')


def build_model(weights: Weights, *, trusted: bool = False) -> Any:
  """Returns the flax module that weights are for.

  `trusted` is whether the user has named the model elsewhere.

  Raises:
    UserError: a model section that fits no model, or one from a file that names
      code outside this package.
  """
  trusted |= 'model' in weights.trusted
  check_model_name(weights.model, trusted=trusted)
  return lookup.build('models', weights.model, 'Model', trusted=trusted)


def check_model_name(section: Mapping[str, Any], *, trusted: bool) -> None:
  """Raises UserError if a section from a file names code to import."""
  name = section.get('name')
  if trusted or not isinstance(name, str) or name in lookup.names('models'):
    return
  raise UserError(
    f'the file names {name!r} as the code of its model, which is not in this'
    f' package ({", ".join(lookup.names("models"))}), and nothing that a file'
    ' names is imported. If you trust that module, name it yourself:'
    f' model={ {"name": name}!r} (on the command line --model)'
  )
