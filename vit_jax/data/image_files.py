"""Image files: listing those of a folder, and reading one."""

import collections
import os
import pathlib
import stat
import warnings

from vit_jax.errors import UserError
from vit_jax.printable import printable

SUFFIXES = (  # In any case.
  *('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif'),
  *('.avif', '.tif', '.tiff', '.npy'),
)
_MAX_KINDS = 5


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


def below(folder: str | os.PathLike, others: collections.Counter) -> list[str]:
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
  for parent, folders, files in os.walk(folder, onerror=stop, followlinks=True):
    real = os.path.realpath(parent)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = [f for f in folders if not f.startswith('.')]
    relative = os.path.relpath(parent, folder)
    for name in files:
      if name.startswith('.'):
        continue
      if name.lower().endswith(SUFFIXES):
        found.append(os.path.normpath(os.path.join(relative, name)))
      else:
        others[kind(name)] += 1
  return sorted(found)


def kind(name: str) -> str:
  """Returns the suffix of a file's name, or the name if it has none."""
  return printable(os.path.splitext(name)[1] or name, max_length=40)


def kinds(counts: collections.Counter) -> str:
  """Returns counted kinds as text: `'3 .txt, 1 .heic'`."""
  more = ', ...' if len(counts) > _MAX_KINDS else ''
  common = counts.most_common(_MAX_KINDS)
  return ', '.join(f'{n:,} {name}' for name, n in common) + more


def read(path: str | os.PathLike) -> bytes:
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
