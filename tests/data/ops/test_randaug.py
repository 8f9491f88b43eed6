"""big_vision's RandAugment."""

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tests.data.ops.op_runs import assert_refused, parse, run
from vit_jax.data.ops import _pillow, randaug

NAMES = (
  'AutoContrast Equalize Invert Rotate Posterize Solarize Color Contrast '
  'Brightness Sharpness ShearX ShearY TranslateX TranslateY Cutout SolarizeAdd'
).split()
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


class Chance:
  """A generator whose next number is known."""

  def __init__(self, number):
    self.number = number

  def random(self):
    return self.number

  def integers(self, high):
    return int(self.number * high)


def apply(name, magnitude, image, *, flavour='fixed', chance=0.0):
  op = randaug.table(magnitude, flavour)[name]
  return _pillow.to_array(op(_pillow.to_pillow(image), Chance(chance)))


def levels(name, magnitude, flavour='fixed'):
  return apply(name, magnitude, RAMP, flavour=flavour).reshape(-1).astype(int)


def as_tensorflow(image, matrix):
  """Samples the nearest pixel with the origin in a pixel centre; fill 128."""
  height, width, _ = image.shape
  a, b, c, d, e, f = matrix
  y, x = np.indices((height, width))
  column = np.floor(a * x + b * y + c + 0.5).astype(int)
  row = np.floor(d * x + e * y + f + 0.5).astype(int)
  inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
  out = image[row.clip(0, height - 1), column.clip(0, width - 1)]
  return np.where(inside[:, :, None], out, 128)


def test_the_table_has_the_sixteen_ops():
  assert list(randaug.table(10, 'fixed')) == NAMES


def test_geometry_samples_the_nearest_pixel_as_tensorflow_does():
  image = np.random.default_rng(0).integers(0, 100, (99, 120, 3), np.uint8)
  for chance, sign in ((0.2, 1), (0.7, -1)):
    for name, matrix in (
      ('ShearX', (1, sign * 0.3, 0, 0, 1, 0)),  # half pixels in row 5, 15, ...
      ('ShearY', (1, 0, 0, sign * 0.3, 1, 0)),
      ('TranslateX', (1, 0, sign * 100, 0, 1, 0)),
      ('TranslateY', (1, 0, 0, 0, 1, sign * 100)),
    ):
      got = apply(name, 10, image, chance=chance)
      np.testing.assert_array_equal(got, as_tensorflow(image, matrix))
    # Rotation by 27 degrees about the middle of the pixel centres; where a
    # position is half-way between pixels, rounding decides.
    cos, sin = np.cos(np.radians(27)), sign * np.sin(np.radians(27))
    x, y = 119 / 2, 98 / 2
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    got = apply('Rotate', 9, image, chance=chance)
    same = (got == as_tensorflow(image, matrix)).all(-1)
    assert same.mean() > 0.99


def test_levels_follow_the_magnitude_without_a_cap():
  factor = 0.1 + 0.18 * 15  # 2.8
  expected = np.minimum(
    np.arange(256, dtype='f4') * np.float32(factor), 255
  ).astype(int)
  np.testing.assert_array_equal(levels('Brightness', 15), expected)
  np.testing.assert_array_equal(levels('Posterize', 10), np.arange(256) & 0xF0)
  np.testing.assert_array_equal(levels('Posterize', 15), np.arange(256) & 0xFC)
  np.testing.assert_array_equal(levels('Posterize', 20), np.arange(256))
  # TensorFlow shifts uint8 by 7 bits at most.
  np.testing.assert_array_equal(levels('Posterize', 0), np.arange(256) & 0x80)
  added = np.where(np.arange(256) < 128, np.arange(256) + 110, np.arange(256))
  np.testing.assert_array_equal(levels('SolarizeAdd', 10), added)
  # Bits and additions are cut: int(3.6), and 165, more than timm's 128.
  np.testing.assert_array_equal(levels('Posterize', 9), np.arange(256) & 0xE0)
  added = np.where(np.arange(256) < 128, np.arange(256) + 165, np.arange(256))
  np.testing.assert_array_equal(
    levels('SolarizeAdd', 15), np.minimum(added, 255)
  )


@pytest.mark.parametrize(
  'magnitude, flavour, threshold',
  [
    (9, 'fixed', 230),
    (10, 'fixed', 256),
    (15, 'fixed', 256),
    (20, 'fixed', 256),
    (9, 'compat', 230),
    (10, 'compat', 0),
    (15, 'compat', 128),
    (20, 'compat', 0),
    (0, 'fixed', 0),
  ],
)
def test_the_threshold_of_solarize_wraps_in_compat(
  magnitude, flavour, threshold
):
  v = np.arange(256)
  np.testing.assert_array_equal(
    levels('Solarize', magnitude, flavour), np.where(v < threshold, v, 255 - v)
  )


