"""Images in one folder a class: `<data_dir>/<split>/<class>/**/*.jpg`.

Class ids are the places of the sorted names of the training split's folders, in
every split, so that a class that the test split lacks shifts nothing.
"""

import collections
import functools
import os
import pathlib

import numpy as np
from absl import logging

from vit_jax.data import image_files, paths, splits
from vit_jax.errors import UserError

_LAYOUT = f'<data_dir>/<split>/<class>/*{{{",".join(image_files.SUFFIXES)}}}'


class Source:
  """Examples `{'image': bytes of the file, 'label': int}`, sorted by path."""

  def __init__(self, split: str, *, data_dir: str, classes_from: str = 'train'):
    """Lists the files of a split; reads none of them.

    Args:
      split: name of a folder in `data_dir`, or a slice of one.
      data_dir: the folder that holds the splits. Hidden files and folders are
        ignored; folders inside a class are searched too.
      classes_from: the split whose folders name the classes.

    Raises:
      UserError: a folder is missing, empty or unreadable, or this split has a
        class that `classes_from` has not.
    """
    self._split = splits.parse(split)
    root = pathlib.Path(data_dir).expanduser()
    self._folder = _split_folder(root, self._split.name)
    self._classes = _class_names(_split_folder(root, classes_from))
    self.class_names = [paths.printable(name) for name in self._classes]
    self.num_classes = len(self.class_names)
    here = _class_names(self._folder)
    unknown = sorted(set(here) - set(self._classes))
    if unknown:
      raise UserError(
        f'{self._folder} has {len(unknown)} classes that '
        f'{root / classes_from} has not: {_first(unknown)}; class ids come '
        f'from {classes_from!r} (key classes_from)'
      )
    others = collections.Counter()
    files = [image_files.below(self._folder / name, others) for name in here]
    empty = [name for name, found in zip(here, files, strict=True) if not found]
    if len(empty) == len(here) or (empty and self._split.name == classes_from):
      raise UserError(
        f'no image in {len(empty)} of the {len(here)} class folders of '
        f'{self._folder}: {_first(empty)}; expected {_LAYOUT}'
        f'{_what_else(self._folder / empty[0])}'
      )
    if others:
      _warn_once(
        f'{paths.printable(str(self._folder))}: {others.total():,} files in '
        f'the class folders are left out: {image_files.kinds(others)}; images '
        f'end in {", ".join(image_files.SUFFIXES)}'
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
    image = image_files.read(self._path(index))
    return {'image': image, 'label': int(self._labels[index])}

  def describe(self, index: int) -> str:
    """Returns the path of the file."""
    return paths.printable(self._path(index))

  def _path(self, index: int) -> str:
    name = self._classes[self._labels[index]]
    return os.path.join(self._folder, name, self._names[index])


def _split_folder(root: pathlib.Path, split: str) -> pathlib.Path:
  # Unlike pathlib's, this is no error where a folder cannot be entered.
  if not os.path.isdir(root):
    raise UserError(f'no folder {root}; expected {_LAYOUT}')
  folder = root / split
  if not os.path.isdir(folder):
    raise UserError(
      f'no folder {folder}; expected {_LAYOUT}; {root} has the folders: '
      f'{_first(_folders(root)) or "none"}'
    )
  return folder


def _class_names(folder: pathlib.Path) -> list[str]:
  names = _folders(folder)
  if not names:
    raise UserError(
      f'no class folders in {folder}; expected {_LAYOUT}{_what_else(folder)}'
    )
  return names


def _folders(folder: pathlib.Path) -> list[str]:
  """Returns the names of the visible folders in a folder, sorted."""
  try:
    with os.scandir(folder) as entries:
      return sorted(
        e.name for e in entries if e.is_dir() and not e.name.startswith('.')
      )
  except OSError as e:
    raise UserError(f'{folder} cannot be listed: {e}') from e


@functools.cache
def _warn_once(text: str) -> None:
  logging.warning('%s', text)


def _what_else(folder: pathlib.Path) -> str:
  """Says which kinds of files lie in a folder instead of what we expected."""
  kinds = collections.Counter(
    image_files.kind(p.name) for p in folder.iterdir() if p.is_file()
  )
  return f'; {folder} has {image_files.kinds(kinds) or "no files"}'


def _first(names: list[str]) -> str:
  return ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
