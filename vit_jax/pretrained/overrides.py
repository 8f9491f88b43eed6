"""Weights as the user asks for them, where that is not as they were found."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import lookup
from vit_jax.errors import UserError


def trusted(given: Mapping[str, Any] | None) -> frozenset[str]:
  """Returns `Weights.trusted` for keys of the model section from the user."""
  return frozenset({'model'} if given and 'name' in given else ())


def apply(
  named: Mapping[str, np.ndarray],
  section: Mapping[str, Any],
  given: Mapping[str, Any] | None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns parameters and model section with the keys of `given`, which win.

  Where `given` names a variant or another model, the sizes in `section` give
  way. `num_classes=None` drops the head. A pooling that reads no class token
  drops the token, and `'token'` gives a model without one the zeros that
  training would start from.

  Args:
    named: parameters by their names, with blocks apart.
    section: of the model that was found.
    given: keys of the section that is wanted.

  Raises:
    UserError: a section without a name.
  """
  named, given, kept = dict(named), dict(given or {}), dict(section)
  if 'name' not in section:
    raise UserError(f'the model section has no name: {section}')
  if given.get('name', section['name']) != section['name']:
    kept = {}
  elif 'variant' in given:
    sizes = ('variant', *lookup.model_fields(section, 'size'))
    kept = {key: value for key, value in kept.items() if key not in sizes}
  if 'num_classes' in given and given['num_classes'] is None:
    named = {k: v for k, v in named.items() if not k.startswith('head/')}
  if given.get('pooling', 'token') != 'token':
    named.pop('class_token', None)
  elif 'pooling' in given and 'class_token' not in named:
    scale = named.get('encoder/block_00/norm_mlp/scale')
    if scale is not None:  # Or else it is missing, which is told later.
      width = scale.shape[-1]
      named['class_token'] = np.zeros((1, 1, width), np.float32)
  return named, kept | given
