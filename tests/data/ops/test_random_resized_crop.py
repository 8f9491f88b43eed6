"""The laws of random boxes, and their limits."""

import numpy as np
import pytest
from scipy import stats

from tests.data.ops.op_runs import assert_refused, noise, run
from vit_jax.data.ops.geometry import (
  _tensorflow_box as tensorflow_box,
  _torchvision_box as torchvision_box,
)
from vit_jax.data.ops.resize import resample

LAWS = [torchvision_box, tensorflow_box]


class Counting:
  """A generator that counts how often a number is drawn from a range."""

  def __init__(self):
    self.rng, self.draws = np.random.default_rng(0), 0

  def uniform(self, *args):
    self.draws += 1
    return self.rng.uniform(*args)

  def integers(self, *args):
    return self.rng.integers(*args)


def boxes(
  law, shape=(1000, 1000), scale=(0.1, 0.3), ratio=(0.75, 1.33), n=2000
):
  rng = np.random.default_rng(0)
  drawn = np.array([law(*shape, scale, ratio, rng) for _ in range(n)])
  top, left, height, width = drawn.T
  assert np.all(top >= 0) and np.all(top + height <= shape[0])
  assert np.all(left >= 0) and np.all(left + width <= shape[1])
  return top, left, height, width


def assert_uniform(values, low, high):
  # Both laws accept each draw at these sizes, so that the distribution is
  # exact up to rounding to pixels; the seed is fixed.
  unit = (values - low) / (high - low)
  assert stats.kstest(unit, 'uniform').pvalue > 0.01


def test_torchvision_draws_area_uniformly_and_aspect_log_uniformly():
  _, _, height, width = boxes(torchvision_box)
  assert_uniform(height * width / 1e6, 0.1, 0.3)
  assert_uniform(np.log(width / height), np.log(0.75), np.log(1.33))
  assert abs(np.corrcoef(height * width, width / height)[0, 1]) < 0.06


def test_tensorflow_draws_aspect_uniformly_and_then_height_uniformly():
  _, _, height, width = boxes(tensorflow_box)
  aspect = width / height
  assert_uniform(aspect, 0.75, 1.33)
  assert_uniform(height, np.sqrt(1e5 / aspect), np.sqrt(3e5 / aspect))


@pytest.mark.parametrize('law', LAWS)
def test_positions_are_uniform(law):
  top, left, height, width = boxes(law)
  assert_uniform(top, 0, 1000 - height)
  assert_uniform(left, 0, 1000 - width)


def test_tensorflow_draws_smaller_boxes():
  # Squares from 1/25 of the area to all of it: the mean area is the mean of
  # 0.04 .. 1 for one law, and the mean of h^2 for h in 0.2 .. 1 for the other.
  means = {}
  for law in LAWS:
    _, _, height, width = boxes(law, scale=(0.04, 1), ratio=(1, 1))
    means[law] = (height * width).mean() / 1e6
  assert means[torchvision_box] == pytest.approx(0.52, abs=0.02)
  assert means[tensorflow_box] == pytest.approx(0.992 / 2.4, abs=0.02)


@pytest.mark.parametrize('law', LAWS)
@pytest.mark.parametrize('shape', [(30, 40), (200, 17), (5, 5), (1, 1)])
def test_boxes_of_any_image_stay_inside_the_limits(law, shape):
  _, _, height, width = boxes(law, shape, (0.3, 0.9), (0.75, 1.33), n=300)
  assert height.min() >= 1 and width.min() >= 1
  if shape == (30, 40):
    area = height * width / 1200
    assert 0.26 < area.min() < 0.35 and 0.8 < area.max() < 0.94


def test_after_ten_attempts_torchvision_takes_the_largest_central_box():
  for shape, box in [
    ((10, 1000), (0, 490, 10, 20)),  # Width at most twice the height.
    ((1000, 10), (490, 0, 20, 10)),
  ]:
    rng = Counting()
    assert torchvision_box(*shape, (0.9, 1), (0.5, 2), rng) == box
    assert rng.draws == 20  # Area and aspect, ten times.


def test_the_fallback_of_torchvision_is_rounded_to_the_nearest():
  rng = Counting()
  # 8 * 4 / 3 = 10.7; and 10.7 high.
  assert torchvision_box(8, 1000, (0.9, 1), (3 / 4, 4 / 3), rng)[3] == 11
  assert torchvision_box(1000, 8, (0.9, 1), (3 / 4, 4 / 3), rng)[2] == 11


def test_after_ten_attempts_torchvision_takes_the_image_if_its_aspect_fits():
  # A quarter more than fits: never accepted.
  got = torchvision_box(10, 10, (1, 1), (1.5, 1.5), Counting())
  assert got == (1, 0, 7, 10)
  assert torchvision_box(10, 10, (1, 1), (0.5, 0.9), Counting()) == (
    0,
    0,
    10,
    9,
  )


