"""Failures of the process, and orientations; prepare has the other tests."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import ops_language
from vit_jax.data.ops import decode
from vit_jax.data.storage import inspection, shards
from vit_jax.errors import UserError


class _Source:
  """Four images, of which reading one takes more memory than there is."""

  num_classes, class_names, column_texts = 1, ['cat'], {}

  def __len__(self):
    return 4

  def __getitem__(self, index):
    if index == 2:
      raise MemoryError
    return {'image': np.zeros([2, 2, 3], np.uint8), 'label': 0}

  def describe(self, index):
    return f'image {index}'


def test_an_example_is_not_skipped_because_memory_ran_out(tmp_path):
  writer = shards.Writer(
    _Source(),
    tmp_path,
    settings={},
    skip=True,
    num_threads=1,
  )
  with pytest.raises(MemoryError):
    writer.write(0, lambda: None)
  assert not list(tmp_path.glob('*.array_record'))


def test_an_image_is_not_broken_because_memory_ran_out():
  ops = ops_language.parse('decode', trusted=True)
  with pytest.raises(MemoryError):
    inspection.scan(_Source(), ops, 1, lambda: None)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('note', ['short', 'long' * 20_000])
def test_the_orientation_is_kept(kind, note):
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by 90 degrees
  if kind != 'JPEG':  # which cannot hold the long one
    exif[0x010E] = note
  file = io.BytesIO()
  pixels = np.full((40, 60, 3), 200, np.uint8)
  Image.fromarray(pixels).save(file, kind, exif=exif)
  small = shards.shrink(file.getvalue(), 20, quality=95)
  if kind != 'TIFF':  # which is turned upright when it is read
    assert decode.decode_image(small).shape == (20, 30, 3)
  upright = decode.decode_image(small, exif_orientation=True)
  assert upright.shape == (30, 20, 3)


def test_a_file_of_bands_is_not_for_it():
  file = io.BytesIO()
  np.save(file, np.zeros([40, 60, 5], np.uint16))
  with pytest.raises(UserError, match='hold no bands: leave it out'):
    shards.shrink(file.getvalue(), 20, quality=95)
