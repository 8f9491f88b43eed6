"""Images in one folder a class: `<data_dir>/<split>/<class>/**/*.jpg`.

Class ids are the places of the sorted names of the training split's folders, in
every split, so that a class that the test split lacks shifts nothing. Without
split folders, `<data_dir>/<class>/**/*.jpg`, a part of each class is held out.
"""

import collections
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from vit_jax.data import folders, splits
from vit_jax.errors import UserError
from vit_jax.printable import plural, printable

_LAYOUT = f'<data_dir>/<split>/<class>/*{{{",".join(folders.SUFFIXES)}}}'
_HELD_OUT = ('train', 'val', 'all')  # Splits of a folder without any.


class Source:
  """Examples `{'image': bytes of the file, 'label': int}`, sorted by path."""

  def __init__(
    self,
    split: str,
    *,
    data_dir: str,
    classes_from: str | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
  ):
    """Lists the files of a split; reads none of them.

    Args:
      split: name of a folder in `data_dir`, or a slice of one. Where `data_dir`
        has no split folders but the classes themselves: 'train', 'val', or
        'all', which is both.
      data_dir: the folder that holds the splits. Hidden files and folders are
        ignored; folders inside a class are searched too.
      classes_from: the split whose folders name the classes; None is 'train'
        (or a folder 'training').
      val_fraction: the part of each class that is 'val' where there are no
        split folders, rounded, and at least one image of two or more.
      split_seed: chooses these images. The choice depends on the seed and the
        names of the files alone.

    Raises:
      UserError: a folder is missing, empty or unreadable, or this split has a
        class that `classes_from` has not.
    """
    self._split = splits.parse(split)
    root = pathlib.Path(data_dir).expanduser()
    found = folders.find(root)
    is_flat = found.flat and not folders.is_split(root / self._split.name)
    if is_flat and self._split.name not in _HELD_OUT:
      raise UserError(
        f'{root} has no folder {self._split.name!r} but the folders: '
        f'{_first(folders.subfolders(root))}. If these are classes, the splits '
        "are 'train', 'val' and 'all'; otherwise expected " + _LAYOUT
      )
    if is_flat and not 0 < val_fraction < 1:
      raise UserError(f'val_fraction is between 0 and 1; got {val_fraction!r}')
    if is_flat:
      self._folder = training = root
    else:
      classes_from = classes_from or found.splits.get('train', 'train')
      self._folder = _split_folder(root, self._split.name)
      training = _split_folder(root, classes_from)
    self._classes = _class_names(training)
    self.class_names = [folders.as_utf8(name) for name in self._classes]
    self.num_classes = len(self.class_names)
    here = _class_names(self._folder)
    unknown = sorted(set(here) - set(self._classes))
    if unknown:
      raise UserError(
        f'{self._folder} has {len(unknown)} classes that {training} has not: '
        f'{_first(unknown)}; class ids come from {classes_from!r} (key '
        'classes_from)'
      )
    others = collections.Counter()
    files = [folders.images_below(self._folder / name, others) for name in here]
    empty = [name for name, found in zip(here, files, strict=True) if not found]
    if len(empty) == len(here) or (empty and self._folder == training):
      raise UserError(
        f'no image in {len(empty)} of the {len(here)} class folders of '
        f'{self._folder}: {_first(empty)}; expected {_LAYOUT}'
        f'{_what_else(self._folder / empty[0])}'
      )
    if others:
      _warn_once(
        f'{self._folder}: {plural(others.total(), "file")} in the class '
        f'folders left out: {folders.kinds(others)}; images end in '
        f'{", ".join(folders.SUFFIXES)}'
      )
    if is_flat and self._split.name != 'all':
      files = [
        _held_out(name, one, self._split.name, val_fraction, split_seed)
        for name, one in zip(here, files, strict=True)
      ]
      _warn_once(
        f'{root} has no train/<class>/: of each of its {len(here):,} classes '
        f'({_first(self.class_names)}) '
        f'{1 - val_fraction:.0%} of the images are for training, '
        f'{val_fraction:.0%} for validation (seed {split_seed})'
      )
    ids = {name: i for i, name in enumerate(self._classes)}
    names = [name for found in files for name in found]
    labels = np.repeat([ids[name] for name in here], [len(f) for f in files])
    records = self._split.records(len(names))
    self._names = [names[i] for i in records]
    self._labels = labels[records]

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> dict:
    image = folders.read_file(self._path(index))
    return {'image': image, 'label': int(self._labels[index])}

  def labels(self) -> np.ndarray:
    """Returns the class id of every record, int `[N]`."""
    return self._labels

  def describe(self, index: int) -> str:
    """Returns the path of the file."""
    return folders.as_utf8(self._path(index))

  def _path(self, index: int) -> str:
    name = self._classes[self._labels[index]]
    return os.path.join(self._folder, name, self._names[index])


def _split_folder(root: pathlib.Path, split: str) -> pathlib.Path:
  # Unlike pathlib's, this is not an error where a folder cannot be entered.
  if os.path.isdir(root / split):
    return root / split
  if not os.path.isdir(root):
    raise UserError(f'no folder {root}; expected {_LAYOUT}')
  raise UserError(
    f'no folder {root / split}; expected {_LAYOUT}; {root} has the folders: '
    f'{_first(folders.subfolders(root)) or "none"}'
  )


def _class_names(folder: pathlib.Path) -> list[str]:
  names = folders.subfolders(folder)
  if not names:
    raise UserError(
      f'no class folders in {folder}; expected {_LAYOUT}{_what_else(folder)}'
    )
  return names


def _held_out(
  class_name: str, files: Sequence[str], split: str, fraction: float, seed: int
) -> list[str]:
  """Returns the files of a class that are in 'train' or in 'val', sorted."""

  def place(name: str) -> bytes:
    text = f'{seed}/{class_name}/{name}'
    return hashlib.sha256(os.fsencode(text)).digest()

  count = max(round(fraction * len(files)), 1 if len(files) > 1 else 0)
  order = sorted(files, key=place)
  return sorted(order[:count] if split == 'val' else order[count:])


@functools.cache
def _warn_once(text: str) -> None:
  logging.warning('%s', printable(text))


def _what_else(folder: pathlib.Path) -> str:
  """Returns the kinds of files in a folder, for a message."""
  kinds = collections.Counter(
    folders.kind(p.name) for p in folder.iterdir() if p.is_file()
  )
  return f'; {folder} has {folders.kinds(kinds) or "no files"}'


def _first(names: list[str]) -> str:
  return ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
