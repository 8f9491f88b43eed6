"""Resampling against numbers by hand, Pillow and JAX."""

import jax
import numpy as np
import pytest
from PIL import Image

from tests.data.ops.op_runs import assert_refused, noise, parse
from vit_jax.data.ops import resize
from vit_jax.data.ops.resize import METHODS, check_growth, resample
from vit_jax.errors import UserError

# Shrinking, growing, both at once, by whole factors and by others.
SIZES = [(20, 26), (13, 17), (90, 100), (12, 100), (7, 52)]
PILLOW = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
  'lanczos': Image.Resampling.LANCZOS,
}


def pillow_resize(image, size, method):
  """Returns what Pillow makes across first, which its version 13 may not do."""
  height, width = size
  pillow = Image.fromarray(image)
  pillow = pillow.resize((width, image.shape[0]), PILLOW[method])
  return np.asarray(pillow.resize((width, height), PILLOW[method]))


def row(*values, dtype=np.float32):
  return np.array(values, dtype).reshape(1, -1, 1)


@pytest.mark.parametrize(
  'method, before, after',
  [
    ('area', (0, 2, 4, 6), (1, 5)),
    ('area', (0, 3, 6), (1, 5)),  # 3 -> 2: one pixel and a half each.
    ('bilinear', (0, 4), (0, 1, 3, 4)),  # Half-pixel centres.
    ('area', (0, 4), (0, 0, 4, 4)),  # No pixel covers both.
    ('area', (0, 4), (0, 2, 4)),  # Growing to 3: two thirds of a pixel each.
    ('area', (0, 3, 9), (0, 2, 5, 9)),  # Those between cover 1/4 and 1/2.
    ('nearest', (0, 4), (0, 0, 4, 4)),
    ('nearest', (0, 1, 2, 3, 4, 5), (1, 4)),
    # Weights 1/4 3/4 3/4 1/4 of a triangle two pixels wide, cut at the edge.
    (
      'bilinear',
      (0, 7, 7, 14),
      ((0 * 3 + 7 * 3 + 7) / 7, (7 + 7 * 3 + 42) / 7),
    ),
  ],
)
def test_values_worked_by_hand(method, before, after):
  got = resample(row(*before), (1, len(after)), method=method)
  np.testing.assert_allclose(got, row(*after), atol=1e-6)


def test_without_antialias_two_neighbours_are_read():
  got = resample(row(0, 9, 9, 2), (1, 2), antialias=False)
  np.testing.assert_allclose(got, row(4.5, 5.5), atol=1e-6)


@pytest.mark.parametrize('method', PILLOW)
@pytest.mark.parametrize('size', SIZES)
def test_float_images_agree_with_pillow(method, size):
  image = noise(40, 52, 1, dtype=np.float32)
  got = resample(image, size, method=method)
  pillow = Image.fromarray(image[:, :, 0])
  want = np.asarray(pillow.resize(size[::-1], PILLOW[method]))
  # float32 with weights of float32, values up to 255.
  np.testing.assert_allclose(got[:, :, 0], want, atol=1e-3)


@pytest.mark.parametrize('antialias', [True, False])
@pytest.mark.parametrize(
  'ours, theirs',
  [('bilinear', 'linear'), ('bicubic', 'cubic'), ('lanczos', 'lanczos3')],
)
def test_float_images_agree_with_jax(ours, theirs, antialias):
  image = noise(40, 52, 2, dtype=np.float32)
  for size in [(13, 17), (12, 100)]:
    got = resample(image, size, method=ours, antialias=antialias)
    want = jax.image.resize(image, (*size, 2), theirs, antialias=antialias)
    # jax computes positions up to 100 in float32: 1e-5 of 255.
    np.testing.assert_allclose(got, want, atol=3e-3)


