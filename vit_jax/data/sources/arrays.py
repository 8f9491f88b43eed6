"""Images and labels from one npz file, held in memory.

The file has two arrays a split, `train_images` and `train_labels`, then
`test_images` and so on, which is the layout of MedMNIST. Write one with

  np.savez('my_data.npz', train_images=..., train_labels=..., test_images=...,
           test_labels=..., class_names=[...])     # class_names is optional
"""

import os
import zipfile

import numpy as np

from vit_jax.data import labels as labels_lib, splits
from vit_jax.errors import UserError


class Source:
  """Examples `{'image': [H, W, C], 'label': int or float32 [Y]}`.

  An image is uint8, or float32 with whatever range the file holds: choose the
  ops accordingly.
  """

  def __init__(self, split: str, *, path: str, num_classes: int | None = None):
    """Loads a split.

    Args:
      split: `'train'` reads the arrays `train_images` and `train_labels`; may
        be a slice.
      path: the npz file. Images are uint8 or floats, [N, H, W, C] or
        [N, H, W]. Labels are integers [N] or [N, 1], or [N, Y]: one column a
        class, for several labels an image or soft ones.
      num_classes: the default is what the array `class_names` holds, and
        without one the training labels.

    Raises:
      UserError: no such file or arrays, or arrays that do not fit together.
    """
    self._path, self._split = os.path.expanduser(path), splits.parse(split)
    file = _read(self._path, self._split.name)
    images, labels = file['images'], file['labels']
    self._images = images[..., np.newaxis] if images.ndim == 3 else images
    self._labels = _squeeze(labels)
    self._check()
    train_labels = _squeeze(file.get('train_labels', labels))
    names = file.get('class_names')
    # Names may be there twice: ImageNet has two kinds of crane.
    self.class_names = None if names is None else [str(name) for name in names]
    if num_classes is None and names is not None:
      num_classes = len(names)
    if names is not None and num_classes != len(names):
      raise UserError(
        f'{self._path}: num_classes={num_classes}, but there are {len(names)} '
        'class_names'
      )
    try:
      self.num_classes = self._count_classes(train_labels, num_classes)
    except UserError as e:
      raise UserError(f'{self._path}: {e}') from e
    self._records = self._split.records(len(self._images))

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict:
    record = self._records[index]
    image, label = self._images[record], self._labels[record]
    if image.dtype != np.uint8:
      image = image.astype(np.float32)
    label = label.astype(np.float32) if label.ndim else int(label)
    return {'image': image, 'label': label}

  def describe(self, index: int) -> str:
    """Returns words for messages that find the record again."""
    return f'{self._path}: {self._split.name}_images[{self._records[index]}]'

  def _check(self) -> None:
    images, labels, problems = self._images, self._labels, []
    if images.ndim != 4 or not (
      images.dtype == np.uint8 or images.dtype.kind == 'f'
    ):
      problems.append(
        f'images are {images.dtype} {images.shape}; expected uint8 or floats '
        '[N, H, W, C] or [N, H, W]'
      )
    elif len(images) and not images.size:
      problems.append(f'images of shape {images.shape} have no pixels')
    if labels.ndim not in (1, 2) or (
      labels.ndim == 1 and labels.dtype.kind not in 'iu'
    ):
      problems.append(
        f'labels are {labels.dtype} {labels.shape}; expected integers [N] or '
        'numbers [N, classes]'
      )
    elif labels.dtype.kind not in 'biuf' or not np.isfinite(labels).all():
      problems.append(f'labels are {labels.dtype} and not all of them numbers')
    if len(images) != len(labels):
      problems.append(f'{len(images)} images but {len(labels)} labels')
    if not len(images):
      problems.append('no images')
    if problems:
      raise UserError(
        f'{self._path}, split {self._split.name!r}: {"; ".join(problems)}'
      )

  def _count_classes(self, train_labels, num_classes: int | None) -> int:
    """Returns the number of classes; raises where a label is outside them."""
    labels = self._labels
    if labels.ndim == 2:
      if num_classes not in (None, labels.shape[1]):
        raise UserError(
          f'labels have {labels.shape[1]} columns, but there are '
          f'{num_classes} classes'
        )
      return labels.shape[1]
    if num_classes is None:
      num_classes = labels_lib.count(
        int(train_labels.astype(int).max(initial=0))
      )
    outside = np.unique(labels[(labels < 0) | (labels >= num_classes)])
    if len(outside):
      raise UserError(
        f'labels of split {self._split.name!r} that are not among the '
        f'{num_classes} classes 0..{num_classes - 1}: '
        f'{outside[:10].tolist()}; class ids come from the training labels '
        'unless num_classes or class_names is given'
      )
    return num_classes


def _read(path: str, split: str) -> dict[str, np.ndarray]:
  """Returns the arrays `images`, `labels` and, where present, the optional."""
  wanted = {'images': f'{split}_images', 'labels': f'{split}_labels'}
  try:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
      raise UserError(f'{path} holds one array; expected an npz file of them')
    with file:
      missing = [key for key in wanted.values() if key not in file]
      if missing:
        raise UserError(
          f'{path} has no {" and no ".join(missing)}; it has: '
          f'{", ".join(file.files)}'
        )
      optional = [k for k in ('train_labels', 'class_names') if k in file]
      wanted |= {key: key for key in optional}
      found = {name: file[key] for name, key in wanted.items()}
    bad = [k for k, v in found.items() if not isinstance(v, np.ndarray)]
    if bad:
      raise UserError(f'{path}: {" and ".join(bad)} cannot be read as arrays')
    return found
  except FileNotFoundError as e:
    raise UserError(
      f'no file {path}; expected an npz file with the arrays '
      f'{" and ".join(wanted.values())}'
    ) from e
  except UserError:
    raise
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
    raise UserError(f'{path} cannot be read as an npz file: {e}') from e


def _squeeze(labels: np.ndarray) -> np.ndarray:
  """Returns integer labels [N, 1] as [N] and all others as they are."""
  if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in 'iu':
    return labels[:, 0]
  return labels
