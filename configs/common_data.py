"""The data that a recipe's option `data` names: sources, splits, classes.

  data=/path          images in /path/train/<class>/ and /path/val/<class>/ (or
                      validation/, valid/, test/); images in /path/<class>/
                      alone, of which 10 % of each class are held out; or what
                      vit_jax prepare wrote
  data=folder:/path   images in folders
  data=records:/path  what vit_jax prepare wrote
  data=imagenet2012   a dataset of TFDS

`dataset=` is an older spelling of `data=`.
"""

import os
import pathlib

import ml_collections

from vit_jax.data import folders

ConfigDict = ml_collections.ConfigDict

# Of datasets in TFDS that recipes name.
_NUM_CLASSES = {
  'imagenet2012': 1000,
  'cifar10': 10,
  'cifar100': 100,
  'oxford_iiit_pet': 37,
  'oxford_flowers102': 102,
  'cars196': 196,
  'i_naturalist2018': 8142,
}
_SOURCES = dict(folder='image_folder', records='array_record')


def images(
  data: str,
  split: str,
  data_dir: str | None = None,
  *,
  label_key: str | None = None,
) -> ConfigDict:
  """Returns the data section for a dataset as a user names it.

  Args:
    data: see the header of this file.
    split: in TFDS's notation. In a path 'train', 'val' and 'test' also find
      folders with one of the other names in `folders.SPLITS`, such as
      'validation'.
    data_dir: where TFDS finds the dataset; None is $TFDS_DATA_DIR or else
      ~/tensorflow_datasets.
    label_key: the feature of TFDS that has the label; None is `label`.

  Raises:
    ValueError: a data_dir or a label_key besides a path, where it has no
      effect.
  """
  name, path = _source(data)
  if name == 'tfds':
    section = dict(name=name, dataset=path, split=split, data_dir=data_dir)
    return ConfigDict(
      section | (dict(label_key=label_key) if label_key else {})
    )
  if label_key is not None:
    raise ValueError(f'the labels {label_key!r} of TFDS are not in {data!r}')
  if data_dir is not None:
    raise ValueError(f'data_dir={data_dir!r} has no effect on {data!r}')
  word, bracket, part = split.partition('[')
  word = {'validation': 'val'}.get(word, word)
  word = folders.find(path).splits.get(word, word)
  return ConfigDict(
    dict(name=name, data_dir=path, split=f'{word}{bracket}{part}')
  )


def splits(
  data: str, *, tfds: tuple[str, str, str | None] = ('train', 'test', None)
) -> tuple[str, str, str | None]:
  """Returns the training, validation and test splits; None if absent.

  Of a path they follow from its folders: val/ is validation, test/ is where
  there is no val/, and without both the last tenth of train/ is held out, at
  random. Without train/ the source itself holds out a tenth of each class.

  Args:
    data: see the header of this file.
    tfds: the splits of a dataset of TFDS.
  """
  name, path = _source(data)
  if name == 'tfds':
    return tfds
  found = folders.find(path)
  if found.flat or 'train' not in found.splits:
    return 'train', 'val', None  # What is missing, the source says.
  if 'val' in found.splits:
    return 'train', 'val', 'test' if 'test' in found.splits else None
  if 'test' in found.splits:
    return 'train', 'test', None
  return 'train[:90%]', 'train[90%:]', None


def imagenet_splits(data: str) -> tuple[str, dict[str, str]]:
  """Returns big_vision's splits of ImageNet-1k, or of a path: training, evals.

  `minival`, a hundredth of the training images, is what choices may be made on;
  `val` is what papers report. `minitrain`, big_vision's `train`, has images of
  the training data. A path that has train/ alone has no `val`.
  """
  _, val, _ = splits(data, tfds=('train', 'validation', None))
  evals = dict(minitrain='train[:2%]', minival='train[99%:]')
  if val != 'train[90%:]':
    evals['val'] = val
  return 'train[:99%]', evals


