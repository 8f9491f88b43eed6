"""Applies the user's `model=` overrides to loaded weights."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import lookup
from vit_jax.errors import UserError


def trusted(given: Mapping[str, Any] | None) -> frozenset[str]:
  """Returns `Weights.trusted` for keys of the model section from the user."""
  given = given or {}
  return frozenset({'model'} if 'name' in given or _code(given) else ())


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
    UserError: a section without a name, or one that names code outside this
      package, such as a stem, where the user does not.
  """
  named, given, kept = dict(named), dict(given or {}), dict(section)
  if 'name' not in section:
    raise UserError(f'the model section has no name: {section}')
  code = {k: v for k, v in _code(section).items() if k not in given}
  if not trusted(given):
    code.pop('name', None)  # An error where it would be imported.
  if code:
    raise UserError(
      f'the file names {", ".join(code.values())} as code of its model, and'
      ' nothing that a file names is imported. If you trust that module, name'
      f' it yourself: model={code!r} (on the command line --model)'
    )
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
    if scale is not None:  # Or else it is missing: an error later.
      width = scale.shape[-1]
      named['class_token'] = np.zeros((1, 1, width), np.float32)
  return named, kept | given


def _code(section: Mapping[str, Any]) -> dict[str, str]:
  """Returns the keys of a model section that name a module of the user's."""
  dotted = re.compile(r'\w+(\.\w+)+')
  return {
    key: value
    for key, value in section.items()
    if isinstance(value, str) and dotted.fullmatch(value)
  }
