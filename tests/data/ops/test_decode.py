"""Images decoded as Pillow reads them; broken and enormous ones are refused."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from vit_jax.data import ops_language
from vit_jax.data.ops.decode import decode_image
from vit_jax.errors import UserError


def picture(channels=3, height=61, width=83):
  """Smooth and colourful, so that JPEG keeps it."""
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / (5 + 2 * c) + c) + np.cos(y / 7) for c in range(channels)]
  return (np.stack(waves, -1) * 60 + 128).astype(np.uint8)


def encode(image, fmt, **kwargs):
  file = io.BytesIO()
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image.squeeze())
  image.save(file, fmt, **kwargs)
  return file.getvalue()


def pillow(data, mode='RGB'):
  return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def decode(image, args=''):
  example = {'image': image, 'label': 3}
  op = ops_language.parse(f'decode({args})', trusted=True)
  return op(example, np.random.default_rng(0))['image']


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize(
  'kwargs',
  [dict(subsampling=s) for s in range(3)]
  + [dict(progressive=True), dict(keep_rgb=True), dict(restart_marker_rows=1)],
)
def test_jpegs_match_pillow(kwargs, channels):
  data = encode(picture(), 'JPEG', **kwargs)
  got = decode_image(data, channels)
  want = pillow(data, {1: 'L', 3: 'RGB', 4: 'RGBA'}[channels])
  np.testing.assert_array_equal(got, want.reshape(61, 83, channels))
  assert got.dtype == np.uint8


def test_greyscale_jpeg_is_repeated_to_rgb():
  data = encode(picture(1), 'JPEG')
  image = decode(data)
  assert image.shape == (61, 83, 3)
  np.testing.assert_array_equal(image, np.repeat(image[:, :, :1], 3, axis=2))
  np.testing.assert_array_equal(decode(data, 'channels=1'), image[:, :, :1])


def test_cmyk_jpeg_becomes_rgb():
  cmyk = Image.fromarray(picture()).convert('CMYK')
  data = encode(cmyk, 'JPEG', quality=95)
  image = decode(data)
  np.testing.assert_array_equal(image, pillow(data))
  assert np.abs(image - picture().astype(int)).mean() < 8  # Not a negative.


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'LA', 'RGB', 'RGBA'])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_png_of_every_mode_gives_the_channels_asked_for(mode, channels):
  data = encode(Image.fromarray(picture()).convert(mode), 'PNG')
  want = pillow(data, {1: 'L', 3: 'RGB', 4: 'RGBA'}[channels])
  got = decode(data, f'{channels}')
  np.testing.assert_array_equal(got, want.reshape(61, 83, channels))


def test_alpha_is_dropped_and_not_blended():
  rgba = np.concatenate([picture(), np.zeros([61, 83, 1], np.uint8)], axis=-1)
  np.testing.assert_array_equal(decode(encode(rgba, 'PNG')), picture())
  np.testing.assert_array_equal(decode(encode(rgba, 'PNG'), '4'), rgba)


def test_of_16_bit_greyscale_the_high_byte_is_kept():
  deep = np.arange(61 * 83, dtype=np.uint16).reshape(61, 83) * 12
  image = decode(encode(deep, 'PNG'))
  np.testing.assert_array_equal(image, np.stack([deep >> 8] * 3, axis=-1))


def test_webp_and_the_first_frame_of_a_gif_are_read():
  data = encode(picture(), 'WEBP', lossless=True)
  np.testing.assert_array_equal(decode(data), picture())
  frames = [Image.new('L', (5, 4), color) for color in (10, 200)]
  data = encode(frames[0], 'GIF', save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(decode(data), np.full([4, 5, 3], 10))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'TIFF'])
def test_exif_orientation_is_followed_only_when_asked(fmt, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode(picture(), fmt, exif=exif)
  np.testing.assert_array_equal(decode(data), pillow(data))
  upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  got = decode(data, 'exif_orientation=True')
  np.testing.assert_array_equal(got, np.asarray(upright))


def test_arrays_pass_unchanged():
  for shape, dtype in [((4, 5, 3), 'uint8'), ((4, 5, 10), 'float32')]:
    image = np.ones(shape, dtype)
    assert decode(image) is image
  assert decode(np.ones([4, 5], np.uint8)).shape == (4, 5, 1)


def test_arrays_get_the_channels_asked_for():
  image = picture()
  grey = decode(image, '1')
  np.testing.assert_array_equal(
    grey[:, :, 0], Image.fromarray(image).convert('L')
  )
  np.testing.assert_array_equal(decode(grey, '3'), np.repeat(grey, 3, axis=2))
  np.testing.assert_array_equal(decode(picture(4), '3'), picture(4)[:, :, :3])
  with pytest.raises(UserError, match=r'cannot make 3 channels .*\(4, 5, 10\)'):
    decode(np.ones([4, 5, 10], np.uint8), '3')
  with pytest.raises(UserError, match=r'shape \(3,\)'):
    decode(np.ones([3], np.uint8))


@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF'])
def test_a_file_that_ends_early_is_an_error(fmt):
  data = encode(picture(), fmt)
  for part in (0.05, 0.3, 0.6, 0.9, 0.99):
    with pytest.raises(UserError, match='cannot decode the image of'):
      decode(data[: int(part * len(data))])


@pytest.mark.parametrize('progressive', [False, True])
def test_a_jpeg_with_a_hole_is_an_error_and_never_half_grey(progressive):
  data = encode(picture(), 'JPEG', quality=95, progressive=progressive)
  middle = len(data) // 2
  holes = [
    data[:middle] + b'\xff\xd9',  # Breaks off, but ends as a JPEG should.
    data[:middle] + data[middle + 500 :],
    data[:middle] + bytes(500) + data[middle + 500 :],
  ]
  if not progressive:
    assert pillow(holes[0]).shape == (61, 83, 3)  # Others do not notice.
  for hole in holes:
    with pytest.raises(UserError, match='cannot decode the image'):
      decode(hole)


def test_stray_bytes_at_the_end_of_a_jpeg_are_harmless():
  data = encode(picture(), 'JPEG')
  for stray in (data + b'tail' * 9, data[:-2] + b'\x01' * 300 + data[-2:]):
    np.testing.assert_array_equal(decode(stray), decode(data))


def test_a_flipped_bit_in_a_png_is_an_error():
  data = bytearray(encode(picture(), 'PNG'))
  data[len(data) // 2] ^= 1
  with pytest.raises(UserError, match='checksum'):
    decode(bytes(data))


def test_bytes_are_decoded_and_other_types_are_named():
  data = encode(picture(), 'JPEG')
  for kind in (bytearray, memoryview, lambda x: np.array(x, object)):
    np.testing.assert_array_equal(decode(kind(data)), pillow(data))
  with pytest.raises(UserError, match="'image' is str; expected the bytes"):
    decode('cat.jpg')


def test_bytes_other_than_images_are_named():
  with pytest.raises(UserError, match='0 bytes: the file is empty'):
    decode(b'')
  with pytest.raises(UserError, match=r"no known format begins with b'<html"):
    decode(b'<html>not found</html>')
  # Ghostscript would run it.
  program = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
  with pytest.raises(UserError, match=r"no known format begins with b'%!PS"):
    decode(program)
  deep = encode(Image.new('F', (5, 4)), 'TIFF')
  with pytest.raises(UserError, match=r'32-bit numbers \(mode F\)'):
    decode(deep)


@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'TIFF'])
def test_an_enormous_image_is_refused(fmt):
  data = encode(picture(), fmt)
  with pytest.raises(UserError, match=r'61 x 83 .* 5,062 \(max_pixels\)'):
    decode(data, 'max_pixels=5062')
  np.testing.assert_array_equal(decode(data, 'max_pixels=5063'), decode(data))


def test_pillows_own_limit_holds_for_other_formats(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 61 * 83 // 2 - 1)
  with pytest.raises(UserError, match='exceeds limit of 5060 pixels'):
    decode(encode(picture(), 'PNG'))


def with_size(jpeg, height, width):
  """Returns the file with another size in its header."""
  frame = max(jpeg.find(b'\xff\xc0'), jpeg.find(b'\xff\xc2')) + 5
  return jpeg[:frame] + struct.pack('>HH', height, width) + jpeg[frame + 4 :]


@pytest.mark.parametrize('progressive', [False, True])
@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_a_small_jpeg_that_claims_to_be_enormous_is_refused_at_once(
  mode, progressive
):
  image = Image.new(mode, (16, 16), 9)
  data = with_size(
    encode(image, 'JPEG', progressive=progressive), 13_000, 13_000
  )
  began = time.process_time()
  with pytest.raises(UserError, match=r'Premature end .* 13000 x 13000'):
    decode(data)
  # Filling half a gigabyte with grey takes more than one second.
  assert time.process_time() - began < 0.3


def test_the_limits_hold_for_jpegs_that_only_pillow_reads():
  # Three samples to one in a row: libjpeg's simple interface refuses it.
  data = encode(Image.new('RGB', (24, 8), (200, 9, 9)), 'JPEG', subsampling=0)
  frame = data.index(b'\xff\xc0')
  data = data[: frame + 11] + b'\x31' + data[frame + 12 :]
  np.testing.assert_array_equal(decode(data), pillow(data))
  with pytest.raises(UserError, match=r'limit of 191 \(max_pixels\)'):
    decode(data, 'max_pixels=191')
  with pytest.raises(UserError, match=r'Premature end .* 13000 x 13000'):
    decode(with_size(data, 13_000, 13_000))


def test_a_jpeg_with_colours_subsampled_fourfold_down_is_read():
  data = encode(Image.new('RGB', (8, 32)), 'JPEG', subsampling=0)
  frame, scan = data.index(b'\xff\xc0'), data.index(b'\xff\xda')
  head = data[: frame + 11] + b'\x14' + data[frame + 12 : scan]
  # Four blocks of brightness and one of each colour with the codes of
  # brightness: no difference (00), no more coefficients (1010), each.
  scan = b'\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0'
  codes = int('001010' * 6 + '1111', 2).to_bytes(5, 'big')
  image = decode(head + scan + codes + b'\xff\xd9')
  np.testing.assert_array_equal(image, np.full((32, 8, 3), 128))


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('mode', ['L', 'RGB', 'CMYK'])
def test_a_jpeg_over_pillows_warning_limit_is_read_and_checked(
  mode, monkeypatch
):
  data = encode(Image.fromarray(picture()).convert(mode), 'JPEG')
  want = pillow(data)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 61 * 83 - 1)
  np.testing.assert_array_equal(decode(data), want)
  middle = len(data) // 2
  with pytest.raises(UserError, match=r'Premature end|Corrupt'):
    decode(data[:middle] + b'\xff\xd9' + data[middle + 2 :])


def with_scans(jpeg, num):
  """Returns a progressive file whose last scan is there `num` times more."""
  last = jpeg.rindex(b'\xff\xda')
  return jpeg[:-2] + jpeg[last:-2] * num + b'\xff\xd9'


def test_a_jpeg_of_many_scans_is_refused():
  # Its image is large, and a scan takes a few bytes: seconds for kilobytes.
  data = encode(Image.new('L', (3000, 3000), 9), 'JPEG', progressive=True)
  began = time.process_time()
  with pytest.raises(UserError, match=r'limit of 100 \(max_scans\)'):
    decode(with_scans(data, 300))
  assert time.process_time() - began < 0.3
  few = encode(picture(), 'JPEG', progressive=True)  # 10 scans.
  for hidden in (few, few[:2] + b'\xff\x01' + few[2:]):
    decode(few, 'max_scans=10')
    with pytest.raises(UserError, match=r'limit of 9 \(max_scans\)'):
      decode(hidden, 'max_scans=9')


def test_scans_times_pixels_have_a_limit():
  data = encode(picture(), 'JPEG', progressive=True)
  decode(data, 'max_pixels=5063')
  with pytest.raises(UserError, match=r'13 scans of 61 x 83 .* 12 times 5,063'):
    decode(with_scans(data, 3), 'max_pixels=5063')


def test_scans_of_a_thumbnail_or_behind_the_image_do_not_count():
  data = encode(picture(), 'JPEG', progressive=True)
  inside = data[:2] + b'\xff\xe7' + struct.pack('>H', len(data) + 2) + data
  for longer in (inside + data[2:], data * 20):
    np.testing.assert_array_equal(decode(longer, 'max_scans=10'), decode(data))


def test_the_size_of_a_thumbnail_is_not_that_of_the_image():
  data, small = (
    encode(picture(), 'JPEG'),
    encode(Image.new('L', (8, 8)), 'JPEG'),
  )
  segment = b'\xff\xe1' + struct.pack('>H', len(small) + 2) + small
  with pytest.raises(UserError, match=r'61 x 83 .* 5,062 \(max_pixels\)'):
    decode(data[:2] + segment + data[2:], 'max_pixels=5062')


@pytest.mark.parametrize('limit', ['max_pixels', 'max_scans'])
@pytest.mark.parametrize('value', ['0', '1.5', 'True', 'None'])
def test_an_invalid_limit_is_an_error(limit, value):
  with pytest.raises(UserError, match=f'{limit} is a positive int; got'):
    ops_language.parse(f'decode({limit}={value})', trusted=True)


def test_an_unsupported_number_of_channels_is_an_error():
  with pytest.raises(UserError, match='channels is 1, 3, 4 or None; got 2'):
    ops_language.parse('decode(2)')
