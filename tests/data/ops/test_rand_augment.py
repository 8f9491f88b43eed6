"""timm's RandAugment: its grammar and the laws of what it draws."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from vit_jax.data import ops_language
from vit_jax.data.ops import _pillow, _timm_policy, rand_augment
from vit_jax.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.uint8)
DEIT = 'rand-m9-mstd0.5-inc1'


def run(text, image=IMAGE, seed=0):
  op = ops_language.parse(text, trusted=True)
  return op({'image': image}, np.random.default_rng(seed))['image']


@pytest.fixture
def draws(monkeypatch):
  """Returns a function: what an op did to each of many images.

  Each is a list of (name, argument, resample).
  """
  calls = []

  def recorder(name):
    def apply(image, argument=None, resample=None, fill=None):
      calls.append((name, argument, resample))
      return image

    return apply

  kinds = {
    name: dataclasses.replace(kind, apply=recorder(name))
    for name, kind in _timm_policy.KINDS.items()
  }
  monkeypatch.setattr(_timm_policy, 'KINDS', kinds)

  def draw(text, num, seed=0):
    op, rng = (
      ops_language.parse(text, trusted=True),
      np.random.default_rng(seed),
    )
    done = []
    for _ in range(num):
      calls.clear()
      op({'image': IMAGE[:2, :2]}, rng)
      done.append(list(calls))
    return done

  return draw


def names_of(done):
  return [call[0] for image in done for call in image]


def assert_uniform(values, num_kinds):
  counts = np.unique_counts(np.array(values)).counts
  assert len(counts) == num_kinds
  assert stats.chisquare(counts).pvalue > 1e-3


def test_each_of_two_ops_is_skipped_with_probability_one_half(draws):
  done = draws(f'rand_augment({DEIT!r})', 6000)
  counts = np.bincount([len(image) for image in done], minlength=3)
  assert stats.chisquare(counts, [1500, 3000, 1500]).pvalue > 1e-3


@pytest.mark.parametrize(
  'inc, names',
  [('', rand_augment._PLAIN), ('-inc1', rand_augment._INCREASING)],
)
def test_inc_says_which_fifteen_ops(inc, names, draws):
  assert set(names_of(draws(f"rand_augment('rand-p1{inc}')", 400))) == set(
    names
  )


def test_the_fifteen_ops_are_equally_likely_and_may_come_twice(draws):
  done = draws("rand_augment('rand-inc1-p1')", 6000)
  assert_uniform(names_of(done), 15)
  assert {len(image) for image in done} == {2}
  twice = sum(a[0] == b[0] for a, b in done)
  assert stats.binomtest(twice, 6000, 1 / 15).pvalue > 1e-3


def test_magnitudes_are_normal_and_clipped(draws, monkeypatch):
  monkeypatch.setattr(rand_augment, '_PLAIN', ('Rotate',))
  done = draws("rand_augment('rand-m9-mstd0.5-n1-p1')", 6000)
  degrees = np.array([c[1] for (c,) in done])
  magnitude = np.abs(degrees) / 3
  assert magnitude.max() == 10  # where it is clipped
  at_most = np.mean(magnitude == 10)
  assert abs(at_most - stats.norm.sf(2)) < 4 * math.sqrt(0.022 / len(degrees))
  inside = magnitude[magnitude < 10]
  law = stats.truncnorm(-np.inf, 2, 9, 0.5)
  assert stats.kstest(inside, law.cdf).pvalue > 1e-3
  negative = int((degrees < 0).sum())
  assert stats.binomtest(negative, len(degrees), 0.5).pvalue > 1e-3


@pytest.mark.parametrize(
  'text, degrees',
  [('rand', 30), ('rand-m15', 30), ('rand-m15-mmax12', 36), ('rand-m8', 24)],
)
def test_a_magnitude_is_ten_unless_given_and_clipped_at_mmax(
  text, degrees, draws, monkeypatch
):
  monkeypatch.setattr(rand_augment, '_PLAIN', ('Rotate',))
  done = draws(f"rand_augment('{text}-n1-p1')", 20)
  assert {abs(c[1]) for (c,) in done} == {degrees}


def test_a_magnitude_is_not_negative(draws, monkeypatch):
  monkeypatch.setattr(rand_augment, '_PLAIN', ('Solarize',))
  done = draws("rand_augment('rand-m0-mstd2-n1-p1')", 2000)
  threshold = np.array([c[1] for (c,) in done])
  assert threshold.min() == 0
  # Below 1 / 25.6 it is 0 too.
  zero = stats.norm.cdf(1 / 25.6 / 2)
  assert stats.binomtest(int((threshold == 0).sum()), 2000, zero).pvalue > 1e-3


def test_a_deviation_over_100_is_a_uniform_magnitude(draws, monkeypatch):
  monkeypatch.setattr(rand_augment, '_PLAIN', ('ShearX',))
  done = draws("rand_augment('rand-m8-mstd101-n1-p1')", 2000)
  shear = np.array([abs(c[1]) for (c,) in done]) / 0.03
  assert stats.kstest(shear, stats.uniform(0, 8).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
  'name, m8, m9, m10',
  [
    ('Rotate', 24, 27, 30),
    ('PosterizeIncreasing', 1, 1, 0),
    ('SolarizeIncreasing', 52, 26, 0),
    ('SolarizeAdd', 88, 99, 110),
    ('ColorIncreasing', 1.72, 1.81, 1.9),
    ('ContrastIncreasing', 1.72, 1.81, 1.9),
    ('BrightnessIncreasing', 1.72, 1.81, 1.9),
    ('SharpnessIncreasing', 1.72, 1.81, 1.9),
    ('ShearX', 0.24, 0.27, 0.30),
    ('ShearY', 0.24, 0.27, 0.30),
    ('TranslateXRel', 0.36, 0.405, 0.45),
    ('TranslateYRel', 0.36, 0.405, 0.45),
    # Without inc1.
    ('Posterize', 3, 3, 4),
    ('PosterizeOriginal', 7, 7, 8),
    ('Solarize', 204, 230, 256),
    ('Color', 1.54, 1.72, 1.9),
    ('Contrast', 1.54, 1.72, 1.9),
    ('Brightness', 1.54, 1.72, 1.9),
    ('Sharpness', 1.54, 1.72, 1.9),
  ],
)
def test_magnitudes_become_the_documented_arguments(name, m8, m9, m10):
  argument = _timm_policy.KINDS[name].argument
  for magnitude, expected in ((8, m8), (9, m9), (10, m10)):
    assert argument(magnitude / 10, 0.0) == pytest.approx(expected)


def test_the_other_sign_is_the_other_direction():
  kinds = _timm_policy.KINDS
  assert kinds['Rotate'].argument(0.9, 0.6) == -27
  assert kinds['ColorIncreasing'].argument(0.9, 0.6) == pytest.approx(0.19)
  assert kinds['ColorIncreasing'].argument(1.5, 0.6) == 0.1  # never less
  # The radius of this one is random: 0.1 to twice the level.
  radius = kinds['GaussianBlurRand'].argument
  assert [radius(1.0, u) for u in (0, 0.5, 1)] == [0.1, 1.05, 2.0]
  assert radius(0.5, 1) == 1.0


def test_method_random_draws_one_of_two(draws):
  def methods(method):
    text = f"rand_augment('rand-p1', method={method!r})"
    return [c[2] for image in draws(text, 1500) for c in image if c[2]]

  assert_uniform(methods('random'), 2)
  assert set(methods('bicubic')) == {_pillow.RESAMPLE['bicubic']}
  assert set(methods('bilinear')) == {_pillow.RESAMPLE['bilinear']}


def test_a_quarter_of_the_images_pass_untouched_and_uncopied():
  op, rng = (
    ops_language.parse(f'rand_augment({DEIT!r})', trusted=True),
    np.random.default_rng(0),
  )
  same = sum(op({'image': IMAGE}, rng)['image'] is IMAGE for _ in range(2000))
  assert stats.binomtest(same, 2000, 0.25).pvalue > 1e-3


def test_ops_are_applied_in_the_order_drawn(monkeypatch):
  monkeypatch.setattr(rand_augment, '_PLAIN', ('Invert', 'SolarizeAdd'))
  dark = np.full((2, 2, 1), 100, np.uint8)
  seen = {
    int(run("rand_augment('rand-m1-p1')", dark, seed)[0, 0, 0])
    for seed in range(30)
  }
  # 100 + 11 = 111 or 255 - 100 = 155; both: 255 - 111, 155; twice: 122, 100.
  assert seen == {255 - 111, 155, 122, 100}


@pytest.mark.parametrize('shape', [(1, 1, 3), (1, 1, 1), (2, 1, 3), (5, 7, 1)])
def test_tiny_and_greyscale_images_keep_their_shape(shape):
  image = np.full(shape, 77, np.uint8)
  for seed in range(60):
    out = run("rand_augment('rand-m10-n4-p1-inc1')", image, seed)
    assert out.shape == shape and out.dtype == np.uint8


def test_exposed_corners_have_the_fill_colour(monkeypatch):
  monkeypatch.setattr(rand_augment, '_PLAIN', ('TranslateXRel',))
  for fill in ((124, 116, 104), (1, 2, 3)):
    arguments = '' if fill[0] == 124 else f', fill={fill}'
    out = run(f"rand_augment('rand-m10-p1-n1'{arguments})")
    assert any((out[:, x] == fill).all() for x in (0, -1))


@pytest.mark.parametrize(
  'text, message',
  [
    ("'m9-rand'", "it begins with 'rand'"),
    ("'rand-q3'", "'q3' is unknown or given twice"),
    ("'rand-m9-m8'", "'m8' is unknown or given twice"),
    ("'rand-m9.5'", "'m9.5' has a value that does not fit"),
    ("'rand-mstd'", "'mstd' has a value that does not fit"),
    ("'rand-mstdnan'", "'mstdnan' has a value that does not fit"),
    ("'rand-t3a'", "'t3a' is unknown"),
    ("'rand-p1.5'", 'p is 0 .. 1'),
    ('9', "it begins with 'rand'"),
    ("'rand', method='nearest'", "got 'nearest'"),
    ("'rand', fill=(1, 2)", 'three integers of 0 .. 255'),
    ("'rand', fill=(1, 2, 256)", 'three integers of 0 .. 255'),
  ],
)
def test_mistakes_in_the_text_are_named(text, message):
  with pytest.raises(UserError) as e:
    ops_language.parse(f'rand_augment({text})', trusted=True)
  assert message in str(e.value)


@pytest.mark.parametrize(
  'image',
  [
    np.zeros((4, 4, 4), np.uint8),
    np.zeros((4, 4, 2), np.uint8),
    np.zeros((4, 4, 3), np.float32),
    np.zeros((0, 4, 3), np.uint8),
  ],
)
@pytest.mark.parametrize(
  'op',
  [
    "rand_augment('rand-p0')",
    'auto_augment',
    'aug_mix',
    'three_augment',
    'randaug(0)',
    'color_jitter',
    'grayscale(0)',
    'gaussian_blur(0)',
    'solarize(0)',
  ],
)
def test_images_that_pillow_cannot_hold_are_refused_by_name(op, image):
  name = op.split('(')[0]
  with pytest.raises(UserError, match=rf'^{name}.* uint8 images of 3 channels'):
    run(op, image)
