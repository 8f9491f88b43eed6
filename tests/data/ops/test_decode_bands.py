"""Images with any number of bands."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import ops_language, pipeline
from vit_jax.errors import UserError


def _image(shape, dtype='uint16'):
  numbers = np.arange(np.prod(shape)) * 37 % 9973
  return (numbers.reshape(shape) - (2000 if dtype == 'int16' else 0)).astype(
    dtype
  )


def _npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def _tiff(array, **kwargs):
  tifffile = pytest.importorskip('tifffile')
  file = io.BytesIO()
  tifffile.imwrite(file, array, **kwargs)
  return file.getvalue()


def _decode(image, args=''):
  op = ops_language.parse(f'decode_bands({args})', trusted=True)
  return op({'image': image, 'label': 3}, np.random.default_rng(0))['image']


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'float32'])
@pytest.mark.parametrize('bands', [3, 13])
def test_npy_and_tiff_keep_every_band_and_every_number(dtype, bands):
  array = _image((5, 6, bands), dtype)
  planes = np.moveaxis(array, -1, 0)
  kinds = [
    (_npy(array), ''),
    (_npy(array.astype(array.dtype.newbyteorder('>'))), ''),
    (_npy(planes), 'channels_first=True'),
    (_tiff(array, photometric='minisblack', planarconfig='contig'), ''),
    (_tiff(planes, photometric='minisblack', planarconfig='separate'), ''),
    (_tiff(planes, photometric='minisblack', compression='zlib'), ''),  # pages
    (_tiff(array, photometric='minisblack', planarconfig='contig',
           tile=(16, 16), bigtiff=True, byteorder='>'), ''),
  ]  # fmt: skip
  for data, args in kinds:
    image = _decode(data, args)
    np.testing.assert_array_equal(image, array)
    assert image.dtype == array.dtype


def test_bands_are_chosen_in_the_order_given():
  array = _image((5, 6, 13))
  np.testing.assert_array_equal(
    _decode(_npy(array), '[3, 2, 1]'), array[:, :, [3, 2, 1]]
  )
  np.testing.assert_array_equal(_decode(array, '[0]'), array[:, :, :1])
  with pytest.raises(UserError, match='no band 13: the image has 13, 0 to 12'):
    _decode(_npy(array), '[0, 13]')
  with pytest.raises(UserError, match='bands is a list of numbers from 0'):
    _decode(_npy(array), '3')


def test_two_dimensions_are_one_band():
  assert _decode(_npy(_image((5, 6)))).shape == (5, 6, 1)
  assert _decode(_tiff(_image((5, 6)))).shape == (5, 6, 1)


def test_bytes_other_than_band_images_are_named():
  whole = _npy(_image((5, 6, 4)))
  png = io.BytesIO()
  Image.new('L', (4, 3)).save(png, 'PNG')
  for data, words in (
    (b'', 'the file is empty'),
    (png.getvalue(), 'the op decode reads other formats'),
    (whole[:100], 'the .npy file is broken'),
    (whole[:-7], 'the .npy file is broken'),
    (_npy(np.array([{}], object)), 'the .npy file is broken'),
    (_npy(np.zeros((2, 3, 4, 5))), r'float64\[2, 3, 4, 5\]; expected'),
    (_npy(np.zeros((0, 3, 4))), r'float64\[0, 3, 4\]; expected'),
    (_npy(np.zeros((3, 4), bool)), r'bool\[3, 4, 1\]; expected'),
    ('x.npy', 'is str, no file and no array'),
  ):
    with pytest.raises(UserError, match=words):
      _decode(data)


def test_a_tiff_that_ends_early_is_an_error():
  whole = _tiff(_image((50, 60, 4)), photometric='minisblack',
                planarconfig='contig', compression='zlib')  # fmt: skip
  for length in (10, 100, len(whole) // 2, len(whole) - 3):
    with pytest.raises(UserError, match='the TIFF file cannot be read'):
      _decode(whole[:length])


def test_sizes_beyond_memory_are_an_error():
  for shape in [(10**6, 10**6, 10), (10**400,), (10**9,) * 4]:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}"
    header = header.encode().ljust(1000) + b'\n'
    size = len(header).to_bytes(2, 'little')
    with pytest.raises(UserError, match=r'the \.npy file is broken'):
      _decode(b'\x93NUMPY\x01\x00' + size + header + b'123')


def test_a_tiff_that_inflates_beyond_the_limit_is_refused():
  data = _tiff(np.zeros((64, 64, 3), np.uint16), compression='zlib')
  assert len(data) < 64 * 64
  _decode(data, 'max_bytes=24_576')
  with pytest.raises(UserError, match=r'24,576 .* 24,575 \(max_bytes\)'):
    _decode(data, 'max_bytes=24_575')


def test_without_the_library_it_says_how_to_get_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tifffile', None)  # import now raises
  with pytest.raises(UserError, match=r"pip install 'vit_jax\[tiff\]'"):
    _decode(b'II*\0' + bytes(20))


def test_the_op_decode_points_here():
  op = ops_language.parse('decode')
  bands = _image((5, 6, 7))
  layout = dict(photometric='minisblack', planarconfig='contig')
  for data in (_npy(bands), _tiff(bands, **layout)):
    with pytest.raises(UserError, match='decode_bands'):
      op({'image': data}, np.random.default_rng(0))


def test_a_folder_of_them_trains(tmp_path):
  arrays = [_image((12, 10, 5)) + i for i in range(4)]
  for i, array in enumerate(arrays):
    path = tmp_path / 'train' / 'ab'[i % 2] / f'{i}.npy'
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
  data = dict(name='image_folder', split='train', data_dir=str(tmp_path))
  (batch,) = pipeline.EvalInput(
    data=data, ops='decode_bands([4, 0])|resize(8)', batch_size=4
  )
  assert batch['image'].shape == (4, 8, 8, 2)
  assert batch['image'].dtype == np.uint16
  assert batch['image'].max() > 255
