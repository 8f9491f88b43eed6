"""decode: image files to uint8 arrays."""

import functools
import io
import itertools
import re
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from vit_jax.data.ops._checks import is_int
from vit_jax.data.ops_language import Example, Op
from vit_jax.errors import UserError

# Pillow loads rare formats on demand. A second thread that needs one at that
# moment may get the error that its file is not an image: load all of them now.
Image.init()
# EPS is a program, which Pillow would have Ghostscript run.
_FORMATS = tuple(name for name in Image.ID if name != 'EPS')

MAX_PIXELS = 178_956_970  # from which on Pillow refuses to open an image
MAX_SCANS = 100

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_UPRIGHT = {  # EXIF orientation -> what turns the picture upright.
  2: lambda image: image[:, ::-1],
  3: lambda image: image[::-1, ::-1],
  4: lambda image: image[::-1],
  5: lambda image: image.swapaxes(0, 1),
  6: lambda image: image.swapaxes(0, 1)[:, ::-1],
  7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
  8: lambda image: image.swapaxes(0, 1)[::-1],
}
_JPEG = b'\xff\xd8'  # The first bytes; all below is for JPEG.
_COLORSPACES = {1: 'GRAY', 3: 'RGB', 4: 'RGBA'}
# Messages of libjpeg for a file that ends early, or whose data does not decode
# so that the rest of the picture is filled with grey.
_BROKEN = ('Premature end of JPEG file', 'Corrupt JPEG data')
# Stray bytes after the last block: harmless, and not rare in the wild.
_STRAY = 'extraneous bytes before marker 0xd9'
# Encoders write about ten scans. All scans of a file together may take as much
# work as so many scans of the largest picture that is read.
_SCANS_OF_LARGEST = 12
_SCAN, _END = 0xDA, 0xD9  # Markers.
_FRAME = struct.Struct('>HBHHB')  # Length, bits, height, width, components.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# Frames with Huffman codes of one bit or more for each block and scan: their
# work is in proportion to their bytes.
_SEQUENTIAL = {0xC0, 0xC1, 0xC3}
_HUFFMAN = {0xC0, 0xC1, 0xC2, 0xC3}
# All but restarts; libjpeg ends at those below.
_MARKER = re.compile(rb'\xff[\xc0-\xcf\xd8-\xfe]')


def decode(
  channels: int | None = None,
  *,
  exif_orientation: bool = False,
  dct: str = 'accurate',
  max_pixels: int = MAX_PIXELS,
  max_scans: int = MAX_SCANS,
) -> Op:
  """Decodes `image`: bytes become uint8 `[H, W, C]`.

  An array passes through as it is (`[H, W]` becomes `[H, W, 1]`) unless
  `channels` asks for another number of channels.

  Args:
    channels: 3 (RGB), 1 (greyscale) or 4 (RGB and alpha). None is RGB for
      encoded images, whatever the file holds, and no change for arrays.
    exif_orientation: whether photos are turned upright by their EXIF tag.
      The default does not, as the pipelines behind the published ImageNet
      numbers did not (TensorFlow, torchvision, timm, big_vision).
    dct: see `decode_image`, which also says how files are read.
    max_pixels: likewise.
    max_scans: likewise.
  """
  if channels not in (None, *_MODES):
    raise UserError(f'channels is 1, 3, 4 or None; got {channels!r}')
  if dct not in ('accurate', 'fast'):
    raise UserError(f"dct is 'accurate' or 'fast'; got {dct!r}")
  for name, limit in (('max_pixels', max_pixels), ('max_scans', max_scans)):
    if not is_int(limit, 1):
      raise UserError(f'{name} is a positive int; got {limit!r}')
  read = functools.partial(
    decode_image,
    channels=channels or 3,
    exif_orientation=exif_orientation,
    dct=dct,
    max_pixels=max_pixels,
    max_scans=max_scans,
  )

  def op(example: Example, rng: np.random.Generator) -> Example:
    del rng
    if 'image' not in example:
      raise UserError(f"the example has no 'image'; it has {sorted(example)}")
    image = example['image']
    if isinstance(image, np.ndarray) and image.ndim:
      return example | {'image': _convert(image, channels)}
    if isinstance(image, np.ndarray):
      image = image.item()  # Bytes in an array of rank 0.
    if not isinstance(image, bytes | bytearray | memoryview):
      raise UserError(
        f"'image' is {type(image).__name__}; expected the bytes of an image "
        'file, or an array'
      )
    return example | {'image': read(image)}

  return op


