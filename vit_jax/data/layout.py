"""Layout of a dataset folder: its split folders, or classes without splits.

Imports neither jax nor numpy, so that recipes can use it.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax import files
from vit_jax.data import image_files
from vit_jax.errors import UserError

# Names (in any case) of the folder of a split, the preferred one first.
SPLITS = {
  'train': ('train', 'training'),
  'val': ('val', 'validation', 'valid'),
  'test': ('test', 'testing'),
}
# Written last into each split by vit_jax prepare: its presence means complete.
PREPARED = 'dataset.json'
MAX_PREPARED_BYTES = 256 * 2**20  # A million names of skipped examples.


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
  names = folders(root)
  prepared = [n for n in names if os.path.isfile(root / n / PREPARED)]
  if prepared:
    return Layout({_split_of(name) or name: name for name in prepared})
  known = {name: split for name in names if (split := _split_of(name))}
  nested = {n: split for n, split in known.items() if is_split(root / n)}
  if not nested and len(known) < len(names):
    return Layout({}, flat=True)
  found = {}
  for name, split in (nested or known).items():
    if split not in found or _rank(name) < _rank(found[split]):
      found[split] = name
  return Layout(found)


def is_split(folder: pathlib.Path) -> bool:
  """Whether a folder is a split: it has class folders, or was prepared."""
  if not os.path.isdir(folder):
    return False
  return os.path.isfile(folder / PREPARED) or bool(folders(folder))


def is_prepared(root: str | os.PathLike) -> bool:
  """Whether `vit_jax prepare` wrote a split into this folder."""
  root = pathlib.Path(root).expanduser()
  return os.path.isdir(root) and any(
    os.path.isfile(root / name / PREPARED) for name in folders(root)
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


def folders(folder: str | os.PathLike) -> list[str]:
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


def count_images(folder: str | os.PathLike, *, at_most: int) -> int:
  """Returns the number of images below a folder of classes, up to `at_most`.

  Links to folders are followed for classes alone; unreadable folders count as
  empty: opening the data reports them.
  """
  count = 0
  for _ in _image_names(pathlib.Path(folder).expanduser()):
    count += 1
    if count >= at_most:
      break
  return count


def _image_names(folder: pathlib.Path) -> Iterator[str]:
  suffixes = image_files.SUFFIXES
  for name in folders(folder):
    for _, below, names in os.walk(folder / name):
      below[:] = [f for f in below if not f.startswith('.')]
      visible = (f for f in names if not f.startswith('.'))
      yield from (f for f in visible if f.lower().endswith(suffixes))


def _split_of(name: str) -> str | None:
  for split, names in SPLITS.items():
    if name.lower() in names:
      return split
  return None


def _rank(name: str) -> int:
  return SPLITS[_split_of(name)].index(name.lower())
