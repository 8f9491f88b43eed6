"""RandAugment, AutoAugment and AugMix: their grammar and what they draw."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from tests.data.ops.op_runs import assert_refused, parse, run
from vit_jax.data.ops import _pillow, _timm_policy, policies
from vit_jax.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.uint8)
DEIT = 'rand-m9-mstd0.5-inc1'


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
  monkeypatch.setattr(policies, 'KINDS', kinds)

  def draw(text, num, seed=0):
    op, rng = parse(text), np.random.default_rng(seed)
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
  [('', policies._PLAIN), ('-inc1', policies._INCREASING)],
)
def test_inc_selects_among_the_fifteen_ops(inc, names, draws):
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
  monkeypatch.setattr(policies, '_PLAIN', ('Rotate',))
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
  monkeypatch.setattr(policies, '_PLAIN', ('Rotate',))
  done = draws(f"rand_augment('{text}-n1-p1')", 20)
  assert {abs(c[1]) for (c,) in done} == {degrees}


def test_a_magnitude_is_not_negative(draws, monkeypatch):
  monkeypatch.setattr(policies, '_PLAIN', ('Solarize',))
  done = draws("rand_augment('rand-m0-mstd2-n1-p1')", 2000)
  threshold = np.array([c[1] for (c,) in done])
  assert threshold.min() == 0
  # Below 1 / 25.6 it is 0 too.
  zero = stats.norm.cdf(1 / 25.6 / 2)
  assert stats.binomtest(int((threshold == 0).sum()), 2000, zero).pvalue > 1e-3


def test_a_deviation_over_100_is_a_uniform_magnitude(draws, monkeypatch):
  monkeypatch.setattr(policies, '_PLAIN', ('ShearX',))
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
  op, rng = parse(f'rand_augment({DEIT!r})'), np.random.default_rng(0)
  same = sum(op({'image': IMAGE}, rng)['image'] is IMAGE for _ in range(2000))
  assert stats.binomtest(same, 2000, 0.25).pvalue > 1e-3


def test_ops_are_applied_in_the_order_drawn(monkeypatch):
  monkeypatch.setattr(policies, '_PLAIN', ('Invert', 'SolarizeAdd'))
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
  monkeypatch.setattr(policies, '_PLAIN', ('TranslateXRel',))
  for fill in ((124, 116, 104), (1, 2, 3)):
    arguments = '' if fill[0] == 124 else f', fill={fill}'
    out = run(f"rand_augment('rand-m10-p1-n1'{arguments})", IMAGE)
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
  assert_refused(f'rand_augment({text})', message)


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


# AutoAugment.


def test_one_sub_policy_is_drawn_and_its_probabilities_hold(monkeypatch):
  monkeypatch.setitem(policies._POLICIES, '3a', 'Invert 1 0; Solarize .3 0')
  dark = np.full((1, 1, 1), 10, np.uint8)
  op, rng = parse("auto_augment('3a')"), np.random.default_rng(0)
  # Both invert 10: with chance 1/2 + 1/2 * 0.3.
  inverted = sum(
    op({'image': dark}, rng)['image'][0, 0, 0] == 245 for _ in range(3000)
  )
  assert stats.binomtest(int(inverted), 3000, 0.65).pvalue > 1e-3


def test_noise_moves_the_magnitudes_of_a_policy(monkeypatch):
  monkeypatch.setitem(policies._POLICIES, '3a', 'Brightness 1 5')
  grey = np.full((1, 1, 1), 100, np.uint8)
  plain = {int(run("auto_augment('3a')", grey, s)[0, 0, 0]) for s in range(99)}
  noisy = [
    int(run("auto_augment('3a-mstd1')", grey, s)[0, 0, 0]) for s in range(400)
  ]
  assert plain == {100}  # factor 0.1 + 0.18 * 5
  assert abs(np.std(noisy) - 18) < 2


@pytest.mark.parametrize(
  'text, message',
  [
    ("auto_augment('v1')", "unknown policy 'v1'; there are ['original'"),
    ("auto_augment('v0-m3')", "'m3' is unknown"),
    ('auto_augment(3)', 'unknown policy 3'),
    ("aug_mix('augmix-w0')", 'w and d are at least 1'),
    ("aug_mix('augmix-b1')", "'b1' is unknown"),
  ],
)
def test_unknown_policies_and_settings_are_named(text, message):
  assert_refused(text, message)


# AugMix.


def test_mixtures_are_weighted_sums():
  image = _pillow.to_pillow(np.full((1, 1, 1), 40, np.uint8))
  # 0.25 * 215 + 0.75 * 40 = 83.75, cut to 83; 0.3 * 83 + 0.7 * 40 = 52.9.
  mixed = policies._mix(
    image, [[_pillow.invert], []], np.array([0.25, 0.75]), 0.3
  )
  assert np.asarray(mixed).tolist() == [[52]]


def test_aug_mix_draws_its_weights_chains_and_share(monkeypatch):
  seen = []
  monkeypatch.setattr(
    policies, '_mix', lambda image, *rest: seen.append(rest) or image
  )
  op, rng = parse("aug_mix('augmix-w4-a2')"), np.random.default_rng(0)
  for _ in range(1500):
    op({'image': IMAGE[:1, :1]}, rng)
  lengths = [len(chain) for chains, _, _ in seen for chain in chains]
  assert stats.chisquare(np.bincount(lengths)[1:]).pvalue > 1e-3
  assert set(lengths) == {1, 2, 3} and {len(x[0]) for x in seen} == {4}
  first = [weights[0] for _, weights, _ in seen]
  assert stats.kstest(first, stats.beta(2, 6).cdf).pvalue > 1e-3
  share = [share for _, _, share in seen]
  assert stats.kstest(share, stats.beta(2, 2).cdf).pvalue > 1e-3


def test_aug_mix_draws_uniform_magnitudes_and_translates_less(monkeypatch):
  monkeypatch.setattr(policies, '_MIXED', ('TranslateXRel',))
  moved = []
  kind = policies._MIX_KINDS['TranslateXRel']
  monkeypatch.setattr(
    policies,
    '_MIX_KINDS',
    {
      'TranslateXRel': _timm_policy.Kind(
        lambda x, argument, *_: moved.append(argument) or x, kind.argument, True
      )
    },
  )
  op, rng = parse("aug_mix('augmix-m5-d1')"), np.random.default_rng(0)
  for _ in range(500):
    op({'image': IMAGE[:1, :1]}, rng)
  law = stats.uniform(-0.15, 0.3)  # +-0.3 * 5 / 10
  assert stats.kstest(moved, law.cdf).pvalue > 1e-3
