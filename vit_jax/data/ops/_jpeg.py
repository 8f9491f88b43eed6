"""Reading of JPEG files by libjpeg-turbo, with limits on size and scans.

libjpeg-turbo's strict mode reports data that breaks off or has a hole, which
Pillow fills with grey without an error.
"""

import itertools
import re
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg

MAGIC = b'\xff\xd8'

_COLORSPACES = {1: 'GRAY', 3: 'RGB', 4: 'RGBA'}
# Messages of libjpeg for a file that ends early, or whose data does not decode
# so that the rest of the picture is filled with grey.
_BROKEN = ('Premature end of JPEG file', 'Corrupt JPEG data')
# Stray bytes after the last block: harmless, and not rare in the wild.
_STRAY = 'extraneous bytes before marker 0xd9'
# Encoders write about ten scans. All scans of a file together may take as much
# work as so many scans of the largest picture that is read.
_SCANS_OF_LARGEST = 12
_SCAN, _END = 0xDA, 0xD9
_FRAME = struct.Struct('>HBHHB')  # Length, bits, height, width, components.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Frames with Huffman codes of one bit or more for each block and scan: their
# work is in proportion to their bytes.
_SEQUENTIAL = {0xC0, 0xC1, 0xC3}
_HUFFMAN = {0xC0, 0xC1, 0xC2, 0xC3}
# All but restarts; libjpeg ends at those below.
_MARKER = re.compile(rb'\xff[\xc0-\xcf\xd8-\xfe]')


def read(
  data: bytes, channels: int, *, max_pixels: int, max_scans: int, dct: str
) -> np.ndarray | None:
  """Returns uint8 `[H, W, channels]`, or None if Pillow has to read the file.

  The limits and `dct` are those of `decode.decode_image`.

  Pillow converts CMYK, and knows some kinds that are refused here; CMYK is
  decoded all the same, to see whether the data is whole.

  Raises:
    ValueError: the data breaks off or is corrupt, or a limit is exceeded.
  """
  components = _check_limits(data, max_pixels, max_scans)
  if components is None:
    return None
  is_cmyk = components == 4
  colorspace = 'CMYK' if is_cmyk else _COLORSPACES[channels]
  try:
    image = simplejpeg.decode_jpeg(data, colorspace, fastdct=dct == 'fast')
  except ValueError as e:
    if str(e).startswith(_BROKEN) and _STRAY not in str(e):
      raise
    return None
  return None if is_cmyk else image


def problem(data: bytes) -> str:
  """Returns why libjpeg does not read a file, such as 12 bits per sample."""
  try:
    simplejpeg.decode_jpeg(data)
  except ValueError as e:
    return str(e)
  return 'Pillow does not know it'


def _check_limits(data: bytes, max_pixels: int, max_scans: int) -> int | None:
  """Returns the number of components, or None without a header.

  Raises:
    ValueError: the file would take too much time or memory.
  """
  markers = _markers(data)
  for kind, at in markers:
    if kind in _FRAMES and len(data) >= at + _FRAME.size:
      break
  else:
    return None
  _, _, height, width, components = _FRAME.unpack_from(data, at)
  # Of sequential frames scans are not counted, of others no more than needed.
  found = (at for marker, at in markers if marker == _SCAN)
  most = 0 if kind in _SEQUENTIAL else max_scans + 1
  scans = sum(1 for _ in itertools.islice(found, most))
  pixels = height * width
  if scans > max_scans:
    raise ValueError(
      f'it has more scans than the limit of {max_scans} (max_scans)'
    )
  if pixels > max_pixels:
    raise ValueError(
      f'its {height} x {width} pixels exceed the limit of {max_pixels:,} '
      '(max_pixels)'
    )
  # One bit for each block of 8 x 8 is the least that Huffman codes take. The
  # decoder would fill gigabytes with grey before it complains.
  least = pixels // (64 * 8)
  if len(data) < least and kind in _HUFFMAN:
    raise ValueError(
      f'Premature end of JPEG file: {height} x {width} pixels take {least:,} '
      'bytes or more'
    )
  if scans * pixels > _SCANS_OF_LARGEST * max_pixels:
    raise ValueError(
      f'its {scans} scans of {height} x {width} pixels exceed the limit of '
      f'{_SCANS_OF_LARGEST} times {max_pixels:,} (max_pixels)'
    )
  return components


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
  """Yields the markers of an image before its end, and where each one ends."""
  at = len(MAGIC)
  while found := _MARKER.search(data, at):
    marker, at = data[found.start() + 1], found.end()
    if marker == _END:
      return
    yield marker, at
    # A segment begins with its length; the codes of a scan come behind one.
    at += int.from_bytes(data[at : at + 2], 'big')