def test_after_a_hundred_attempts_tensorflow_takes_the_whole_image():
  rng = Counting()
  assert tensorflow_box(10, 1000, (0.9, 1), (1, 1), rng) == (0, 0, 10, 1000)
  assert rng.draws == 100


@pytest.mark.parametrize(
  'smallest, largest, shares',
  [
    # Heights 9, 10, 11 are drawn; 9 x 9 is too small and becomes 10.
    (9.4, 11.4, {10: 2 / 3, 11: 1 / 3}),
    # Heights 9, 10, 11 are drawn; 11 x 11 is too large and becomes 10.
    (8.9, 10.6, {9: 1 / 3, 10: 2 / 3}),
  ],
)
def test_tensorflow_moves_a_height_whose_rounded_area_is_outside(
  smallest, largest, shares
):
  scale = smallest**2 / 400, largest**2 / 400
  _, _, height, width = boxes(tensorflow_box, (20, 20), scale, (1, 1))
  np.testing.assert_array_equal(height, width)
  drawn = dict(zip(*np.unique(height, return_counts=True), strict=True))
  # 2000 draws: four standard deviations are 0.042.
  assert drawn.keys() == shares.keys()
  assert all(abs(drawn[h] / 2000 - shares[h]) < 0.045 for h in shares)


def test_tensorflow_takes_the_largest_height_whose_rounded_width_fits():
  # Of 200 pixels at least 20, 3.9 high; 8 * 1.3 = 10.4 still fits in 10.
  _, _, height, width = boxes(tensorflow_box, (20, 10), (0.1, 1), (1.3, 1.3))
  drawn = dict(zip(height.tolist(), width.tolist(), strict=True))
  assert drawn == {4: 5, 5: 6, 6: 8, 7: 9, 8: 10}
  counts = np.bincount(height)[4:]
  assert stats.chisquare(counts).pvalue > 1e-3


def test_tensorflow_rejects_boxes_rounded_out_of_the_image():
  # Only 11 x 11 has an area in 105 .. 125, and the image is 10 high.
  got = tensorflow_box(10, 100, (0.105, 0.125), (1, 1), Counting())
  assert got == (0, 0, 10, 100)


def test_tensorflow_areas_stay_inside_the_limits_to_the_pixel():
  _, _, height, width = boxes(tensorflow_box, (30, 40), (0.3, 0.9))
  assert np.all(0.3 * 1200 <= height * width)
  assert np.all(height * width <= 0.9 * 1200)


def test_tensorflow_never_places_a_box_at_the_last_row_or_column():
  places = {}
  for law in LAWS:
    top, left, height, width = boxes(law, (12, 12), (0.69, 0.7), (1, 1), n=200)
    assert set(height) == set(width) == {10}
    places[law] = set(top), set(left)
  assert places[torchvision_box] == ({0, 1, 2}, {0, 1, 2})
  assert places[tensorflow_box] == ({0, 1}, {0, 1})


@pytest.mark.parametrize(
  'args, law, scale, ratio',
  [
    ('', torchvision_box, (0.08, 1), (3 / 4, 4 / 3)),
    (', sampling="tensorflow"', tensorflow_box, (0.05, 1), (0.75, 1.33)),
    (', scale=(0.5, 0.6), ratio=[1, 2]', torchvision_box, (0.5, 0.6), (1, 2)),
  ],
)
def test_the_op_cuts_the_box_of_its_law_and_resizes_it(args, law, scale, ratio):
  image = noise(50, 70, 3)
  for seed in range(5):
    box = law(50, 70, scale, ratio, np.random.default_rng(seed))
    top, left, height, width = box
    cut = image[top : top + height, left : left + width]
    got = run(f'random_resized_crop((16, 24){args})', image, seed)
    np.testing.assert_array_equal(got, resample(cut, (16, 24)))


def test_the_method_is_handed_on():
  image = noise(50, 70, 3)
  for how in ('method="area"', 'antialias=False', 'method="bicubic"'):
    whole = 'scale=(1, 1), ratio=(1.4, 1.4)'
    np.testing.assert_array_equal(
      run(f'random_resized_crop(16, {whole}, {how})', image),
      run(f'resize(16, {how})', image),
    )


@pytest.mark.parametrize(
  'args, message',
  [
    ('scale=0.08', 'scale is a pair (smallest, largest) of positive numbers'),
    ('scale=(5, 100)', 'scale is a fraction of the area, at most 1; got (5, '),
    ('scale=(0.5, 0.1)', 'scale is a pair (smallest, largest)'),
    ('ratio=(0, 1)', 'ratio is a pair (smallest, largest)'),
    ('sampling="tf"', "there are ['torchvision', 'tensorflow']"),
    ('method="cubic"', "unknown method 'cubic'"),
  ],
)
def test_bad_arguments_are_refused(args, message):
  assert_refused(f'random_resized_crop(224, {args})', message)
