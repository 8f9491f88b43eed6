"""Hugging Face datasets on disk, as `dataset.save_to_disk(path)` writes them.

Needs the extra `huggingface`, which is the library `datasets`; neither it nor
we import torch or TensorFlow.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from vit_jax import files
from vit_jax.data import (
  fields,
  folders,
  labels as labels_lib,
  splits,
)
from vit_jax.errors import UserError
from vit_jax.printable import printable

_FILES = ('PIL.Image.Image', 'binary', 'large_binary')
_OF_ONE = ('state.json', 'dataset_info.json')
_UNKNOWN = -1  # what the hub's test splits have where labels are secret


class Source:
  """Examples `{'image': encoded bytes or array, 'label': int or float32}`."""

  def __init__(
    self,
    split: str,
    *,
    path: str,
    image_key: str = 'image',
    label_key: str | None = 'label',
    num_classes: int | None = None,
    columns: fields.ColumnNames = (),
  ):
    """Opens a dataset; its files are memory-mapped, not read.

    Args:
      split: a split of a `DatasetDict`; of a single `Dataset` it is `'all'`.
        May be a slice.
      path: the folder that `save_to_disk` wrote.
      image_key: a column of the type `Image`, of bytes, or of arrays, which
        keep the type of their numbers.
      label_key: a column of the type `ClassLabel`, or of integers with
        `num_classes`; a list in each row means several labels, and the label
        becomes float32 `[num_classes]`. None for no label.
      num_classes: needed if the column does not have it.
      columns: other columns as fields of examples, see `data/fields.py`;
        of a ClassLabel the texts are its names.

    Raises:
      UserError: the library is missing, or there is no such dataset, split or
        column.
    """
    self._path, self._split = os.path.expanduser(path), splits.parse(split)
    self._image_key, self._label_key = image_key, label_key
    self._columns = fields.Columns(columns)
    self._classes, self._several = labels_lib.Classes(None, None), False
    with _naming(self._path):
      data = _load(self._path, self._split.name)
      import datasets

      wanted = [key for key in (image_key, label_key) if key is not None]
      wanted += self._columns.names
      fields.check_present(self._path, wanted, data.features)
      self._dtype = _dtype(data.features[image_key], image_key)
      if label_key is not None:
        self._classes, self._several = _classes(
          data.features[label_key], label_key, num_classes
        )
      for name in self._columns.names:
        feature = data.features[name]
        if isinstance(feature, datasets.ClassLabel):
          self._columns.texts.setdefault(name, feature.names)
        elif isinstance(feature, datasets.Value):
          self._columns.learn(name, data.unique(name))
      self._data = data.select_columns(wanted)
      if isinstance(data.features[image_key], datasets.Image):
        encoded = datasets.Image(decode=False)
        self._data = self._data.cast_column(image_key, encoded)
    self.fields = self._columns.roles
    self.column_texts = self._columns.texts
    self.num_classes, self.class_names = self._classes.num, self._classes.names
    self._records = self._split.records(len(data))

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    with _naming(self._path):
      row = self._data[int(self._records[index])]
    example = {'image': _image(row[self._image_key], self._dtype)}
    example |= self._columns.encode(row)
    if self._label_key is None:
      return example
    label = row[self._label_key]
    if label is None or label == _UNKNOWN:
      raise UserError(f'the label is missing: it is {label}')
    ids = self._classes.vector_of if self._several else self._classes.id_of
    return example | {'label': ids(label)}

  def describe(self, index: int) -> str:
    """Returns words for messages that find the record again."""
    return f'row {self._records[index]} of {self._split.name!r} in {self._path}'


def _load(path: str, split: str):
  try:
    import datasets
  except ImportError as e:
    raise UserError(
      'the source "huggingface" needs the library datasets: pip install '
      "'vit_jax[huggingface]'"
    ) from e
  if not pathlib.Path(path).is_dir():
    raise UserError(
      f'no folder {path}; write one with\n  import datasets\n  datasets.'
      f'load_dataset(NAME).save_to_disk({path!r})'
    )
  _check_files(pathlib.Path(path))
  found = datasets.load_from_disk(path)
  if not isinstance(found, datasets.DatasetDict):
    found = {splits.ALL: found}
  if split not in found:
    raise UserError(
      f'{path} has no split {split!r}; it has: {", ".join(map(repr, found))}'
    )
  # What was stored with it may be the arrays of torch or jax.
  return found[split].with_format(None)


def _check_files(path: pathlib.Path) -> None:
  """Raises where a file that the library will open is not as it should be.

  The library waits for ever at a pipe, and reads JSON of any size and depth.
  """
  folders, info_of_all = [path], path / 'dataset_dict.json'
  single = all((path / name).exists() for name in _OF_ONE)
  if info_of_all.exists() and not single:
    names = files.read_json_object(info_of_all)['splits']
    folders = [path / split for split in names]
  for folder in folders:
    state, info = (folder / name for name in _OF_ONE)
    if not (state.exists() and info.exists()):
      continue  # The library says what is missing.
    files.read_json_object(info)
    for file in files.read_json_object(state)['_data_files']:
      files.check_regular(folder / file['filename'])


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Turns all that the library raises about its files into a UserError."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:  # Of pyarrow, json, fsspec and the library itself.
    reason = printable(f'{type(e).__name__}: {e}', max_length=300)
    raise UserError(f'{path} is not a dataset of save_to_disk: {reason}') from e


def _classes(
  feature, key: str, num_classes: int | None
) -> tuple[labels_lib.Classes, bool]:
  """Returns the classes, and whether an image has several labels."""
  inner = getattr(feature, 'feature', feature)  # of a list of labels
  if isinstance(inner, list):  # how older versions write a list
    (inner,) = inner
  names = getattr(inner, 'names', None)
  integers = 'int' in getattr(inner, 'dtype', '')
  classes = labels_lib.classes(num_classes, names)
  if not integers or classes is None:
    raise UserError(
      f'the column {key!r} is {feature}: '
      + ('set num_classes=' if integers else 'expected class ids')
      + f"; or name the classes with dataset.class_encode_column('{key}')"
    )
  return classes, inner is not feature


def _dtype(feature, key: str) -> np.dtype | None:
  """Returns the type of the numbers in a column; None if it holds files."""
  inner = feature
  while inner is not None and not hasattr(inner, 'dtype'):
    is_list = isinstance(inner, list)  # how older versions write one
    inner = inner[0] if is_list else getattr(inner, 'feature', None)
  name = getattr(inner, 'dtype', 'nothing')
  if name in _FILES:
    return None
  try:
    return np.dtype(name)
  except TypeError as e:
    raise UserError(
      f'the column {key!r} is {feature}; expected images, their bytes, or '
      'arrays of numbers (key image_key)'
    ) from e


def _image(value, dtype: np.dtype | None) -> bytes | np.ndarray:
  if value is None:
    raise UserError('the image is missing')
  if isinstance(value, bytes):
    return value
  if not isinstance(value, dict):
    return np.asarray(value, dtype)
  if value['bytes'] is not None:
    return value['bytes']
  return folders.read_file(value['path'])
