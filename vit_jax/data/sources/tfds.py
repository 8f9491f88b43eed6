"""Any image dataset of TensorFlow Datasets, read without TensorFlow.

The records must be array_record files, which have random access. For a dataset
prepared as TFRecord the error names the command of TFDS that converts it.
"""

import contextlib
import difflib
import itertools
import logging
import os
from collections.abc import Iterator

from vit_jax.data import fields, splits
from vit_jax.errors import UserError

_FORMAT = 'array_record'
# TFDS has no way to prepare it.
_IMAGENET21K = """
with the downloaded tars, prepare them and give the recipe data=/data/i21k:
  mkdir winter21
  tar -xf winter21_whole.tar.gz -C winter21 --strip-components=1
  python -m vit_jax prepare "imagenet21k(data_dir='winter21')" \\
      /data/i21k --split=full --resize_small=256 --on_error=skip"""
_ELSEWHERE = """
for other data give the recipe data=/path: images in /path/train/<class>/ and \
/path/val/<class>/, or in /path/<class>/ alone, or what `python -m \
vit_jax prepare` wrote (the same as folder:/path and records:/path)
to try the recipe now, without data, add :smoke to the recipe's name"""


class Source:
  """Examples `{'image': encoded bytes, 'label': int}`.

  An image that TFDS stores as a plain tensor comes as its array. A label that
  is a list of class ids stays a list: the op `onehot` makes it a vector.
  """

  def __init__(
    self,
    split: str,
    *,
    dataset: str,
    data_dir: str | None = None,
    image_key: str = 'image',
    label_key: str | None = 'label',
    download: bool = False,
    columns: fields.ColumnNames = (),
  ):
    """Opens a split.

    Args:
      split: in TFDS's notation, for example `'train[:99%]'` or `'train+test'`;
        `'train[part 1 of 3]'` is the first of `tfds.even_splits`.
      dataset: name, or name/config, or name/config:version.
      data_dir: the folder that holds the datasets; TFDS's default if None.
      image_key: the feature that becomes `image`.
      label_key: the feature that becomes `label`; None for no label.
      download: download and prepare the dataset where it is missing.
      columns: other features that examples have as fields, see
        `data/fields.py`; of a ClassLabel the texts are its names.

    Raises:
      UserError: no such dataset, split or feature, a dataset that is not
        prepared or has a format without random access, or one whose files
        name classes of modules that are not imported.
    """
    with _no_imports():
      builder = _prepared_builder(dataset, data_dir, download)
      features = builder.info.features
    self._image_key, self._label_key = image_key, label_key
    self._columns = fields.Columns(columns)
    wanted = [image_key, label_key, *self._columns.names]
    fields.check_present(dataset, wanted, features, noun='feature')
    for name in self._columns.names:
      known = getattr(features[name], 'names', None)
      if known is not None:
        self._columns.texts.setdefault(name, list(known))
    self.fields = self._columns.roles
    self.column_texts = self._columns.texts
    self._records = _open(builder, split)
    self._where = f"split '{split}' of {dataset} in {builder.data_dir}"
    label = features[label_key] if label_key in features else None
    label = getattr(label, 'feature', label)  # of a list of labels
    self.num_classes = getattr(label, 'num_classes', None)
    self.class_names = getattr(label, 'names', None)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    record = self._records[index]
    if record[self._image_key] is None:
      # A file that was cut off while open gives empty records and no error.
      raise UserError('the record is empty; was its file cut off?')
    example = {'image': record[self._image_key]}
    if self._label_key is not None:
      example['label'] = record[self._label_key]
    return example | self._columns.encode(record)

  def describe(self, index: int) -> str:
    """Returns words for messages that find the record again."""
    return f'record {index} of {self._where}'


