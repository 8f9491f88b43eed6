"""A data source as text for a shell: `tar_shards(paths='a-{0..9}.tar')`.

The syntax is that of the ops; the arguments are the keys of the data section.
As in the recipes, `folder:/path` is `image_folder(data_dir='/path')`,
`records:/path` what prepare has written there, `/path` whichever of both is
there, and a bare name that is no source is a dataset of TFDS.
"""

import os
from typing import Any

from vit_jax import lookup
from vit_jax.data import layout, open_source, ops_language
from vit_jax.errors import UserError
from vit_jax.printable import printable

_FOLDER = 'data/sources'
_PATHS = dict(folder='image_folder', records='array_record')
_PATH_STARTS = ('/', '~', './', '../')
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
  if text.startswith(_PATH_STARTS) and '(' not in text:
    path = printable(os.path.expanduser(text))
    if os.path.exists(os.path.expanduser(text)):
      raise UserError(
        f'{path} is no folder: name the source that reads it, such as '
        '"table(path=\'/data/a.csv\')"'
      )
    raise UserError(f'there is no folder {path}: check the path')
  if '(' not in text and '.' not in text and text not in lookup.names(_FOLDER):
    return dict(name='tfds', dataset=text)
  found = ops_language.segments(text)
  if len(found) != 1 or found[0].args:
    raise UserError(
      f'{text!r} is not one source with keys: expected something such as '
      "table(path='/data/{split}.csv')"
    )
  section = dict(found[0].kwargs) | {'name': found[0].name}
  if 'split' in section:
    raise UserError(f'{text!r}: say --split instead of the key split')
  return section


def splits(text: str) -> list[str] | None:
  """Returns the splits that hold all of a folder, or None if it is no folder.

  A folder of classes alone has the splits that `image_folder` makes.

  Raises:
    UserError: the text is not understood.
  """
  section = parse(text)
  if section['name'] not in _PATHS.values() or 'data_dir' not in section:
    return None
  found = layout.find(section['data_dir'])
  if found.flat:
    return ['train', 'val']
  order = list(layout.SPLITS)
  known = [found.splits[split] for split in order if split in found.splits]
  others = [f for split, f in found.splits.items() if split not in order]
  return known + others or None


def build(text: str, split: str) -> Any:
  """Returns the open source that a text of the command line means.

  Raises:
    UserError: it is not understood, or what the source raises.
  """
  section = parse(text) | {'split': split}
  return open_source.open_source(section, where=repr(text))
