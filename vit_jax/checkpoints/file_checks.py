"""Check of the files of a checkpoint, before anything opens them.

A checkpoint may come from somebody else. A pipe in it would be waited for, and
a device read, without end.
"""

import os
import stat

from etils import epath

from vit_jax.files import MAX_JSON_BYTES
from vit_jax.printable import printable

# The folders in which tensorstore keeps the arrays; it reads parts of a file.
_ARRAYS = 'd'


def problem(path: epath.Path, *, max_bytes: int = MAX_JSON_BYTES) -> str:
  """Returns what is wrong with the files of a checkpoint, or an empty text.

  Each must be a regular file or a folder, or a symlink to one. In a bucket
  there is nothing else.

  Args:
    path: of the folder of a checkpoint.
    max_bytes: of each file but those of arrays.

  Raises:
    OSError: a file or a folder is not there, or may not be read.
  """
  if '://' in os.fspath(path):
    return ''
  waiting, seen = [os.fspath(path)], set()
  while waiting:
    folder = waiting.pop()
    with os.scandir(folder) as entries:
      for entry in entries:
        status = entry.stat()
        if stat.S_ISDIR(status.st_mode):
          # A symlink may lead to a folder above it.
          if (status.st_dev, status.st_ino) not in seen:
            waiting.append(entry.path)
          seen.add((status.st_dev, status.st_ino))
        elif not stat.S_ISREG(status.st_mode):
          return f'{printable(entry.path)} is not a regular file'
        elif os.path.basename(folder) != _ARRAYS and status.st_size > max_bytes:
          return (
            f'{printable(entry.path)} has {status.st_size:,} bytes, and the'
            f' limit is max_bytes={max_bytes:,}'
          )
  return ''
