"""A data source as text for a shell: `tar_shards(paths='a-{0..9}.tar')`.

The syntax is that of the ops; the arguments are the keys of the data section.
As in the recipes, `folder:/path` is `image_folder(data_dir='/path')`,
`records:/path` what prepare has written there, `/path` whichever of both is
there, and a bare name that is no source is a dataset of TFDS.
"""

import os
from typing import Any

from vit_jax import lookup
from vit_jax.data import layout, open_source
from vit_jax.data.ops import language
from vit_jax.errors import UserError

_FOLDER = 'data/sources'
_PATHS = dict(folder='image_folder', records='array_record')
HELP = (
  "'/path' of images or of what prepare wrote (also 'folder:/path', "
  "'records:/path'), a dataset of TFDS, or any source and keys: "
  '"table(path=\'/data/{split}.csv\')"'
)


def parse(text: str) -> dict[str, Any]:
  """Returns the data section, without a split, that a text means.

  Raises:
    UserError: it is not understood, or takes no such keys.
  """
  kind, _, path = text.partition(':')
  if kind in _PATHS and path:
    return dict(name=_PATHS[kind], data_dir=path)
  if kind in _PATHS:
    raise UserError(
      f'{text!r} names no path: folder:PATH is images in '
      'PATH/<split>/<class>/, records:PATH what prepare has written'
    )
  if os.path.isdir(os.path.expanduser(text)):
    name = 'records' if layout.is_prepared(text) else 'folder'
    return dict(name=_PATHS[name], data_dir=text)
  if '(' not in text and '.' not in text and text not in lookup.names(_FOLDER):
    return dict(name='tfds', dataset=text)
  found = language.segments(text)
  if len(found) != 1 or found[0].args:
    raise UserError(
      f'{text!r} is not one source with keys: expected something such as '
      "table(path='/data/{split}.csv')"
    )
  section = dict(found[0].kwargs) | {'name': found[0].name}
  if 'split' in section:
    raise UserError(f'{text!r}: say --split instead of the key split')
  return section


def build(text: str, split: str) -> Any:
  """Returns the open source that a text of the command line means.

  Raises:
    UserError: it is not understood, or what the source raises.
  """
  section = parse(text) | {'split': split}
  return open_source.open_source(section, where=repr(text))
