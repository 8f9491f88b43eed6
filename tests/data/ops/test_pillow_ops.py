"""Pixels after the ops of the policies: worked by hand, then Pillow's."""

import numpy as np
import pytest
from PIL import Image

from tests.data.ops.op_runs import noise
from vit_jax.data.ops import _pillow, resize

FILL = (9, 8, 7)
NEAREST, BILINEAR, BICUBIC = (
  _pillow.RESAMPLE[name] for name in ('nearest', 'bilinear', 'bicubic')
)


def grey(rows):
  return _pillow.to_pillow(np.array(rows, np.uint8)[:, :, None])


def pixels(image):
  return np.asarray(image).tolist()


@pytest.mark.parametrize('channels', [1, 3])
def test_an_array_becomes_a_picture_and_an_array_again(channels):
  image = noise(4, 5, channels)
  np.testing.assert_array_equal(
    _pillow.to_array(_pillow.to_pillow(image)), image
  )
  flipped = image[:, ::-1]  # not contiguous
  np.testing.assert_array_equal(
    _pillow.to_array(_pillow.to_pillow(flipped)), flipped
  )


# Of fill (9, 8, 7) the grey is (9 * 299 + 8 * 587 + 7 * 114) / 1000 = 8.2.
@pytest.mark.parametrize('resample', [NEAREST, BILINEAR, BICUBIC])
def test_geometry_by_whole_pixels_moves_pixels(resample):
  image = grey([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
  # x + 2 (y + 1/2): row y moves 2 y + 1 pixels to the left.
  assert pixels(_pillow.shear_x(image, 2.0, resample, FILL)) == [
    [2, 3, 4, 8],
    [8, 8, 8, 8],
    [8, 8, 8, 8],
  ]
  # Column x moves 2 x + 1 pixels up.
  assert pixels(_pillow.shear_y(image, 2.0, resample, FILL)) == [
    [5, 8, 8, 8],
    [9, 8, 8, 8],
    [8, 8, 8, 8],
  ]
  assert pixels(_pillow.translate_x(image, -0.25, resample, FILL)) == [
    [8, 1, 2, 3],
    [8, 5, 6, 7],
    [8, 9, 10, 11],
  ]
  assert pixels(_pillow.translate_y(image, 1 / 3, resample, FILL)) == [
    [5, 6, 7, 8],
    [9, 10, 11, 12],
    [8, 8, 8, 8],
  ]


@pytest.mark.parametrize('resample', [NEAREST, BILINEAR, BICUBIC])
def test_rotate_turns_against_the_clock(resample):
  image = grey([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
  assert pixels(_pillow.rotate(image, 90, resample, FILL)) == [
    [3, 6, 9],
    [2, 5, 8],
    [1, 4, 7],
  ]


def test_half_a_pixel_is_interpolated_by_the_kernel():
  image = grey([[0, 0, 160, 0, 0, 80, 80, 80]])
  half = -0.5 / 8
  bilinear = _pillow.translate_x(image, half, BILINEAR, FILL)
  assert pixels(bilinear)[0][1:] == [0, 80, 80, 0, 40, 80, 80]
  # Keys' cubic with a = -1 at 1/2: weights -1, 5, 5, -1 eighths.
  bicubic = _pillow.translate_x(image, half, BICUBIC, FILL)
  assert pixels(bicubic)[0][2:] == [100, 100, 0, 40, 90, 80]
  assert pixels(bicubic)[0][4] == 0  # (-160 - 80) / 8, clipped


def test_rgb_is_filled_with_the_colour():
  image = _pillow.to_pillow(noise(3, 4, 3))
  moved = np.asarray(_pillow.translate_x(image, 0.5, BICUBIC, FILL))
  assert (moved[:, 2:] == FILL).all()
  assert (moved[:, :2] == np.asarray(image)[:, 2:]).all()


@pytest.mark.parametrize('axis', ['x', 'y'])
def test_compiled_shears_and_translations_make_pillows_pixels(axis):
  assert resize.kernels(), 'the test extra installs Numba'
  rng = np.random.default_rng(0)
  for trial in range(60):
    image = _pillow.to_pillow(noise(*rng.integers(1, 60, 2), 3, seed=trial))
    slope, offset = rng.normal(scale=[0.4, 20])
    # By whole, half and hardly any pixels, and without one of the two.
    slope = (slope, 0, 0.25, slope, -1e-16)[trial % 5]
    offset = (0, offset, round(offset), offset, 0)[trial % 5]
    matrix = (1, slope, offset, 0, 1, 0)
    if axis == 'y':
      matrix = (1, 0, 0, slope, 1, offset)
    want = image.transform(
      image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=FILL
    )
    got = _pillow.affine(image, matrix, BICUBIC, FILL)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want), str(trial))


def test_other_moves_are_pillows():
  image = _pillow.to_pillow(noise(20, 30, 3))
  for matrix in (
    (2, 0, 3, 0, 1, 0),
    (1, 0, 0, 0, 0.5, 1),
    (1, 0.1, 0, 0.1, 1, 0),
  ):
    want = image.transform(
      image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=FILL
    )
    got = _pillow.affine(image, matrix, BICUBIC, FILL)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_autocontrast_stretches_each_channel():
  image = np.array([[[50, 0, 7], [100, 10, 7], [150, 20, 7]]], np.uint8)
  out = np.asarray(_pillow.autocontrast(_pillow.to_pillow(image)))
  # 50 * 255 / 100 = 127.5 and 10 * 255 / 20 = 127.5 are cut; 7 stays.
  assert out.tolist() == [[[0, 0, 7], [127, 127, 7], [255, 255, 7]]]


def test_equalize_flattens_the_histogram():
  values = np.repeat([10, 20, 30], [255, 255, 90]).astype(np.uint8)
  out = np.asarray(_pillow.equalize(grey(values.reshape(20, 30))))
  # Step (600 - 90) // 255 = 2; levels 1 // 2, (1 + 255) // 2, (1 + 510) // 2.
  assert out.reshape(-1)[[0, 300, 599]].tolist() == [0, 128, 255]


def test_tables_of_levels():
  levels = np.arange(256)
  ramp = grey(levels.reshape(16, 16))

  def table(image):
    return np.asarray(image).reshape(-1)

  np.testing.assert_array_equal(table(_pillow.invert(ramp)), 255 - levels)
  np.testing.assert_array_equal(
    table(_pillow.solarize(ramp, 26)),
    np.where(levels < 26, levels, 255 - levels),
  )
  np.testing.assert_array_equal(
    table(_pillow.solarize_add(ramp, 99)),
    np.where(levels < 128, np.minimum(levels + 99, 255), levels),
  )
  np.testing.assert_array_equal(
    table(_pillow.solarize_add(ramp, 165)),
    np.where(levels < 128, np.minimum(levels + 165, 255), levels),
  )
  for bits in range(9):
    kept = levels // 2 ** (8 - bits) * 2 ** (8 - bits)
    np.testing.assert_array_equal(table(_pillow.posterize(ramp, bits)), kept)
  # Products are cut, and clipped.
  np.testing.assert_array_equal(
    table(_pillow.brightness(ramp, 1.25)),
    np.minimum(levels * 1.25, 255).astype(int),
  )
  assert table(_pillow.brightness(ramp, 0.19))[99] == 18  # of 18.81


def test_no_bits_kept_is_black_in_all_channels():
  assert not np.asarray(
    _pillow.posterize(Image.new('RGB', (2, 2), FILL), 0)
  ).any()


def test_color_blends_with_the_luma():
  red = Image.new('RGB', (1, 1), (255, 0, 0))
  # 255 * 0.299 = 76.2.
  assert pixels(_pillow.grayscale(red)) == [[[76, 76, 76]]]
  assert pixels(_pillow.color(red, 0)) == [[[76, 76, 76]]]
  assert pixels(_pillow.color(red, 0.5)) == [[[165, 38, 38]]]  # of 165.5
  assert pixels(_pillow.color(red, 1.5)) == [[[255, 0, 0]]]


def test_contrast_turns_about_the_mean_luma():
  image = grey([[0, 200]])
  assert pixels(_pillow.contrast(image, 1.5)) == [[0, 250]]
  assert pixels(_pillow.contrast(image, 0.5)) == [[50, 150]]
  assert pixels(_pillow.contrast(grey([[0, 1]]), 0)) == [[1, 1]]  # of 0.5


def test_sharpness_turns_about_the_smoothed_image():
  image = np.zeros((5, 5), np.uint8)
  image[2, 2] = 255
  # Smoothed by ones with 5 in the centre, over 13: 98.08 and 19.6.
  out = np.asarray(_pillow.sharpness(grey(image), 0))
  assert out[2].tolist() == [0, 20, 98, 20, 0]
  out = np.asarray(_pillow.sharpness(grey(image), 0.1))
  assert out[2].tolist() == [0, 18, 113, 18, 0]  # 98 + 15.7, 20 - 2
  out = np.asarray(_pillow.sharpness(grey(image), 2))
  assert out[2].tolist() == [0, 0, 255, 0, 0]
  # The outermost pixels are not smoothed.
  edge = np.zeros((3, 3), np.uint8)
  edge[0, 0] = 130
  assert np.asarray(_pillow.sharpness(grey(edge), 0)).tolist() == [
    [130, 0, 0],
    [0, 10, 0],
    [0, 0, 0],
  ]


def test_blur_spreads_light_and_keeps_it():
  image = np.zeros((21, 21), np.uint8)
  image[10, 10] = 255
  small, large = (
    np.asarray(_pillow.blur(grey(image), radius)).astype(int)
    for radius in (0.8, 2.0)
  )
  assert small.max() > large.max() > 0
  np.testing.assert_allclose(small, small.T, atol=1)  # It rounds each axis.
  # Standard deviation of the picture of a point is the radius.
  x = np.arange(21) - 10
  for blurred, radius in ((small, 0.8), (large, 2.0)):
    deviation = np.sqrt((blurred.sum(0) * x**2).sum() / blurred.sum())
    assert abs(deviation - radius) < 0.13 * radius
  flat = grey(np.full((6, 6), 200))
  assert set(np.asarray(_pillow.blur(flat, 2.0)).reshape(-1)) == {200}


def test_hue_turns_the_circle():
  red = Image.new('RGB', (1, 1), (255, 0, 0))
  assert pixels(_pillow.hue(red, 1 / 3)) == [[[0, 255, 0]]]
  assert pixels(_pillow.hue(red, -1 / 3)) == [[[6, 0, 255]]]  # 171/255: 241.4°
  assert pixels(_pillow.hue(red, 0)) == [[[255, 0, 0]]]
  # 0.5 * 255 = 127.5 steps are cut to 127: 179.3 degrees.
  assert pixels(_pillow.hue(red, 0.5)) == [[[0, 255, 252]]]
  assert pixels(_pillow.hue(red, -0.5)) == [[[0, 246, 255]]]
  gray = grey([[1, 2]])
  assert pixels(_pillow.hue(gray, 0.4)) == [[1, 2]]