@pytest.mark.parametrize('size', SIZES)
def test_uint8_images_match_pillow_across_and_then_down(size, route):
  image = noise(40, 52, 3)
  for method in PILLOW:
    got = resample(image, size, method=method)
    np.testing.assert_array_equal(got, pillow_resize(image, size, method))
    assert got.dtype == np.uint8


@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
def test_compiled_resizing_makes_pillows_pixels_at_any_size(method):
  assert resize.kernels(), 'the test extra installs Numba'
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 120, (40, 4)).tolist()
  for height, width, *size in [*sizes, (50, 24, 20, 24), (50, 24, 50, 9)]:
    # A crop: its rows lie apart in memory.
    image = noise(height, width + 7, 3)[:, 3:-4]
    got = resample(image, tuple(size), method=method)
    np.testing.assert_array_equal(got, pillow_resize(image, size, method))


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('method', PILLOW)
def test_compiled_sums_are_numpys_to_the_bit(dtype, method, monkeypatch):
  image = noise(40, 52, 2, dtype=dtype)
  sizes = [(13, 17), (12, 100), (40, 17)]
  compiled = [
    resample(image, size, method=method, antialias=False) for size in sizes
  ]
  monkeypatch.setattr(resize, 'kernels', lambda: None)
  for got, size in zip(compiled, sizes, strict=True):
    want = resample(image, size, method=method, antialias=False)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('size', SIZES)
def test_uint8_bilinear_is_within_one_level_of_exact(size):
  image = noise(40, 52, 3)
  exact = resample(image.astype(np.float32), size)
  # Pillow rounds after each of the two axes: half a level twice.
  assert np.abs(resample(image, size) - exact).max() <= 1.01


@pytest.mark.parametrize('method', PILLOW)
def test_uint8_without_antialias_is_the_rounded_exact_result(method):
  image = noise(40, 52, 3)
  got = resample(image, (13, 17), method=method, antialias=False)
  exact = resample(
    image.astype(np.float32), (13, 17), method=method, antialias=False
  )
  np.testing.assert_array_equal(got, np.clip(np.rint(exact), 0, 255))


@pytest.mark.parametrize('size', SIZES)
def test_nearest_matches_pillow(size):
  image = noise(40, 52, 3)
  want = Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST)
  got = resample(image, size, method='nearest')
  # A centre that falls between two pixels: either is right, Pillow's choice
  # varies with its rounding.
  clear_y, clear_x = (
    (2 * np.arange(new) + 1) * old % (2 * new) != 0
    for old, new in zip(image.shape, size, strict=False)
  )
  clear = clear_y[:, None] & clear_x
  np.testing.assert_array_equal(got[clear], np.asarray(want)[clear])


def test_nearest_takes_the_later_pixel_when_centres_fall_between_two():
  got = resample(row(*range(6)), (1, 3), method='nearest')
  np.testing.assert_array_equal(got, row(1, 3, 5))


@pytest.mark.parametrize('new', [1, 2, 3, 4, 5, 6, 8, 14, 20])
def test_area_is_the_mean_over_the_covered_area(new):
  image = noise(7, 1, 2, dtype=np.float32)
  fine = np.repeat(image, new, axis=0)  # Every pixel in `new` slices.
  want = fine.reshape(new, 7, 1, 2).mean(1)
  got = resample(image, (new, 1), method='area')
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_area_antialiases_the_axis_that_shrinks_while_the_other_grows():
  image = np.zeros([64, 4, 1], np.float32)
  image[::2] = 100
  np.testing.assert_allclose(resample(image, (8, 16), method='area'), 50)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('channels', [1, 2, 4, 10])
def test_channels_do_not_see_each_other(method, channels):
  image = noise(40, 52, channels)
  image[:, :, -1] = 0  # If it were taken for alpha, all would turn black.
  got = resample(image, (13, 60), method=method)
  assert got.shape == (13, 60, channels)
  for c in range(channels):
    alone = resample(image[:, :, c : c + 1], (13, 60), method=method)
    np.testing.assert_array_equal(got[:, :, c : c + 1], alone)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'float32'])
