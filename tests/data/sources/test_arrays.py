"""Images and labels in an npz file."""

import os
import struct
import zipfile

import numpy as np
import pytest

from vit_jax.data.sources import arrays
from vit_jax.errors import UserError

_IMAGES = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
_LABELS = np.array([0, 1, 2, 2, 1, 0])


def _write(path, **content):
  defaults = {'train_images': _IMAGES, 'train_labels': _LABELS}
  np.savez(path, **(defaults | content))
  return str(path)


def test_examples_are_the_rows_of_the_arrays(tmp_path):
  path = _write(tmp_path / 'a.npz', class_names=['x', 'y', 'z'])
  source = arrays.Source('train', path=path)
  assert len(source) == 6
  assert (source.num_classes, source.class_names) == (3, ['x', 'y', 'z'])
  example = source[4]
  np.testing.assert_array_equal(example['image'], _IMAGES[4])
  assert example['label'] == 1
  assert source.describe(4) == f'{path}: train_images[4]'


def test_medmnist_gray_images_and_labels_in_a_column_are_understood(tmp_path):
  path = _write(
    tmp_path / 'a.npz',
    train_images=_IMAGES[..., 0],
    train_labels=_LABELS[:, None].astype(np.uint8),
  )
  example = arrays.Source('train', path=path)[3]
  assert example['image'].shape == (4, 4, 1)
  assert example['label'] == 2


def test_float_images_and_label_vectors_come_as_float32(tmp_path):
  vectors = np.eye(6, 5)
  path = _write(
    tmp_path / 'a.npz', train_images=_IMAGES / 255, train_labels=vectors
  )
  source = arrays.Source('train', path=path)
  assert source.num_classes == 5
  assert source[2]['image'].dtype == source[2]['label'].dtype == np.float32
  np.testing.assert_allclose(source[2]['image'], _IMAGES[2] / 255, rtol=1e-6)
  np.testing.assert_array_equal(source[2]['label'], vectors[2])


def test_the_number_of_classes_comes_from_the_training_labels(tmp_path):
  path = _write(tmp_path / 'a.npz', test_images=_IMAGES[:2], test_labels=[0, 1])
  assert arrays.Source('test', path=path).num_classes == 3
  assert arrays.Source('test', path=path, num_classes=9).num_classes == 9


def test_a_test_label_outside_the_classes_is_named(tmp_path):
  path = _write(
    tmp_path / 'a.npz', test_images=_IMAGES[:3], test_labels=[0, 7, -1]
  )
  with pytest.raises(UserError, match=r'3 classes 0\.\.2: \[-1, 7\]'):
    arrays.Source('test', path=path)


def test_a_missing_split_lists_the_splits_of_the_file(tmp_path):
  path = _write(tmp_path / 'a.npz')
  with pytest.raises(
    UserError, match='no test_images and no test_labels; it has: train_images'
  ):
    arrays.Source('test', path=path)


def test_a_missing_file_lists_the_expected_arrays(tmp_path):
  with pytest.raises(UserError, match=r'no file .*train_images and train_'):
    arrays.Source('train', path=str(tmp_path / 'none.npz'))


def test_a_file_other_than_npz_is_named(tmp_path):
  (tmp_path / 'a.npz').write_text('hello')
  with pytest.raises(UserError, match=r'a\.npz cannot be read as an npz'):
    arrays.Source('train', path=str(tmp_path / 'a.npz'))
  np.save(tmp_path / 'b.npy', _IMAGES)
  with pytest.raises(
    UserError, match=r'cannot be read as an npz.* not a zip file'
  ):
    arrays.Source('train', path=str(tmp_path / 'b.npy'))
  _write(tmp_path / 'c.npz')
  whole = (tmp_path / 'c.npz').read_bytes()
  (tmp_path / 'c.npz').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match='cannot be read as an npz'):
    arrays.Source('train', path=str(tmp_path / 'c.npz'))


def test_all_mismatches_are_reported_at_once(tmp_path):
  path = _write(
    tmp_path / 'a.npz',
    train_images=_IMAGES.astype(np.int64),
    train_labels=_LABELS[:4] + 0.5,
  )
  with pytest.raises(UserError) as error:
    arrays.Source('train', path=path)
  for part in ('images are int64', 'labels are float64', '6 images but 4'):
    assert part in str(error.value)


