"""Images of all kinds, read as the evaluation of a run would read them."""

import os
import sys

import numpy as np
import PIL.Image
import pytest

from vit_jax.data.ops import decode
from vit_jax.data.sources import image_folder
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
  read = images.Reader('raw_ops.decode_raw(2)', 3, trusted=True).read
  found = read(bytes(range(12)))
  np.testing.assert_array_equal(found.ravel(), range(12))
  sys.modules.pop('raw_ops')


def test_other_values_than_images_are_refused(tmp_path):
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


def test_one_image_and_several_are_distinguished():
  image = np.zeros((4, 4, 3), np.uint8)
  for one in (image, image[..., 0], 'a.png', b'..', PIL.Image.new('L', (2, 2))):
    assert images.as_list(one) == ([one], True)
  assert images.as_list(['a.png']) == (['a.png'], False)
  items, single = images.as_list(np.stack([image] * 3))
  assert [x.shape for x in items] == [(4, 4, 3)] * 3
  assert not single


def test_folders_give_the_images_below_them(tmp_path):
  told = []
  for name in (
    'z.jpg',
    'in/b.PNG',
    'in/deep/a.jpeg',
    'in/deep/b.avif',
    'c.JFIF',
    'in/notes.txt',
    'in/.hidden.jpg',
    '.cache/c.jpg',
    'data.bin',
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  os.symlink(tmp_path, tmp_path / 'in/loop')
  inside = ['c.JFIF', 'in/b.PNG', 'in/deep/a.jpeg', 'in/deep/b.avif', 'z.jpg']
  inside = [str(tmp_path / name) for name in inside]
  assert images.find([tmp_path], on_log=told.append) == inside
  # What is named is taken, whatever it is called, and in this order.
  named = [str(tmp_path / 'data.bin'), str(tmp_path / 'in')]
  assert images.find(named) == [named[0], *inside[1:4]]


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path):
  for name in (
    'a.jpg',
    '1.txt',
    'in/2.txt',
    'b.HEIC',
    'cat',
    '.hidden',
    'x.\t',
  ):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
  told = []
  assert images.find([tmp_path], on_log=told.append) == [
    str(tmp_path / 'a.jpg')
  ]
  (line,) = told
  head, _, tail = line.partition(' files are left out: ')
  assert head == f'{tmp_path}: 5'
  assert tail.startswith('2 .txt, ')
  counted = set(tail.partition(';')[0].split(', '))
  assert counted == {'2 .txt', '1 .HEIC', '1 cat', r'1 .\t'}
  (tmp_path / 'a.jpg').unlink()
  with pytest.raises(UserError, match=r'holds no images .* but 2 \.txt'):
    images.find([tmp_path])


def test_predict_and_training_take_the_same_files_for_images(tmp_path):
  names = ['1.jfif', '2.avif', '3.npy', '4.TIFF', '5.heic', '6.txt', '7']
  for name in names:
    path = tmp_path / 'train' / 'cat' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  source = image_folder.Source('train', data_dir=str(tmp_path))
  found = [source.describe(i) for i in range(len(source))]
  assert images.find([tmp_path], on_log=[].append) == found
  assert len(found) == 4


def test_a_folder_behind_a_link_is_searched(tmp_path):
  for name in ('one', 'two'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'a.png').touch()
  os.symlink(tmp_path / 'two', tmp_path / 'one' / 'link')
  found = images.find([tmp_path / 'one'])
  assert [os.path.relpath(f, tmp_path / 'one') for f in found] == [
    'a.png',
    'link/a.png',
  ]


def test_devices_and_pipes_are_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  for path in ('/dev/zero', tmp_path / 'pipe.png'):
    with pytest.raises(UserError, match=f'{path} is not a regular file'):
      images.find([path])
    with pytest.raises(UserError, match='not a regular file'):
      images.Reader('decode', 3).read(path)
  # In a folder it is one image that cannot be read.
  assert images.find([tmp_path]) == [str(tmp_path / 'pipe.png')]


def test_paths_that_give_nothing_are_all_named(tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError) as e:
    images.find([tmp_path / 'absent.jpg', tmp_path / 'empty'])
  for word in ('absent.jpg', 'empty holds no images', '*.jpg'):
    assert word in str(e.value)