def test_contrast_turns_about_a_constant_in_compat():
  dark = np.full((224, 224, 3), 20, np.uint8)
  # Factor 0.1: 196 + 0.1 * (20 - 196) = 178.4, against 20.
  assert set(apply('Contrast', 0, dark, flavour='compat').flat) == {178}
  assert set(apply('Contrast', 0, dark).flat) == {20}
  # 384 * 384 / 256 = 576 is cut to 255: 255 - 0.1 * 235.
  large = np.full((384, 384, 1), 20, np.uint8)
  assert set(apply('Contrast', 0, large, flavour='compat').flat) == {231}
  # 230 * 230 / 256 = 206.6 is cut: 206 - 0.1 * 186.
  middle = np.full((230, 230, 1), 20, np.uint8)
  assert set(apply('Contrast', 0, middle, flavour='compat').flat) == {187}
  # The mean 0.75 is cut to 0, where Pillow's Contrast makes it 1.
  ones = np.array([[[0], [1], [1], [1]]], np.uint8)
  assert not apply('Contrast', 0, ones).any()


def test_the_two_flavours_differ_in_nothing_else():
  for magnitude in (0, 10, 15, 20):
    for name in NAMES:
      one, other = (
        apply(name, magnitude, IMAGE, flavour=flavour)
        for flavour in ('fixed', 'compat')
      )
      if name not in ('Solarize', 'Contrast'):
        np.testing.assert_array_equal(one, other)


def test_cutout_greys_a_square_around_a_pixel():
  image = np.zeros((30, 40, 3), np.uint8)
  got = apply('Cutout', 2, image, chance=0.5)  # half a side: 8; at (20, 15)
  expected = image.copy()
  expected[15 - 8 : 15 + 8, 20 - 8 : 20 + 8] = 128
  np.testing.assert_array_equal(got, expected)
  got = apply('Cutout', 0.7, image, chance=0.5)  # int(2.8) = 2
  assert (got != 0).all(-1).sum() == 16
  got = apply('Cutout', 2, image, chance=0)  # at the corner
  assert (got != 0).all(-1).sum() == 64 and (got[:8, :8] == 128).all()
  assert not image.any()


def test_ops_are_pillows_where_tensorflow_copied_them():
  picture = Image.fromarray(IMAGE)
  for name, expected in (
    ('AutoContrast', _pillow.autocontrast(picture)),
    ('Equalize', _pillow.equalize(picture)),
    ('Invert', _pillow.invert(picture)),
    ('Color', _pillow.color(picture, 1.9)),
    ('Sharpness', _pillow.sharpness(picture, 1.9)),
  ):
    np.testing.assert_array_equal(apply(name, 10, IMAGE), np.asarray(expected))


def test_every_layer_applies_one_op_and_all_are_equally_likely(monkeypatch):
  drawn = []
  names = {n: lambda x, rng, n=n: drawn.append(n) or x for n in NAMES}
  monkeypatch.setattr(randaug, 'table', lambda *_: names)
  op, rng = parse('randaug(3, 10)'), np.random.default_rng(0)
  for _ in range(2000):
    op({'image': IMAGE}, rng)
  assert len(drawn) == 6000
  counts = [drawn.count(name) for name in NAMES]
  assert stats.chisquare(counts).pvalue > 1e-3


def test_defaults_are_two_ops_at_ten_without_the_slips():
  for seed in range(20):
    full = run("randaug(2, 10, flavour='fixed')", IMAGE, seed)
    np.testing.assert_array_equal(run('randaug', IMAGE, seed), full)


def test_directions_are_equally_likely():
  op, rng = randaug.table(1, 'fixed')['TranslateX'], np.random.default_rng(0)
  picture = _pillow.to_pillow(np.zeros((1, 20, 1), np.uint8))
  right = sum(np.asarray(op(picture, rng))[0, 0] == 128 for _ in range(1000))
  assert stats.binomtest(int(right), 1000, 0.5).pvalue > 1e-3


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('flavour', ['fixed', 'compat'])
def test_one_pixel_is_enough(channels, flavour):
  image = np.full((1, 1, channels), 50, np.uint8)
  for seed in range(40):
    out = run(f'randaug(4, 15, flavour={flavour!r})', image, seed)
    assert out.shape == image.shape and out.dtype == np.uint8


@pytest.mark.parametrize(
  'arguments, message',
  [
    ('2.5', 'num_layers is 0, 1, 2, ...; got 2.5'),
    ('-1', 'num_layers is 0, 1, 2, ...; got -1'),
    ('2, -3', 'at least 0; got -3'),
    ('2, 1e999', 'at least 0; got inf'),
    ("2, 'm9'", "got 'm9'"),
    ("flavour='timm'", "flavour is one of ('fixed', 'compat'); got 'timm'"),
  ],
)
def test_mistakes_are_named(arguments, message):
  assert_refused(f'randaug({arguments})', message)
