"""An .npz inflates within limits, which are arguments."""

import io
import zipfile

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained.formats import npz


def test_each_limit_of_decompression_is_named(tmp_path, monkeypatch):
  path = tmp_path / 'x.npz'
  np.savez_compressed(path, a=np.zeros(100_000, np.float32))  # 400 kB in 0.6.
  # Small enough to be read however it compresses.
  arrays, _ = npz.read_arrays(path)
  np.testing.assert_array_equal(arrays['a'], np.zeros(100_000))
  with pytest.raises(UserError, match=r'to 400,128 bytes, .* max_bytes=1,000'):
    npz.read_arrays(path, max_bytes=1000)
  monkeypatch.setattr(npz, 'SMALL_BYTES', 1000)
  with pytest.raises(UserError, match=r'400,128 bytes, .* max_ratio=20 '):
    npz.read_arrays(path)
  assert npz.read_arrays(path, max_ratio=1000)[0].keys() == {'a'}


def test_compressed_arrays_of_a_trained_model_are_within_the_limit(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(npz, 'SMALL_BYTES', 0)
  trained = np.random.default_rng(0).normal(size=9000).astype(np.float32)
  head = np.zeros(9000, np.float32)  # As fine-tuning starts with.
  np.savez_compressed(tmp_path / 'x.npz', trained=trained, head=head)
  arrays, _ = npz.read_arrays(tmp_path / 'x.npz')
  np.testing.assert_array_equal(arrays['trained'], trained)


def test_an_array_is_not_allocated_before_its_bytes_are_counted(tmp_path):
  out = io.BytesIO()
  np.save(out, np.zeros(4, np.float32))
  content = out.getvalue().replace(b'(4,)', b'(9999999999999,)')
  content = content.replace(b' ' * 12, b'', 1)
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
    archive.writestr('a.npy', content)
  with pytest.raises(UserError, match=r'claims .*9999999999999.* 16 bytes'):
    npz.read_arrays(tmp_path / 'x.npz')