def test_a_constant_image_stays_constant_in_its_dtype(method, dtype):
  for old, new in [((1, 1), (5, 7)), ((9, 30), (4, 50)), ((300, 4), (7, 3))]:
    got = resample(np.full([*old, 3], 251, dtype), new, method=method)
    # Areas are as inexact as TensorFlow's.
    np.testing.assert_allclose(got, np.full([*new, 3], 251), rtol=5e-6)
    assert got.dtype == dtype


def test_overshoot_is_clipped_and_not_wrapped():
  edge = np.repeat(row(0, 0, 65535, 65535, dtype=np.uint16), 4, axis=0)
  got = resample(edge, (4, 16), method='bicubic')
  exact = resample(edge.astype(np.float32), (4, 16), method='bicubic')
  assert exact.min() < -100 and exact.max() > 65635  # There is overshoot.
  np.testing.assert_allclose(got, np.clip(exact, 0, 65535), atol=0.5)


def test_a_flipped_view_resizes_like_its_copy():
  image = noise(40, 52, 3)[:, ::-1]
  np.testing.assert_array_equal(
    resample(image, (20, 20)), resample(image.copy(), (20, 20))
  )


def test_the_op_takes_height_before_width_and_keeps_other_keys():
  example = {'image': noise(4, 5, 3), 'label': 7}
  op = parse('resize((8, 3), method="area")')
  got = op(example, np.random.default_rng(0))
  assert got['image'].shape == (8, 3, 3) and got['label'] == 7
  assert example['image'].shape == (4, 5, 3)


def test_an_image_of_the_right_size_is_not_touched():
  image = noise(4, 5, 3)
  assert resample(image, (4, 5), method='lanczos') is image


@pytest.mark.parametrize('size', ['0', '-3', '2.5', 'True', '(3,)', '"a"'])
def test_an_invalid_size_is_refused(size):
  assert_refused(f'resize({size})', 'positive int or a pair (height, wid')


def test_unknown_methods_are_refused():
  assert_refused("resize(3, method='cubic')", "unknown method 'cubic'; there")
  text = "resize(3, method='area', antialias=False)"
  assert_refused(text, 'always antialiases')


def test_images_that_cannot_be_resized_are_named():
  rng, op = np.random.default_rng(0), parse('resize(3)')
  with pytest.raises(UserError, match=r'empty image of shape \(0, 5, 3\)'):
    op({'image': noise(0, 5, 3)}, rng)
  with pytest.raises(UserError, match='is bytes, not an array; put decode be'):
    op({'image': b'abc'}, rng)
  with pytest.raises(UserError, match=r'\(4, 5\), not \[H, W, C\]'):
    op({'image': noise(4, 5)}, rng)


@pytest.mark.parametrize(
  'text',
  [
    'resize(100_000)',
    'resize((1, 1_000_000_000))',
    "resize_small(9000, method='area')",
    'random_crop(8, padding=1_000_000)',
    'random_crop(20_000, pad_if_needed=True)',
    "resize((1, 9_000_000), method='nearest')",
  ],
)
def test_no_op_makes_an_image_that_fills_the_memory(text):
  op, rng = parse(text), np.random.default_rng(0)
  with pytest.raises(UserError, match='max_pixels=67,108,864'):
    op({'image': np.zeros((16, 16, 3), np.uint8)}, rng)


def test_large_images_may_be_made_smaller():
  old, side = (20_000, 20_000), 8192
  for new in ((10_000, 10_000), (5_000, 20_000), (20_000, 10_000), old):
    check_growth(old, new)
  check_growth((2, 2), (side, side))
  with pytest.raises(UserError, match=r'2 x 2 .* would become 8193 x 8192'):
    check_growth((2, 2), (side + 1, side))
  with pytest.raises(UserError, match='would become 20000 x 20001'):
    check_growth(old, (20_000, 20_001))