def test_the_names_say_how_many_classes_there_are(tmp_path):
  path = _write(tmp_path / 'a.npz', class_names=list('abcde'))
  source = arrays.Source('train', path=path)
  assert (source.num_classes, source.class_names) == (5, list('abcde'))
  path = _write(tmp_path / 'a.npz', class_names=['crane', 'eel', 'crane'])
  assert arrays.Source('train', path=path).num_classes == 3
  path = _write(tmp_path / 'b.npz', class_names=['a'])
  with pytest.raises(UserError, match=r'b\.npz: labels of split'):
    arrays.Source('train', path=path)
  with pytest.raises(
    UserError, match='num_classes=3, but there are 1 class_na'
  ):
    arrays.Source('train', path=path, num_classes=3)


def test_arrays_without_content_are_refused(tmp_path):
  path = _write(tmp_path / 'a.npz', train_images=_IMAGES[:, :0])
  with pytest.raises(UserError, match='have no pixels'):
    arrays.Source('train', path=path)
  soft = np.full([len(_LABELS), 3], np.nan)
  path = _write(tmp_path / 'b.npz', train_labels=soft)
  with pytest.raises(UserError, match='not all of them numbers'):
    arrays.Source('train', path=path)
  with zipfile.ZipFile(tmp_path / 'c.npz', 'w') as file:
    file.writestr('train_images.npy', b'no array')
    file.writestr('train_labels.npy', b'no array')
  with pytest.raises(
    UserError, match=r'c\.npz cannot be read as an npz .*magic string'
  ):
    arrays.Source('train', path=str(tmp_path / 'c.npz'))


def test_a_slice_takes_a_part(tmp_path):
  path = _write(tmp_path / 'a.npz')
  parts = [arrays.Source(f'train[{s}]', path=path) for s in (':4', '4:')]
  names = [p.describe(i) for p in parts for i in range(len(p))]
  assert [len(p) for p in parts] == [4, 2]
  assert len(set(names)) == 6


@pytest.mark.parametrize(
  ('signature', 'offset', 'value', 'reason'),
  [  # Bytes of the central directory, and the first of a deflate stream.
    (b'PK\x01\x02', 8, 1, 'it is encrypted'),
    (b'PK\x01\x02', 10, 99, 'compressed by method 99'),
    (b'train_labels.npy', 16 + 20, 255, 'while decompressing data'),
  ],
)
def test_a_damaged_npz_is_named(tmp_path, signature, offset, value, reason):
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, train_images=_IMAGES, train_labels=_LABELS)
  content = bytearray(path.read_bytes())
  content[content.index(signature) + offset] = value
  path.write_bytes(content)
  with pytest.raises(UserError, match=rf'a\.npz cannot be read .*{reason}'):
    arrays.Source('train', path=str(path))


@pytest.mark.parametrize(
  'shape', [(10**5, 10**5, 3, 1), (10**7, 10**7, 3, 1), (10**30, 3, 3, 1)]
)
def test_claimed_sizes_allocate_no_memory(tmp_path, shape):
  header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n"
  start = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header))
  with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as file:
    for name in ('train_images', 'train_labels'):
      file.writestr(f'{name}.npy', start + header.encode() + b'few')
  with pytest.raises(UserError, match=r'claims the shape .* and has 3 bytes'):
    arrays.Source('train', path=str(tmp_path / 'a.npz'))


def test_a_small_file_with_large_arrays_needs_a_limit_that_allows_them(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(arrays, 'SMALL_BYTES', 2**16)
  path = str(tmp_path / 'a.npz')
  images = np.zeros([100, 64, 64], np.uint8)
  np.savez_compressed(
    path, train_images=images, train_labels=np.zeros(100, int)
  )
  with pytest.raises(UserError, match='max_ratio=100 and max_bytes'):
    arrays.Source('train', path=path)
  assert len(arrays.Source('train', path=path, max_ratio=1000)) == 100
  with pytest.raises(UserError, match='max_ratio=1000 and max_bytes=99,999'):
    arrays.Source('train', path=path, max_ratio=1000, max_bytes=99_999)
  # An array that no one asked for does not count.
  _write(path, extra=np.zeros(2**20))
  assert len(arrays.Source('train', path=path, max_bytes=99_999)) == 6


def test_a_pipe_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'a.npz')
  with pytest.raises(UserError, match=r'a\.npz: it is a pipe'):
    arrays.Source('train', path=str(tmp_path / 'a.npz'))


def test_optional_arrays_of_another_kind_are_refused(tmp_path):
  path = _write(tmp_path / 'a.npz', class_names='cat')
  with pytest.raises(UserError, match=r'class_names have the shape \(\)'):
    arrays.Source('train', path=path)
  path = _write(
    tmp_path / 'b.npz',
    train_labels=list('abcdef'),
    test_images=_IMAGES,
    test_labels=_LABELS,
  )
  with pytest.raises(UserError, match='train_labels are <U1; expected numbers'):
    arrays.Source('test', path=path)
