"""Re-encoded images keep their orientation; prepare has the other tests."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.ops import decode
from vit_jax.data.storage import reencode
from vit_jax.errors import UserError


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
  small = reencode.Smaller(20)({'image': file.getvalue()})['image']
  if kind != 'TIFF':  # which is turned upright when it is read
    assert decode.decode_image(small).shape == (20, 30, 3)
  upright = decode.decode_image(small, exif_orientation=True)
  assert upright.shape == (30, 20, 3)


def test_a_file_of_bands_is_not_for_it():
  file = io.BytesIO()
  np.save(file, np.zeros([40, 60, 5], np.uint16))
  with pytest.raises(UserError, match='hold no bands: leave it out'):
    reencode.Smaller(20)({'image': file.getvalue()})
