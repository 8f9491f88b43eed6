"""Roles of the fields of a batch: image, label, text, mask, group, other.

A source may declare the roles of its fields:

  fields = {'image': 'image', 'caption': 'text', 'hospital': 'group'}

A source without `fields` has an `image` and perhaps a `label`. What is not
declared has a role by its name: `label` and `true_label` are labels. Images are
`image`, and arrays of rank 4 or more, `[B, ..., H, W, C]`, that are uint8 or
named like `local_image`. Device ops act on every image; the other roles
describe the data to a user's own code.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError

ROLES = ('image', 'label', 'text', 'mask', 'group', 'other')
_DEFAULT = {'image': 'image'}
_IMAGE_RANK = 4  # [B, H, W, C]


def declared(source: Any) -> dict[str, str]:
  """Returns the roles that a source declares, by field.

  Raises:
    UserError: `fields` is not a dict of names and roles.
  """
  fields = getattr(source, 'fields', None)
  if fields is None:
    return dict(_DEFAULT)
  if not isinstance(fields, Mapping) or not set(fields.values()) <= set(ROLES):
    raise UserError(
      f'the data source has fields={fields!r}. Expected a dict of the role of '
      f'each field; roles are {", ".join(ROLES)}'
    )
  return dict(fields)


def role(name: str, value: Any, roles: Mapping[str, str] | None = None) -> str:
  """Returns the role of a field.

  `value` is that of a batch, `[B, ...]`: an array, or its shape and dtype.
  """
  if roles and name in roles:
    return roles[name]
  last = name.rpartition('_')[2]
  if name == 'image' or (last in ROLES and last != 'image'):
    return last
  is_image = last == 'image' or value.dtype == 'uint8'
  return 'image' if is_image and len(value.shape) >= _IMAGE_RANK else 'other'


def images(
  batch: Mapping[str, Any], roles: Mapping[str, str] | None = None
) -> list[str]:
  """Returns the names of the image fields of a batch, sorted."""
  return sorted(n for n, x in batch.items() if role(n, x, roles) == 'image')
