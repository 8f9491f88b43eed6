"""decode_bands: .npy and TIFF images with any number of bands and any dtype."""

import io
from collections.abc import Sequence

import numpy as np

from vit_jax.data.ops._checks import is_int
from vit_jax.data.ops_language import Example, Op
from vit_jax.errors import UserError

MAX_BYTES = 2**31

_NPY = b'\x93NUMPY'
_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def decode_bands(
  bands: Sequence[int] | None = None,
  *,
  channels_first: bool = False,
  max_bytes: int = MAX_BYTES,
) -> Op:
  """Decodes `image`: the bytes of a .npy or TIFF file become `[H, W, bands]`.

  For satellite and microscope images. Numbers stay as they are in the file,
  uint8, uint16, int16 or float32: give the range in the device op, such as
  `normalize(mean=..., std=..., max_value=10_000)`. Resizing and cropping take
  them all. Other files go to `decode`.

  TIFF is read by the library tifffile (extra `tiff`): all pages of one size
  become bands, whether planar or interleaved.

  Args:
    bands: which, from 0, and in which order; None is all.
    channels_first: whether .npy files hold [bands, H, W].
    max_bytes: of the numbers in a TIFF file, which may be compressed.

  Raises:
    UserError: per example, another kind of file, a broken one, one over
      `max_bytes`, other ranks than 2 and 3, or a band that is not there.
  """
  is_list = isinstance(bands, list | tuple) and bands
  if bands is not None and not (is_list and all(is_int(b, 0) for b in bands)):
    raise UserError(f'bands is a list of numbers from 0; got {bands!r}')

  def op(example: Example, rng: np.random.Generator) -> Example:
    del rng
    image = example.get('image')
    if isinstance(image, bytes | bytearray | memoryview):
      image = _read(bytes(image), channels_first, max_bytes)
    if not isinstance(image, np.ndarray):
      raise UserError(
        f"'image' is {type(image).__name__}, no file and no array"
      )
    if image.ndim == 2:
      image = image[:, :, None]
    if image.ndim != 3 or image.dtype.kind not in 'uif' or not image.size:
      raise UserError(
        f'the image is {image.dtype}{list(image.shape)}; expected numbers '
        '[H, W] or [H, W, bands]'
      )
    if bands is not None:
      if max(bands) >= image.shape[2]:
        raise UserError(
          f'there is no band {max(bands)}: the image has {image.shape[2]}, '
          f'0 to {image.shape[2] - 1}'
        )
      image = image[:, :, list(bands)]
    # Files may hold the high byte first, which JAX does not take.
    native = image.dtype.newbyteorder('=')
    return example | {'image': np.ascontiguousarray(image, native)}

  return op


def _read(data: bytes, channels_first: bool, max_bytes: int) -> np.ndarray:
  if data.startswith(_NPY):
    try:
      array = np.load(io.BytesIO(data), allow_pickle=False)
    # The last two: it claims a size that no memory has.
    except (ValueError, EOFError, OSError, MemoryError, OverflowError) as e:
      raise UserError(f'the .npy file is broken: {e}') from e
    return np.moveaxis(array, 0, -1) if channels_first else array
  if data.startswith(_TIFF):
    return _tiff(data, max_bytes)
  start = 'is empty' if not data else f'begins with {data[:12]!r}'
  raise UserError(
    f'the file {start}: no .npy and no TIFF; the op decode reads other formats'
  )


def _tiff(data: bytes, max_bytes: int) -> np.ndarray:
  try:
    import tifffile
  except ImportError as e:
    raise UserError(
      "TIFF with many bands needs tifffile: pip install 'vit_jax[tiff]'"
    ) from e
  try:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
      series = file.series[0]
      if series.nbytes > max_bytes:
        raise ValueError(
          f'its {series.nbytes:,} bytes of numbers exceed the limit of '
          f'{max_bytes:,} (max_bytes)'
        )
      array, axes = series.asarray(), series.axes
  except Exception as e:  # its decoders raise most kinds there are
    raise UserError(f'the TIFF file cannot be read: {e}') from e
  if 'Y' not in axes or 'X' not in axes:
    raise UserError(f'the TIFF file has axes {axes}, not Y and X')
  # Samples, pages or channels: whatever is not Y or X are the bands.
  order = [axes.index('Y'), axes.index('X')]
  others = [i for i in range(array.ndim) if i not in order]
  array = array.transpose(*order, *others)
  return array.reshape(*array.shape[:2], -1)
