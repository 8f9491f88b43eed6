"""TensorFlow 2.21: stored checksums of its pixels, and itself if installed.

`scripts/compare_tensorflow.py` does the same with photos.
"""

import base64
import zlib

import numpy as np
import pytest

from tests.data.ops.op_runs import noise, run
from vit_jax.data.ops.resize import resample

# Shrinking, growing, both at once, and one axis alone.
SIZES = [(13, 17), (90, 100), (12, 100), (40, 17), (61, 52), (7, 52)]
# CRC-32 of the float32 that tf.image.resize makes of `noise()`.
FLOATS = dict(
  area=[634568614, 3901822389, 2886351692, 298989307, 1067090143, 3465820684],
  bilinear=[
    3927580430,
    1518112387,
    3807852201,
    604173202,
    2330830744,
    1901826496,
  ],
)
# Of a 24 x 24 JPEG of noise, with subsampled colours.
JPEG = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVt
qeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpK
SkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wAARCAAYABgDASIAAhEBAxEB/
8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQR
BRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUp
TVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5us
LDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAA
AECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHB
CSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ
3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4u
Pk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwByq0TOqnOWO9gp4IxnpkEn3x2pkZjMjEqjFcAb8
ktjqc9iev4cetOYZZmiQ7SpYY4JIPPv370j7ZVZULOzKNxXnGOT+tC1V2D7sl3ZTBLeWvIbpkd8D1+v
HXj1KhkcI5JKlm6EZyDj27/5+pS1T0HbzsPU7lxvAlxnAJBOTz198f8A1uzGGdwG7gkgAcAZH+fbBoo
pptyaMudrUcrR4YlTkHHXO0ccfgfxxzRRRWU3qaN8r0P/2Q==
"""
DECODED = 3515347379


def options(method):
  return dict(method=method, antialias=method == 'area')


@pytest.mark.parametrize('method', FLOATS)
def test_resized_floats_are_tensorflows_to_the_bit(method, route):
  image = noise(40, 52, 3).astype(np.float32)
  for size, expected in zip(SIZES, FLOATS[method], strict=True):
    got = resample(image, size, **options(method))
    assert zlib.crc32(got.tobytes()) == expected, size
    assert got.dtype == np.float32


@pytest.mark.parametrize('method', FLOATS)
def test_truncate_cuts_the_floats_to_whole_levels(method, route):
  image = noise(40, 52, 3)
  for size in SIZES:
    exact = resample(image.astype(np.float32), size, **options(method))
    got = resample(image, size, **options(method), truncate=True)
    np.testing.assert_array_equal(got, np.floor(exact))
    if method == 'area':  # Pillow computes some of the others.
      got = resample(image, size, method=method)
      np.testing.assert_array_equal(got, np.rint(exact))


@pytest.mark.parametrize('method', ['bicubic', 'lanczos', 'bilinear'])
def test_truncate_clips_overshoot(method):
  image = np.repeat(np.uint8([0, 0, 255, 255]), 4).reshape(4, 4, 1)
  exact = resample(image.astype(np.float32), (16, 4), method=method)
  got = resample(image, (16, 4), method=method, truncate=True)
  np.testing.assert_array_equal(got, np.floor(np.clip(exact, 0, 255)))
  assert got.min() == 0 and got.max() == 255


def test_every_resizing_op_takes_truncate():
  image = noise(40, 52, 3)
  cut = resample(image, (20, 26), method='area', truncate=True)
  assert (cut != resample(image, (20, 26), method='area')).any()
  for text in (
    "resize((20, 26), method='area', truncate=True)",
    "resize_small(20, method='area', truncate=True)",
    "random_resized_crop((20, 26), method='area', scale=(1, 1), ratio=(1.3, 1.3"
    '), truncate=True)',
  ):
    np.testing.assert_array_equal(run(text, image), cut)


def test_the_fast_transform_is_tensorflows_default():
  data = base64.b64decode(JPEG)
  fast = run("decode(dct='fast')", data)
  assert zlib.crc32(fast.tobytes()) == DECODED
  off = run('decode', data) - fast.astype(int)
  assert 0 < np.abs(off).max() < 30


def test_the_longer_side_is_rounded_in_float32():
  # 224 / 192 * 195 is 227.5, and less than that in float32.
  assert run('resize_small(224)', noise(192, 195, 1)).shape == (224, 227, 1)


def test_tensorflow_itself_agrees():
  tf = pytest.importorskip('tensorflow')
  data = base64.b64decode(JPEG)
  np.testing.assert_array_equal(
    run("decode(dct='fast')", data), tf.image.decode_image(data).numpy()
  )
  for shape in [(40, 52, 3), (61, 7, 1), (300, 401, 3)]:
    image = noise(*shape)
    for size in [*SIZES, (256, 191)]:
      for method in FLOATS:
        want = tf.image.resize(image, size, method=method)
        got = resample(image.astype(np.float32), size, **options(method))
        np.testing.assert_array_equal(got, want)
        got = resample(image, size, **options(method), truncate=True)
        np.testing.assert_array_equal(got, tf.cast(want, tf.uint8))