def pretraining_splits(
  data: str, *, held_out: dict[str, str]
) -> tuple[str, dict[str, str]]:
  """Returns training and evaluation splits of ImageNet-21k, or data like it.

  The authors had no validation split: 51,200 images are held out. A path with
  val/ keeps it as the only evaluation.

  Args:
    data: see the header of this file.
    held_out: a slice of the first 51,200 images for each evaluation.
  """
  name, path = _source(data)
  whole = 'full'
  if name != 'tfds':
    found = folders.find(path)
    if 'val' in found.splits:
      return 'train', {'val': 'val'}
    if name == 'image_folder' or 'train' in found.splits:
      whole = 'all' if found.flat else 'train'
  return f'{whole}[51200:]', {k: f'{whole}{v}' for k, v in held_out.items()}


def num_classes(data: str, given: int = 0, *, default: int = 0) -> int:
  """Returns the number of classes: as given, known, or counted in a path.

  Args:
    data: see the header of this file.
    given: by the user; 0 is nothing.
    default: where nothing says it.

  Raises:
    ValueError: nothing says it, and there is no default.
  """
  found = given or _NUM_CLASSES.get(data) or _count_classes(data) or default
  name, path = _source(data)
  if (
    not found
    and name != 'tfds'
    and not pathlib.Path(path).expanduser().is_dir()
  ):
    raise ValueError(f'data={data}: there is no such folder; correct the path')
  if not found:
    raise ValueError(
      f'the number of classes of data={data} is not known: it is neither one '
      f'of {", ".join(_NUM_CLASSES)} nor a folder with train/<class>/ or '
      '<class>/ in it. Correct data=, or add num_classes='
    )
  return found


def num_training_images(
  data: str, *, split: str | None = None, at_most: int = 20_000
) -> int | None:
  """Returns about how many images a path has for training; None if unknown.

  Args:
    data: see the header of this file.
    split: the training split as the user names it, a slice counted as the whole
      split; None is that of `splits`.
    at_most: where counting stops.
  """
  folder, fraction = _training_folder(data)
  if folder is not None and split is not None:
    folder, fraction = _named_folder(data, split.partition('[')[0]), 1.0
  if folder is None:
    return None
  if (info := folders.read_prepared(folder)) is not None:
    shards = info.get('shards', [])
    return round(fraction * sum(shard['num_examples'] for shard in shards))
  return round(fraction * folders.count_images(folder, at_most=at_most))


def batch_size(num_images: int | None, *, most: int, least: int = 8) -> int:
  """Returns the largest power of two up to an eighth of the images.

  Args:
    num_images: for training; None, for unknown, gives `most`.
    most: the largest batch, a power of two.
    least: the smallest one.
  """
  if num_images is None:
    return most
  eighth = max(1, num_images // 8)
  return max(least, min(most, 1 << (eighth.bit_length() - 1)))


def _source(data: str) -> tuple[str, str]:
  """Returns the name of the source, and the path or the dataset of TFDS."""
  kind, colon, path = data.partition(':')
  if kind in _SOURCES and colon:
    return _SOURCES[kind], path
  is_path = data.startswith(('/', '~', '.'))
  if not is_path and data not in _NUM_CLASSES:
    is_path = os.path.isdir(data)
  if not is_path:
    return 'tfds', data
  return 'array_record' if folders.is_prepared(data) else 'image_folder', data


def _training_folder(data: str) -> tuple[pathlib.Path | None, float]:
  """Returns the folder with the training images, and the part of them used."""
  name, path = _source(data)
  if name == 'tfds':
    return None, 1.0
  root, found = pathlib.Path(path).expanduser(), folders.find(path)
  if found.flat:
    return root, 0.9
  # Prepared ImageNet-21k has 'full' alone.
  folder = found.splits.get('train') or found.splits.get('full')
  if folder is None:
    return None, 1.0
  return root / folder, 0.9 if list(found.splits) == ['train'] else 1.0


def _named_folder(data: str, name: str) -> pathlib.Path | None:
  root = pathlib.Path(_source(data)[1]).expanduser()
  found = folders.find(root)
  folder = root if found.flat else root / found.splits.get(name, name)
  return folder if folder.is_dir() else None


def _count_classes(data: str) -> int:
  """Returns how many classes a path has; 0 if that is not known."""
  folder, _ = _training_folder(data)
  if folder is None:
    return 0
  if (info := folders.read_prepared(folder)) is not None:
    return info.get('num_classes') or 0
  return len(folders.subfolders(folder))