def decode_image(
  data: bytes,
  channels: int = 3,
  exif_orientation: bool = False,
  *,
  dct: str = 'accurate',
  max_pixels: int = MAX_PIXELS,
  max_scans: int = MAX_SCANS,
) -> np.ndarray:
  """Returns the image in an encoded file as uint8 `[H, W, channels]`.

  JPEG, PNG, WebP and what else Pillow reads, except EPS, which is a program;
  of an animation the first frame.
  Greyscale is repeated to RGB, a palette is looked up, CMYK is converted
  without a colour profile, alpha is dropped and not blended, of 16-bit samples
  the high byte is kept, RGB becomes grey by ITU-R 601. The pixels are those of
  `PIL.Image.open(...).convert(...)`, to the bit, except for 16-bit greyscale,
  which Pillow would clip at 255.

  JPEG goes through libjpeg-turbo's strict mode: 1.5 times as fast, and it
  refuses files whose data breaks off in the middle, which Pillow and OpenCV
  return with a grey remainder. That holds for every size up to the limit.

  Args:
    data: the content of the file.
    channels: 1, 3 or 4.
    exif_orientation: whether to turn the image upright by its EXIF tag.
    dct: inverse cosine transform of JPEGs: 'accurate' as in Pillow, or 'fast'
      as TensorFlow does by default. CMYK is always accurate.
    max_pixels: height times width that is read. Formats other than JPEG also
      have Pillow's own limit, twice `PIL.Image.MAX_IMAGE_PIXELS`.
    max_scans: of a progressive JPEG. Encoders write about ten; each costs time
      and may have only a few bytes. Scans times pixels are at most 12 times
      `max_pixels`.

  Raises:
    UserError: the data is empty, truncated, corrupt, not an image, or exceeds
      a limit.
  """
  data = bytes(data)
  try:
    image = None
    if data[:2] == _JPEG:
      image = _read_jpeg(
        data, channels, dct=dct, max_pixels=max_pixels, max_scans=max_scans
      )
    if image is None:
      image = _pillow(data, channels, max_pixels)
    if exif_orientation:
      image = _UPRIGHT.get(orientation(data), lambda x: x)(image)
    return image
  except Exception as e:  # Pillow's decoders raise most kinds.
    reason = f'it begins with {data[:12]!r}: {e}'
    if isinstance(e, UnidentifiedImageError):
      reason = f'no known format begins with {data[:12]!r}'
      if data[:2] == _JPEG:
        reason = f'it is a JPEG that cannot be read: {_jpeg_problem(data)}'
    if data[:6] == b'\x93NUMPY' or data[:4] in (b'II*\0', b'MM\0*'):
      reason += '; the op decode_bands reads .npy and TIFF with many bands'
    if not data:
      reason = 'the file is empty'
    raise UserError(
      f'cannot decode the image of {len(data)} bytes: {reason}'
    ) from e


def orientation(data: bytes) -> int:
  """Returns how `decode_image` shows a file: 1 upright, 2 to 8 as in EXIF."""
  with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
    if image.format == 'TIFF':  # which Pillow turns upright itself
      return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _read_jpeg(
  data: bytes, channels: int, *, max_pixels: int, max_scans: int, dct: str
) -> np.ndarray | None:
  """Returns uint8 `[H, W, channels]`, or None if Pillow has to read the file.

  Pillow converts CMYK, and knows some kinds that are refused here; CMYK is
  decoded all the same, to see whether the data is whole.

  Raises:
    ValueError: the data breaks off or is corrupt, or a limit is exceeded.
  """
  components = _check_jpeg_limits(data, max_pixels, max_scans)
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


def _jpeg_problem(data: bytes) -> str:
  """Returns why libjpeg does not read a file, such as 12 bits per sample."""
  try:
    simplejpeg.decode_jpeg(data)
  except ValueError as e:
    return str(e)
  return 'Pillow does not know it'


def _check_jpeg_limits(
  data: bytes, max_pixels: int, max_scans: int
) -> int | None:
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
  at = len(_JPEG)
  while found := _MARKER.search(data, at):
    marker, at = data[found.start() + 1], found.end()
    if marker == _END:
      return
    yield marker, at
    # A segment begins with its length; the codes of a scan come behind one.
    at += int.from_bytes(data[at : at + 2], 'big')


def _pillow(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
  with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
    if image.width * image.height > max_pixels:
      raise ValueError(
        f'its {image.height} x {image.width} pixels exceed the limit of '
        f'{max_pixels:,} (max_pixels)'
      )
    if image.format == 'PNG':
      # Decoding alone ignores checksums.
      Image.open(io.BytesIO(data)).verify()
    if image.mode.startswith('I;16') or (
      image.mode == 'I' and image.format == 'PNG'
    ):
      high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
      image = Image.fromarray(high)
    if image.mode in ('I', 'F'):
      raise ValueError(
        f'its pixels are 32-bit numbers (mode {image.mode}) of unknown range'
      )
    decoded = np.asarray(image.convert(_MODES[channels]))
  return decoded[:, :, None] if channels == 1 else decoded


def _convert(image: np.ndarray, channels: int | None) -> np.ndarray:
  """Returns an array with the channels asked for."""
  if image.ndim == 2:
    image = image[:, :, None]
  if image.ndim != 3:
    raise UserError(f"'image' has shape {image.shape}, not [H, W, C]")
  given = image.shape[2]
  if channels is None or channels == given:
    return image
  if channels == 3 and given == 1:
    return np.repeat(image, 3, axis=2)
  if channels == 3 and given == 4:
    return image[:, :, :3]
  if channels == 1 and given in (3, 4) and image.dtype == np.uint8:
    rgb = Image.fromarray(np.ascontiguousarray(image[:, :, :3]))
    return np.asarray(rgb.convert('L'))[:, :, None]
  raise UserError(
    f'cannot make {channels} channels of an array of shape {image.shape}, '
    f'{image.dtype}; without channels= arrays pass unchanged'
  )
