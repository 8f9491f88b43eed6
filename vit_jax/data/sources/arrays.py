"""Images and labels from one npz file, held in memory.

The file has two arrays a split, `train_images` and `train_labels`, then
`test_images` and so on, which is the layout of MedMNIST. Write one with

  np.savez('my_data.npz', train_images=..., train_labels=..., test_images=...,
           test_labels=..., class_names=[...])     # class_names is optional
"""

import os
import zipfile

import numpy as np

from vit_jax import bounded_npz, files
from vit_jax.data import labels as labels_lib, splits
from vit_jax.errors import UserError
from vit_jax.printable import printable

# Photos hardly compress; images of one colour do, by up to 1,032 times.
MAX_RATIO = 100
MAX_BYTES = 64 * 2**30  # ImageNet at 224 pixels would have 180 GiB.
SMALL_BYTES = 2**30


class Source:
  """Examples `{'image': [H, W, C], 'label': int or float32 [Y]}`.

  An image is uint8, or float32 with whatever range the file holds: choose the
  ops accordingly.
  """

  def __init__(
    self,
    split: str,
    *,
    path: str,
    num_classes: int | None = None,
    max_ratio: float = MAX_RATIO,
    max_bytes: int = MAX_BYTES,
  ):
    """Loads a split.

    Args:
      split: `'train'` reads the arrays `train_images` and `train_labels`; may
        be a slice.
      path: the npz file. Images are uint8 or floats, [N, H, W, C] or
        [N, H, W]. Labels are integers [N] or [N, 1], or [N, Y]: one column a
        class, for several labels an image or soft ones.
      num_classes: the default is what the array `class_names` holds, and
        without one the training labels.
      max_ratio: by how much the arrays may be larger than the file, if they
        have over SMALL_BYTES.
      max_bytes: that the arrays of the split may have.

    Raises:
      UserError: no such file or arrays, arrays over the limits, or arrays that
        do not fit together.
    """
    self._path, self._split = os.path.expanduser(path), splits.parse(split)
    file = _read(
      self._path, self._split.name, max_ratio=max_ratio, max_bytes=max_bytes
    )
    images, self._labels = file['images'], _squeeze(file['labels'])
    self._images = images[..., np.newaxis] if images.ndim == 3 else images
    training = _squeeze(file.get('train_labels', file['labels']))
    names = file.get('class_names')
    problems = _problems(self._images, self._labels)
    if training.dtype.kind not in 'biuf':
      problems.append(f'train_labels are {training.dtype}; expected numbers')
    if names is not None and names.ndim != 1:
      problems.append(
        f'class_names have the shape {names.shape}; expected a list of names'
      )
    elif names is not None and num_classes not in (None, len(names)):
      problems.append(
        f'num_classes={num_classes}, but there are {len(names)} class_names'
      )
    if problems:
      where = f'{self._path}, split {self._split.name!r}'
      raise UserError(f'{where}: {"; ".join(problems)}')
    # Names may be there twice: ImageNet has two kinds of crane.
    self.class_names = None if names is None else [str(name) for name in names]
    if names is not None:
      num_classes = len(names)
    try:
      self.num_classes = self._count_classes(training, num_classes)
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

  def labels(self) -> np.ndarray:
    """Returns the class id of every record, int `[N]`."""
    return self._labels[self._records]

  def describe(self, index: int) -> str:
    """Returns words for messages that find the record again."""
    return f'{self._path}: {self._split.name}_images[{self._records[index]}]'

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


def _problems(images: np.ndarray, labels: np.ndarray) -> list[str]:
  problems = []
  is_image = images.dtype == np.uint8 or images.dtype.kind == 'f'
  if images.ndim != 4 or not is_image:
    problems.append(
      f'images are {images.dtype} {images.shape}; expected uint8 or floats '
      '[N, H, W, C] or [N, H, W]'
    )
  elif len(images) and not images.size:
    problems.append(f'images of shape {images.shape} have no pixels')
  is_id = labels.ndim == 1 and labels.dtype.kind in 'iu'
  if labels.ndim != 2 and not is_id:
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
  return problems


def _read(
  path: str, split: str, *, max_ratio: float, max_bytes: int
) -> dict[str, np.ndarray]:
  """Returns the arrays `images`, `labels` and, where present, the optional."""
  wanted = {'images': f'{split}_images', 'labels': f'{split}_labels'}
  if not os.path.exists(path):
    raise UserError(
      f'no file {path}; expected an npz file with the arrays '
      f'{" and ".join(wanted.values())}'
    )
  size = files.check_regular(path)
  try:
    with zipfile.ZipFile(path) as archive:
      members = archive.infolist()
      names = {m.filename.removesuffix('.npy'): m for m in members}
      missing = [key for key in wanted.values() if key not in names]
      if missing:
        raise UserError(
          f'{path} has no {" and no ".join(missing)}; it has: '
          f'{printable(", ".join(names), max_length=200)}'
        )
      optional = [k for k in ('train_labels', 'class_names') if k in names]
      wanted |= {key: key for key in optional}
      used = set(wanted.values())
      bounded_npz.check_members(
        [m for m in members if m.filename.removesuffix('.npy') in used],
        size,
        max_ratio=max_ratio,
        max_bytes=max_bytes,
        small_bytes=SMALL_BYTES,
      )
      return {
        name: bounded_npz.read_array(archive, names[key], allow_empty=True)
        for name, key in wanted.items()
      }
  except UserError:
    raise
  except bounded_npz.BROKEN as e:
    reason = printable(str(e) or type(e).__name__, max_length=300)
    raise UserError(
      f'{path} cannot be read as an npz file of numpy.savez: {reason}'
    ) from e


def _squeeze(labels: np.ndarray) -> np.ndarray:
  """Returns integer labels [N, 1] as [N] and all others as they are."""
  if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in 'iu':
    return labels[:, 0]
  return labels
