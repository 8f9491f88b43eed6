"""Folders of images: their splits, their classes and the files below them.

Imports neither jax nor numpy, so that recipes can use it.
"""

import collections
import dataclasses
import os
import pathlib
import stat
import warnings
from collections.abc import Mapping
from typing import Any

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.printable import printable

# Names (in any case) of the folder of a split, the preferred one first.
SPLITS = {
  'train': ('train', 'training'),
  'val': ('val', 'validation', 'valid'),
  'test': ('test', 'testing'),
}
# Written last into each split by vit_jax prepare: its presence means complete.
PREPARED = 'dataset.json'
MAX_PREPARED_BYTES = 256 * 2**20  # A million names of skipped examples.
SUFFIXES = (  # Of images, in any case.
  *('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif'),
  *('.avif', '.tif', '.tiff', '.npy'),
)
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
_MAX_KINDS = 5


@dataclasses.dataclass(frozen=True)
class Layout:
  """The splits of a dataset folder.

  Attributes:
    splits: the folder of each split that exists, for example
      `{'train': 'train', 'val': 'validation'}`; keys are those of SPLITS, and
      any other name of prepared data.
    flat: whether the class folders are in the dataset folder itself, without
      splits: `image_folder` then makes 'train' and 'val'.
  """

  splits: Mapping[str, str]
  flat: bool = False


def find(root: str | os.PathLike) -> Layout:
  """Returns the layout of a folder; an empty one if it does not exist.

  Every folder that `vit_jax prepare` wrote is a split. Of others those
  named like a split are, if they have folders (their classes). One that only
  has files is a class of that name where folders with other names are beside
  it.

  Raises:
    UserError: the folder cannot be listed.
  """
  root = pathlib.Path(root).expanduser()
  if not os.path.isdir(root):
    return Layout({})
  names = subfolders(root)
  prepared = [n for n in names if os.path.isfile(root / n / PREPARED)]
  if prepared:
    return Layout({_SPLIT_OF.get(n.lower(), n): n for n in prepared})
  known = [name for name in names if name.lower() in _SPLIT_OF]
  nested = [name for name in known if is_split(root / name)]
  if not nested and len(known) < len(names):
    return Layout({}, flat=True)
  preferred, found = list(_SPLIT_OF), {}
  for name in sorted(nested or known, key=lambda n: preferred.index(n.lower())):
    found.setdefault(_SPLIT_OF[name.lower()], name)
  return Layout(found)


def is_split(folder: pathlib.Path) -> bool:
  """Whether a folder is a split: it has class folders, or was prepared."""
  if not os.path.isdir(folder):
    return False
  return os.path.isfile(folder / PREPARED) or bool(subfolders(folder))


def is_prepared(root: str | os.PathLike) -> bool:
  """Whether `vit_jax prepare` wrote a split into this folder."""
  root = pathlib.Path(root).expanduser()
  return os.path.isdir(root) and any(
    os.path.isfile(root / name / PREPARED) for name in subfolders(root)
  )


def read_prepared(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns the dataset.json of a split, or None without one.

  Raises:
    UserError: the file cannot be read.
  """
  path = folder / PREPARED
  if not path.exists():
    return None
  return files.read_json_object(path, max_bytes=MAX_PREPARED_BYTES)


def subfolders(folder: str | os.PathLike) -> list[str]:
  """Returns the names of the visible folders in a folder, sorted.

  Raises:
    UserError: the folder cannot be listed.
  """
  try:
    with os.scandir(folder) as entries:
      return sorted(
        e.name for e in entries if e.is_dir() and not e.name.startswith('.')
      )
  except OSError as e:
    raise UserError(f'{folder} cannot be listed: {e}') from e


def images_below(
  folder: str | os.PathLike, others: collections.Counter
) -> list[str]:
  """Returns the images below a folder, relative to it, sorted.

  Hidden files and folders are left out. Links to folders are followed.

  Args:
    folder: which exists.
    others: counts the visible files that are not images, by `kind`.

  Raises:
    UserError: a folder that cannot be listed.
  """

  def stop(error: OSError):
    raise UserError(f'{error.filename} cannot be listed: {error}') from error

  # Each real folder once, and none above: a link to a parent would never end.
  seen = {str(parent) for parent in pathlib.Path(folder).resolve().parents}
  found = []
  for parent, folders, names in os.walk(folder, onerror=stop, followlinks=True):
    real = os.path.realpath(parent)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = [f for f in folders if not f.startswith('.')]
    relative = os.path.relpath(parent, folder)
    for name in names:
      if name.startswith('.'):
        continue
      if name.lower().endswith(SUFFIXES):
        found.append(os.path.normpath(os.path.join(relative, name)))
      else:
        others[kind(name)] += 1
  return sorted(found)


def count_images(folder: str | os.PathLike, *, at_most: int) -> int:
  """Returns the number of images below a folder of classes, up to `at_most`.

  Raises:
    UserError: a folder that cannot be listed.
  """
  folder, count = pathlib.Path(folder).expanduser(), 0
  for name in subfolders(folder):
    count += len(images_below(folder / name, collections.Counter()))
    if count >= at_most:
      return at_most
  return count


def kind(name: str) -> str:
  """Returns the suffix of a file's name, or the name if it has none."""
  return printable(os.path.splitext(name)[1] or name, max_length=40)


def kinds(counts: collections.Counter) -> str:
  """Returns counted kinds as text: `'3 .txt, 1 .heic'`."""
  more = ', ...' if len(counts) > _MAX_KINDS else ''
  common = counts.most_common(_MAX_KINDS)
  return ', '.join(f'{n:,} {name}' for name, n in common) + more


def as_utf8(path: str) -> str:
  """Returns a path as text that any file takes, other bytes as escapes.

  A name need not be UTF-8; Python holds its other bytes as half characters.
  """
  return path.encode(errors='backslashreplace').decode()


def read_file(path: str | os.PathLike) -> bytes:
  """Returns the content of a file.

  Raises:
    OSError: it cannot be read.
    UserError: it is a device or a pipe, which might never end.
  """
  with open(path, 'rb', opener=_open) as file:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
      raise UserError('not a regular file: copy its content into one')
    return file.read()


def _open(path: str, flags: int) -> int:
  # Otherwise opening a pipe waits until somebody writes into it.
  return os.open(path, flags | os.O_NONBLOCK)


def ignore_warnings() -> None:
  """Ignores Pillow's warnings of images that are read all the same.

  In the whole process, so for the commands and their workers alone: a program
  that imports this package has warnings of its own.
  """
  for text in (
    'Image size .* exceeds limit',
    'Palette images with Transparency',
  ):
    warnings.filterwarnings('ignore', text)
