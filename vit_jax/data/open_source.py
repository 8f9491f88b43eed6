"""Opening data sources, from config sections and from text of a shell.

Text such as `tar_shards(paths='a-{0..9}.tar')` has the syntax of the ops; the
arguments are the keys of the data section. As in the recipes, `folder:/path` is
`image_folder(data_dir='/path')`, `records:/path` the output of prepare, `/path`
whichever of the two exists, and any other bare name a dataset of TFDS.
"""

import os
from collections.abc import Mapping
from typing import Any

from vit_jax import lookup
from vit_jax.data import folders, ops_language
from vit_jax.errors import UserError

_SOURCES = 'data/sources'
_PATHS = dict(folder='image_folder', records='array_record')
_PATH_STARTS = ('/', '~', './', '../')
HELP = (
  "'/path' of images or of what prepare wrote (also 'folder:/path', "
  "'records:/path'), a dataset of TFDS, or any source and keys: "
  '"table(path=\'/data/{split}.csv\')"'
)
_METHODS = {
  '__len__': '__len__(self), the number of examples',
  '__getitem__': "__getitem__(self, i), the example i: {'image': ..., ...}",
  'describe': 'describe(self, i), words that find the example i again',
}


def open_source(section: Mapping[str, Any], *, where: str | None = None) -> Any:
  """Returns the open source of a data section, with the attributes of all.

  A source may leave out `num_classes` and `class_names`: without the first it
  is the number of names, or unknown (None), and then nothing compares it with
  the model's. `column_texts` is that of `data/fields.py`, or empty.

  Raises:
    UserError: a section that does not fit, what the source raises, or a source
      that lacks a method; all of them are listed.
  """
  # Data sections come from configs and commands, never from a file.
  source = lookup.build(_SOURCES, section, 'Source', where=where, trusted=True)
  missing = [x for n, x in _METHODS.items() if not hasattr(type(source), n)]
  if missing:
    raise UserError(
      f'the data source {section["name"]!r} has no\n  '
      + '\n  '.join(missing)
      + '\nadd what is missing to the class Source'
    )
  names = getattr(source, 'class_names', None)
  num_classes = None if names is None else len(names)
  defaults = dict(class_names=None, num_classes=num_classes, column_texts={})
  for name, value in defaults.items():
    if not hasattr(source, name):
      setattr(source, name, value)
  return source


def open_text(text: str, split: str) -> Any:
  """Returns the open source of a text; see the module's docstring.

  Raises:
    UserError: the text is not understood, or an error of the source.
  """
  return open_source(parse(text) | {'split': split}, where=repr(text))


def parse(text: str) -> dict[str, Any]:
  """Returns the data section, without a split, that a text means.

  Raises:
    UserError: it is not understood, or takes no such keys.
  """
  kind, _, path = text.partition(':')
  if kind in _PATHS and not path:
    raise UserError(
      f'{text!r} names no path: folder:PATH is images in '
      'PATH/<split>/<class>/, records:PATH what prepare has written'
    )
  if kind in _PATHS:
    return dict(name=_PATHS[kind], data_dir=path)
  path = os.path.expanduser(text)
  if os.path.isdir(path):
    kind = 'records' if folders.is_prepared(path) else 'folder'
    return dict(name=_PATHS[kind], data_dir=text)
  if text.startswith(_PATH_STARTS) and '(' not in text:
    if not os.path.exists(path):
      raise UserError(f'there is no folder {path}: check the path')
    raise UserError(
      f'{path} is not a folder: name the source that reads it, such as '
      '"table(path=\'/data/a.csv\')"'
    )
  if '(' not in text and '.' not in text and text not in lookup.names(_SOURCES):
    return dict(name='tfds', dataset=text)
  found = ops_language.segments(text)
  if len(found) != 1 or found[0].args:
    raise UserError(
      f'{text!r} is not one source with keys: expected something such as '
      "table(path='/data/{split}.csv')"
    )
  section = dict(found[0].kwargs) | {'name': found[0].name}
  if 'split' in section:
    raise UserError(f'{text!r}: use --split instead of the key split')
  return section


def splits(text: str) -> list[str] | None:
  """Returns the splits that hold all of a folder, or None for a file.

  A folder of classes alone has the splits that `image_folder` makes.

  Raises:
    UserError: the text is not understood.
  """
  section = parse(text)
  if section['name'] not in _PATHS.values() or 'data_dir' not in section:
    return None
  found = folders.find(section['data_dir'])
  if found.flat:
    return ['train', 'val']
  order = dict.fromkeys([*folders.SPLITS, *found.splits])
  return [found.splits[s] for s in order if s in found.splits] or None
