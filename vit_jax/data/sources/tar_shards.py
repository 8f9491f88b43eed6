"""Tar files in the layout of WebDataset: `0001.jpg` beside `0001.cls`.

The files of one example share their path up to the first dot of the file name.
Unlike WebDataset's own reader this one has random access, through an index of
the tars (`data/tar_index.py`), so that order and seeking are those of any other
source.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.data import (
  fields,
  labels as labels_lib,
  splits,
)
from vit_jax.data.storage import tar_index
from vit_jax.errors import UserError

_IMAGES = (
  *('jpg', 'jpeg', 'png', 'webp', 'gif', 'bmp', 'tif', 'tiff', 'npy'),
  *('img', 'image'),
)
_ABSENT = -1


class Source:
  """Examples `{'image': bytes of the file, 'label': int or float32 [Y]}`."""

  def __init__(
    self,
    split: str,
    *,
    paths: str | Sequence[str],
    image_key: str | None = None,
    label_key: str | None = 'cls',
    num_classes: int | None = None,
    class_names: Sequence[str] | str | None = None,
    columns: fields.ColumnNames = (),
  ):
    """Opens the tars; reads through those that have no index yet.

    Args:
      split: its name stands for `{split}` in `paths`; `'all'` if there is no
        such place. May be a slice.
      paths: `'/data/{split}-{000..099}.tar'`, or several.
      image_key: extension of the images; None takes the usual ones.
      label_key: extension of the file with the label: `'cls'` or `'txt'` hold
        a class id or a class name, `'json'` a dict of which `'json.label'` or
        `'json.meta.tags'` names the entry; a list there means several labels.
        None for no label.
      num_classes: how many classes there are; or
      class_names: their names, a list or a file of them.
      columns: other entries of the json that examples have as fields, see
        `data/fields.py`. They need a `label_key` in json.

    Raises:
      UserError: missing or broken tars, no images in them, or labels without
        `num_classes` and `class_names`.
    """
    self._split = splits.parse(split)
    patterns = [paths] if isinstance(paths, str) else paths
    files = [f for p in patterns for f in splits.files(p, self._split.name)]
    self._label_key = label_key
    self._columns = fields.Columns(columns)
    if self._columns.names and (label_key or '').split('.')[0] != 'json':
      raise UserError(
        f'columns={self._columns.names} are entries of the json beside an '
        f"image: set label_key='json.label', or alike; got {label_key!r}"
      )
    self.fields = self._columns.roles
    self.column_texts = self._columns.texts
    classes = labels_lib.classes(num_classes, class_names)
    if classes is None and label_key is not None:
      raise UserError(
        f'{patterns[0]}: set num_classes= or class_names=, which the tars do '
        'not have (or label_key=None for no labels)'
      )
    self._classes = classes or labels_lib.Classes(None, None)
    self.num_classes, self.class_names = self._classes.num, self._classes.names
    self._shards = tar_index.open_all(files)
    wanted = _IMAGES if image_key is None else (image_key.lower(),)
    extension = None if label_key is None else label_key.split('.')[0]
    found = [_examples(shard, wanted, extension) for shard in self._shards]
    sizes = [len(members) for members in found]
    members = np.concatenate([np.empty([0, 3], np.int32), *found])
    if not (members[:, 0] != _ABSENT).any():
      raise UserError(
        f'{patterns[0]}: no images in {len(files)} tars; looked for files '
        f'named *.{", *.".join(wanted)} (key image_key)'
      )
    records = self._split.records(len(members))
    self._members = members[records]
    self._shard_of = np.repeat(np.arange(len(found)), sizes)[records]

  def __len__(self) -> int:
    return len(self._members)

  def __getitem__(self, index: int) -> dict:
    shard = self._shards[self._shard_of[index]]
    image, label, _ = self._members[index]
    if image == _ABSENT and label == _ABSENT:
      raise UserError(
        'no image: an extension is what follows the first dot of the name; '
        'rename it, or set image_key='
      )
    if image == _ABSENT:
      raise UserError('there is no image with this label')
    example = {'image': shard.read(image)}
    if self._label_key is None:
      return example
    extension, *keys = self._label_key.split('.')
    if label == _ABSENT:
      raise UserError(f'the label is missing: no .{extension} beside it')
    value: Any = shard.read(label).decode().strip()
    if extension == 'json':
      value = row = json.loads(value)
      for key in keys or ['label']:
        if not isinstance(value, dict) or key not in value:
          raise UserError(f'the label is missing: no {key!r} in its json')
        value = value[key]
      example |= self._columns.encode(row)
    several = isinstance(value, list)
    ids = self._classes.vector_of if several else self._classes.id_of
    return example | {'label': ids(value)}

  def describe(self, index: int) -> str:
    """Returns the path of the tar and the path inside it."""
    shard = self._shards[self._shard_of[index]]
    image, _, first = self._members[index]
    return f'{shard.path}: {shard.name(first if image == _ABSENT else image)}'


def _examples(
  shard: tar_index.Index, images: Sequence[str], label: str | None
) -> np.ndarray:
  """Returns `[N, 3]`: the members that are image, label and first of all.

  -1 marks an absent one. Groups with neither are not examples, except
  where an image would be lost by the dots in its name, as in `cat.v2.jpg`.

  Raises:
    UserError: two files have the same path.
  """
  rows: dict[str, list[int]] = {}
  names, dotted = set(), set()
  for i in range(len(shard)):
    path = shard.name(i)
    if path in names:
      raise UserError(
        f'{shard.path} has {path} more than once; give each example another '
        'name, or unpack it and pack it again'
      )
    names.add(path)
    folder, slash, name = path.rpartition('/')
    key, _, extension = name.partition('.')
    key, extension = folder + slash + key, extension.lower()
    row = rows.setdefault(key, [_ABSENT, _ABSENT, i])
    if '.' in extension and extension.rpartition('.')[2] in images:
      dotted.add(key)
    if extension in images and row[0] == _ABSENT:
      row[0] = i
    elif extension == label:
      row[1] = i
  kept = [
    row
    for key, row in rows.items()
    if row[:2] != [_ABSENT, _ABSENT] or key in dotted
  ]
  return np.array(kept, np.int32).reshape(-1, 3)