def _prepared_builder(dataset: str, data_dir: str | None, download: bool):
  """Returns a builder whose data is stored as array_record on this disk."""
  import tensorflow_datasets as tfds

  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  try:
    builder = tfds.builder(dataset, data_dir=data_dir)
    if download and not builder.is_prepared():
      builder = tfds.builder(dataset, data_dir=data_dir, file_format=_FORMAT)
      builder.download_and_prepare()
  except tfds.core.DatasetNotFoundError as e:
    name = dataset.split('/')[0].split(':')[0]
    close = difflib.get_close_matches(
      name, tfds.list_builders(with_community_datasets=False), n=3
    )
    hint = f'; close names: {", ".join(close)}' if close else ''
    if name == 'imagenet21k':
      hint = _IMAGENET21K
    raise UserError(
      f'TFDS knows no dataset {dataset!r}, and there is none in '
      f'{data_dir or "its default data_dir"}{hint}'
      f'{_folder_hint(dataset) or _ELSEWHERE}'
    ) from e
  except UserError:
    raise
  # An unknown config or version, a bucket, a damaged dataset_info.json, ...
  except Exception as e:
    what = _folder_hint(dataset) or f': {e}'
    if '://' in str(data_dir):
      what += f'\nmount the bucket of {data_dir} (gcsfuse) and give its folder'
    raise UserError(f'TFDS cannot build {dataset!r}{what}') from e
  if not builder.is_prepared():
    raise UserError(
      f'{dataset} is not prepared in {builder.data_dir}; prepare it with\n'
      f'{_how_to_prepare(dataset, data_dir)}\n'
      'or, where it needs no account, let the run do it with the key '
      f'download=True (--config.input.data.download=True){_ELSEWHERE}'
    )
  # Builders of TFDS's own datasets do not know the files of convert_format.
  again = map(tfds.builder_from_directory, [builder.data_dir])
  for found in itertools.chain([builder], again):
    formats = found.info.available_file_formats()
    if any(form.value == _FORMAT for form in formats):
      return found
  elsewhere = f'{data_dir or "~/tensorflow_datasets"}_{_FORMAT}'
  raise UserError(
    f'{builder.data_dir} holds {dataset} as {builder.info.file_format.value}, '
    f'which has no random access; this needs {_FORMAT}. Write it beside the '
    'other files, best in a Python environment of its own:\n'
    '  pip install tensorflow-datasets tensorflow apache-beam mlcroissant\n'
    f'  tfds convert_format --dataset_version_dir={builder.data_dir} '
    f'--out_file_format={_FORMAT}\n'
    'or prepare it again in another data_dir:\n'
    f'{_how_to_prepare(dataset, elsewhere)}'
  )


@contextlib.contextmanager
def _no_imports() -> Iterator[None]:
  """Within it, files of a dataset may name loaded classes of features only.

  TFDS (4.9) imports the module of every class that `features.json` names. A
  dataset from somebody else is data, and nothing in it is imported. Also hides
  a warning that TFDS repeats for each folder where it looks.

  Raises:
    UserError: a file names a class that no imported module defines.
  """
  from tensorflow_datasets.core.features import feature

  connector, logger = feature.FeatureConnector, logging.getLogger('absl')
  original = connector.__dict__['cls_from_name']

  def registered_class(cls, python_class_name):
    if python_class_name not in cls._registered_features:
      raise UserError(
        f'the dataset names the class {python_class_name!r} for a feature, and '
        'nothing that its files name is imported. If you trust it, import that '
        'module in a source of your own'
      )
    return original.__func__(cls, python_class_name)

  def is_news(record: logging.LogRecord) -> bool:
    return 'has no dataset_info.json' not in record.getMessage()

  connector.cls_from_name = classmethod(registered_class)
  logger.addFilter(is_news)
  try:
    yield
  finally:
    logger.removeFilter(is_news)
    connector.cls_from_name = original


def _folder_hint(dataset: str) -> str:
  """Returns how to name a folder if that is what was meant, or ''."""
  path = dataset.rpartition(':')[2]
  if not path.startswith(('/', '~', '.')) and not os.path.isdir(path):
    return ''
  return (
    f"; a folder of images is written 'folder:{path}', what prepare wrote "
    f"'records:{path}' (in a config: the sources image_folder, array_record)"
  )


def _how_to_prepare(dataset: str, data_dir: str | None) -> str:
  where = '' if data_dir is None else f'data_dir={data_dir!r}, '
  return (
    '  import tensorflow_datasets as tfds\n'
    f'  tfds.builder({dataset!r}, {where}file_format={_FORMAT!r})'
    '.download_and_prepare()'
  )


def _open(builder, split: str):
  """Returns the random-access records of a split, images left encoded."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  encoded = {
    key: tfds.decode.SkipDecoding()
    for key in features
    if isinstance(features[key], tfds.features.Image)
  }
  wanted = split
  try:
    if '[part ' in split:
      k, n = splits.parse(split).part
      wanted = tfds.even_splits(splits.parse(split).name, n)[k - 1]
    return builder.as_data_source(wanted, decoders=encoded or None)
  except ValueError as e:
    raise UserError(
      f'split {split!r} of {builder.info.full_name}: {e}; it has: '
      + ', '.join(
        f'{name} ({info.num_examples} records)'
        for name, info in builder.info.splits.items()
      )
    ) from e
