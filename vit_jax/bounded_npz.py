"""Bounded reading of the arrays in an .npz file from outside.

Nothing here allocates what a number in a file claims.
"""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection

import numpy as np

# What zipfile, zlib and numpy raise for broken files.
BROKEN = (
  *(OSError, ValueError, EOFError, RuntimeError, MemoryError, OverflowError),
  *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


def check_members(
  members: Collection[zipfile.ZipInfo],
  size: int,
  *,
  max_ratio: float,
  max_bytes: int,
  small_bytes: int,
) -> None:
  """Checks that members of a zip file can be read within limits.

  Args:
    members: those that will be read.
    size: of the file in bytes.
    max_ratio: by how much the members may be larger than the file, if they have
      over `small_bytes`.
    max_bytes: that all members together may have.
    small_bytes: see `max_ratio`.

  Raises:
    ValueError: they are encrypted, in another compression than zlib's, twice
      there, or larger than the limits.
  """
  total = sum(member.file_size for member in members)
  limit = min(max_bytes, max(small_bytes, max_ratio * size))
  if total > limit:
    raise ValueError(
      f'it inflates from {size:,} to {total:,} bytes, and the limits are'
      f' max_ratio={max_ratio:g} and max_bytes={max_bytes:,}'
    )
  if len({member.filename for member in members}) < len(members):
    raise ValueError('two parts have the same name')
  for member in members:
    if member.flag_bits & 1:
      raise ValueError('it is encrypted')
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise ValueError(
        f'it is compressed by method {member.compress_type}, and only 0'
        ' (stored) and 8 (deflated) are read'
      )


def read_array(
  archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, allow_empty: bool
) -> np.ndarray:
  """Returns an array once its header is known to claim what is there.

  Raises:
    ValueError, or another of BROKEN: there is no such array, it holds Python
      objects, or it is empty and may not be.
  """
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
      raise ValueError(f'{member.filename!r} in it has a header {version}')
    read_header = np.lib.format.read_array_header_1_0
    if version == (2, 0):
      read_header = np.lib.format.read_array_header_2_0
    try:
      shape, _, dtype = read_header(file)
    except RecursionError as e:
      raise ValueError(f'{member.filename!r} in it has no header') from e
    held = member.file_size - file.tell()
  if dtype.hasobject:
    raise ValueError(f'{member.filename!r} in it holds Python objects')
  if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != held:
    raise ValueError(
      f'{member.filename!r} in it claims the shape {_shape(shape)} of {dtype}'
      f' and has {held:,} bytes'
    )
  if not held and not allow_empty:
    raise ValueError(f'{member.filename!r} in it is empty: {_shape(shape)}')
  with archive.open(member) as file:
    return np.lib.format.read_array(file, allow_pickle=False)


def _shape(shape: tuple[int, ...]) -> str:
  # A number of over 4,300 digits cannot be written.
  return '(' + ', '.join(str(n) if n < 2**64 else 'huge' for n in shape) + ')'
