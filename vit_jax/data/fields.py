"""Roles of the fields of a batch: image, label, text, mask, group, other.

A source may declare the roles of its fields:

  fields = {'image': 'image', 'caption': 'text', 'hospital': 'group'}

A source without `fields` has an `image` and perhaps a `label`. A field that is
not declared, such as one that an op adds, has a role by its name: `label` and
`true_label` are labels. Images are `image`, and arrays of `[B, ..., H, W, C]`,
rank 4 or more, that are uint8 or named like `local_image`. The rest is other.

Device ops on images act on every field of the role image, and a source must
yield the images that it declares. Other roles describe the data: to a user's
own code, and to made-up data in its place.
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

  Args:
    name: of the field.
    value: of a whole batch, `[B, ...]`: an array, or its shape and dtype.
    roles: those that the source declares.
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
