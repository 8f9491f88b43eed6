"""Images of all kinds, read as the evaluation of a run would read them."""

import os
import sys

import numpy as np
import PIL.Image
import pytest

from vit_jax.data.ops import decode
from vit_jax.errors import UserError
from vit_jax.inference import images


@pytest.fixture
def colour():
  """Returns uint8 [6, 4, 3]."""
  return np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def test_files_are_read_as_the_op_decode_reads_them(colour, tmp_path):
  for mode in ('RGB', 'L', 'RGBA', 'P', 'CMYK', '1'):
    path = tmp_path / f'{mode}.{"jpg" if mode == "CMYK" else "png"}'
    PIL.Image.fromarray(colour).convert(mode).save(path)
    expected = decode.decode_image(path.read_bytes())
    for ops in ('', 'decode'):
      for image in (path, path.read_bytes(), PIL.Image.open(path)):
        found = images.Reader(ops, 3).read(image)
        np.testing.assert_array_equal(found, expected, err_msg=mode)
    expected = decode.decode_image(path.read_bytes(), 1)
    for image in (path, PIL.Image.open(path)):
      found = images.Reader('', 1).read(image)
      np.testing.assert_array_equal(found, expected, err_msg=mode)


def test_photos_are_turned_upright_where_the_ops_do(colour, tmp_path):
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # To be turned by 90 degrees.
  path = tmp_path / 'a.png'
  PIL.Image.fromarray(colour).save(path, exif=exif)
  for ops, expected in (
    ('decode', colour),
    ('decode(exif_orientation=True)', np.rot90(colour, -1)),
  ):
    for image in (path, PIL.Image.open(path)):
      np.testing.assert_array_equal(images.Reader(ops, 3).read(image), expected)


def test_a_decoder_of_the_users_own_gets_the_bytes(tmp_path, monkeypatch):
  (tmp_path / 'raw_ops.py').write_text(
    'import numpy as np\n'
    'def decode_raw(size):\n'
    '  def op(example, rng):\n'
    '    flat = np.frombuffer(example["image"], np.uint8)\n'
    '    return {"image": flat.reshape(size, size, -1)}\n'
    '  return op\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  found = images.Reader('raw_ops.decode_raw(2)', 3).read(bytes(range(12)))
  np.testing.assert_array_equal(found.ravel(), range(12))
  sys.modules.pop('raw_ops')


def test_what_is_no_image_is_refused(tmp_path):
  read = images.Reader('', 3).read
  deep = PIL.Image.fromarray(np.zeros((4, 4), np.float32))
  for image, words in (
    (None, ['NoneType']),
    (np.zeros((2, 4, 4, 3), np.uint8), ['(2, 4, 4, 3)', '[H, W, C]']),
    (np.array([['a']]), ['<U1']),
    (deep, ['mode F', '8 bits']),
    (tmp_path, [str(tmp_path), 'directory']),
    (b'', ['empty']),
    (np.zeros((4, 4, 7), np.uint8), ['7 channels', 'takes 3']),
  ):
    with pytest.raises(UserError) as e:
      read(image)
    for word in words:
      assert word in str(e.value)
  with pytest.raises(UserError, match='flop_lr'):
    images.Reader('flop_lr', 3)


def test_many_bands_pass_as_they_are():
  bands = np.zeros((4, 4, 7), np.uint8)
  assert images.Reader('', 7).read(bands) is bands


def test_what_is_one_image_and_what_are_several():
  image = np.zeros((4, 4, 3), np.uint8)
  for one in (image, image[..., 0], 'a.png', b'..', PIL.Image.new('L', (2, 2))):
    assert images.as_list(one) == ([one], True)
  assert images.as_list(['a.png']) == (['a.png'], False)
  items, single = images.as_list(np.stack([image] * 3))
  assert [x.shape for x in items] == [(4, 4, 3)] * 3
  assert not single


def test_folders_give_the_images_below_them(tmp_path):
  for name in (
    'z.jpg',
    'in/b.PNG',
    'in/deep/a.jpeg',
    'in/notes.txt',
    'in/.hidden.jpg',
    '.cache/c.jpg',
    'data.bin',
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  os.symlink(tmp_path, tmp_path / 'in/loop')
  inside = ['in/b.PNG', 'in/deep/a.jpeg', 'z.jpg']
  inside = [str(tmp_path / name) for name in inside]
  assert images.find([tmp_path]) == inside
  # What is named is taken, whatever it is called, and in this order.
  named = [str(tmp_path / 'data.bin'), str(tmp_path / 'in')]
  assert images.find(named) == [named[0], *inside[:2]]


def test_paths_that_give_nothing_are_all_named(tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError) as e:
    images.find([tmp_path / 'absent.jpg', tmp_path / 'empty'])
  for word in ('absent.jpg', 'empty holds no images', '*.jpg'):
    assert word in str(e.value)
