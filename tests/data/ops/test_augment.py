"""The other augmentations: policies, colours, several views."""

import functools
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vit_jax.data import ops_language, pipeline
from vit_jax.data.ops import (
  _pillow,
  _timm_policy,
  aug_mix,
  auto_augment,
  color,
)
from vit_jax.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
PICTURE = Image.fromarray(IMAGE)
parse = functools.partial(ops_language.parse, trusted=True)


def run(text, seed=0, image=IMAGE):
  op = parse(text)
  return op({'image': image}, np.random.default_rng(seed))['image']


def assert_uniform(counts):
  assert stats.chisquare(counts).pvalue > 1e-3


# AutoAugment.


@pytest.mark.parametrize('name', ['original', 'originalr', 'v0', 'v0r'])
def test_policies_have_25_pairs_of_ops(name):
  policy = auto_augment.sub_policies(name)
  assert [len(pair) for pair in policy] == [2] * 25


def test_policies_hold_what_the_papers_print():
  original = auto_augment.sub_policies('original')
  assert original[0] == [('PosterizeOriginal', 0.4, 8), ('Rotate', 0.6, 9)]
  assert original[18] == [('ShearX', 0.6, 5), ('Equalize', 1, 9)]
  v0 = auto_augment.sub_policies('v0')
  assert v0[22] == [('Posterize', 0.8, 2), ('Solarize', 0.6, 10)]
  assert v0[24] == [('Color', 0.8, 6), ('Rotate', 0.4, 5)]
  r = auto_augment.sub_policies('v0r')
  assert r[22] == [('PosterizeIncreasing', 0.8, 2), ('Solarize', 0.6, 10)]


def test_one_sub_policy_is_drawn_and_its_probabilities_hold(monkeypatch):
  monkeypatch.setitem(auto_augment._POLICIES, '3a', 'Invert 1 0; Solarize .3 0')
  dark = np.full((1, 1, 1), 10, np.uint8)
  op, rng = parse("auto_augment('3a')"), np.random.default_rng(0)
  # Both invert 10: with chance 1/2 + 1/2 * 0.3.
  inverted = sum(
    op({'image': dark}, rng)['image'][0, 0, 0] == 245 for _ in range(3000)
  )
  assert stats.binomtest(int(inverted), 3000, 0.65).pvalue > 1e-3


def test_noise_moves_the_magnitudes_of_a_policy(monkeypatch):
  monkeypatch.setitem(auto_augment._POLICIES, '3a', 'Brightness 1 5')
  grey = np.full((1, 1, 1), 100, np.uint8)
  plain = {int(run("auto_augment('3a')", s, grey)[0, 0, 0]) for s in range(99)}
  noisy = [
    int(run("auto_augment('3a-mstd1')", s, grey)[0, 0, 0]) for s in range(400)
  ]
  assert plain == {100}  # factor 0.1 + 0.18 * 5
  assert abs(np.std(noisy) - 18) < 2


@pytest.mark.parametrize(
  'config, message',
  [
    ("'v1'", "unknown policy 'v1'; there are ['original'"),
    ("'v0-m3'", "'m3' is unknown"),
    ('3', 'unknown policy 3'),
  ],
)
def test_unknown_policies_are_named(config, message):
  with pytest.raises(UserError) as e:
    parse(f'auto_augment({config})')
  assert message in str(e.value)


# DeiT III.


@pytest.mark.parametrize('op', ['three_augment', "auto_augment('3a')"])
def test_three_augment_does_one_of_three_equally_often(op):
  grey = np.asarray(_pillow.grayscale(PICTURE))
  solar = np.asarray(_pillow.solarize(PICTURE, 128))
  counts, rng = [0, 0, 0], np.random.default_rng(0)
  op = parse(op)
  for _ in range(900):
    out = op({'image': IMAGE}, rng)['image']
    matches = [(out == grey).all(), (out == solar).all()]
    counts[matches.index(True) if any(matches) else 2] += 1
  assert_uniform(counts)


def test_the_radius_of_the_blur_is_uniform(monkeypatch):
  radii = []
  monkeypatch.setattr(_pillow, 'blur', lambda x, r: radii.append(r) or x)
  for text in ('three_augment', 'gaussian_blur'):
    radii.clear()
    op, rng = parse(text), np.random.default_rng(0)
    for _ in range(1500):
      op({'image': IMAGE[:2, :2]}, rng)
    assert stats.kstest(radii, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    assert 0.1 <= min(radii) < 0.12 and 1.98 < max(radii) <= 2.0


# AugMix.


def test_mixtures_are_weighted_sums():
  image = _pillow.to_pillow(np.full((1, 1, 1), 40, np.uint8))
  # 0.25 * 215 + 0.75 * 40 = 83.75, cut to 83; 0.3 * 83 + 0.7 * 40 = 52.9.
  mixed = aug_mix.mix(
    image, [[_pillow.invert], []], np.array([0.25, 0.75]), 0.3
  )
  assert np.asarray(mixed).tolist() == [[52]]


def test_aug_mix_draws_its_weights_chains_and_share(monkeypatch):
  seen = []
  monkeypatch.setattr(
    aug_mix, 'mix', lambda image, *rest: seen.append(rest) or image
  )
  op, rng = parse("aug_mix('augmix-w4-a2')"), np.random.default_rng(0)
  for _ in range(1500):
    op({'image': IMAGE[:1, :1]}, rng)
  lengths = [len(chain) for chains, _, _ in seen for chain in chains]
  assert_uniform(np.bincount(lengths)[1:])
  assert set(lengths) == {1, 2, 3} and {len(x[0]) for x in seen} == {4}
  first = [weights[0] for _, weights, _ in seen]
  assert stats.kstest(first, stats.beta(2, 6).cdf).pvalue > 1e-3
  share = [share for _, _, share in seen]
  assert stats.kstest(share, stats.beta(2, 2).cdf).pvalue > 1e-3


def test_aug_mix_draws_uniform_magnitudes_and_translates_less(monkeypatch):
  monkeypatch.setattr(aug_mix, '_NAMES', ('TranslateXRel',))
  moved = []
  kind = _timm_policy.translating(0.3)['TranslateXRel']
  monkeypatch.setattr(
    aug_mix,
    '_KINDS',
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
  with pytest.raises(UserError, match='w and d are at least 1'):
    parse("aug_mix('augmix-w0')")
  with pytest.raises(UserError, match="'b1' is unknown"):
    parse("aug_mix('augmix-b1')")


# Colours.


def test_color_jitter_draws_factors_and_their_order(monkeypatch):
  calls = []
  for name in color._FUNCTIONS:
    monkeypatch.setitem(
      color._FUNCTIONS,
      name,
      lambda x, factor, name=name: calls.append((name, factor)) or x,
    )
  op = parse('color_jitter(0.4, 1.5, (0.5, 3), 0.1, rate=0.8)')
  rng, changed, orders = np.random.default_rng(0), 0, []
  factors = {name: [] for name in color._FUNCTIONS}
  for _ in range(3000):
    calls.clear()
    op({'image': IMAGE[:1, :1]}, rng)
    changed += bool(calls)
    if calls:
      orders.append(tuple(name for name, _ in calls))
      for name, factor in calls:
        factors[name].append(factor)
  assert stats.binomtest(changed, 3000, 0.8).pvalue > 1e-3
  all_orders = list(itertools.permutations(color._FUNCTIONS))
  assert_uniform([orders.count(order) for order in all_orders])
  for name, low, high in (
    ('brightness', 0.6, 1.4),
    ('contrast', 0, 2.5),  # not below 0
    ('saturation', 0.5, 3),
    ('hue', -0.1, 0.1),
  ):
    law = stats.uniform(low, high - low)
    assert stats.kstest(factors[name], law.cdf).pvalue > 1e-3


def test_color_jitter_has_a_function_for_each_colour():
  red = np.full((1, 2, 3), (255, 0, 0), np.uint8)
  red[0, 1] = 255, 255, 255
  # Of red the luma is 76, the mean with white (76 + 255) / 2 = 165.5.
  assert run('color_jitter(saturation=(0, 0))', image=red)[0, 0].tolist() == [
    76,
    76,
    76,
  ]
  assert set(run('color_jitter(contrast=(0, 0))', image=red).flat) == {166}
  green = run('color_jitter(hue=(0.333334, 0.333334))', image=red)
  assert green.tolist() == [[[0, 255, 0], [255, 255, 255]]]


def test_color_jitter_leaves_out_what_is_not_asked_for(monkeypatch):
  seen = set()
  for name in color._FUNCTIONS:
    monkeypatch.setitem(
      color._FUNCTIONS, name, lambda x, _, name=name: seen.add(name) or x
    )
  run('color_jitter(0.3, saturation=0.3)')
  assert seen == {'brightness', 'saturation'}


def test_color_jitter_changes_colours_one_after_the_other():
  grey = np.full((1, 1, 1), 100, np.uint8)
  assert run('color_jitter((1.5, 1.5), (0, 0))', image=grey).item() in (
    150,
    100,
  )
  assert run('color_jitter((1.5, 1.5))', image=grey).item() == 150


@pytest.mark.parametrize(
  'text, changed',
  [
    ('grayscale({})', _pillow.grayscale(PICTURE)),
    ('solarize({})', _pillow.solarize(PICTURE, 128)),
    ('solarize({}, threshold=60)', _pillow.solarize(PICTURE, 60)),
    ('gaussian_blur({}, radius=(1.5, 1.5))', _pillow.blur(PICTURE, 1.5)),
    (
      'color_jitter((0.5, 0.5), rate={})',
      _pillow.brightness(PICTURE, 0.5),
    ),
  ],
)
def test_rates_are_probabilities_of_being_changed(text, changed):
  op, rng = parse(text.format(0.3)), np.random.default_rng(0)
  count = 0
  for _ in range(1000):
    out = op({'image': IMAGE}, rng)['image']
    is_changed = (out == np.asarray(changed)).all()
    assert is_changed or out is IMAGE
    count += is_changed
  assert stats.binomtest(int(count), 1000, 0.3).pvalue > 1e-3
  np.testing.assert_array_equal(run(text.format(1)), changed)
  always = text.replace('rate={}', '').replace('{}, ', '').format('')
  for seed in range(9):
    np.testing.assert_array_equal(run(always, seed), changed)


@pytest.mark.parametrize(
  'text, message',
  [
    ('color_jitter(-0.1)', 'brightness is a number of at least 0'),
    ('color_jitter(hue=0.6)', 'within -0.5 .. 0.5; got 0.6'),
    ('color_jitter(contrast=(2, 1))', 'got (2, 1)'),
    ('color_jitter(rate=2)', 'rate is a probability'),
    ('grayscale(-1)', 'rate is a probability'),
    ('solarize(threshold=300)', 'integer of 0 .. 256; got 300'),
    ('gaussian_blur(radius=2)', 'radius is a pair'),
    ('three_augment(radius=(2, 1))', 'radius is a pair'),
    ('multi_crop(num_local=-1)', 'num_local is 0, 1, 2'),
    ("multi_crop(global_ops='flip_lr')", 'a text for each view'),
    ("multi_crop(local_ops='flop_lr')", "unknown op 'flop_lr'"),
  ],
)
def test_mistakes_are_named(text, message):
  with pytest.raises(UserError) as e:
    parse(text)
  assert message in str(e.value)


# Several views.


def test_multi_crop_makes_global_and_local_views():
  op = parse('multi_crop(16, num_local=3, local_size=(8, 6))')
  example = op({'image': IMAGE, 'label': 5}, np.random.default_rng(0))
  assert example.keys() == {'image', 'local_image', 'label'}
  assert example['image'].shape == (2, 16, 16, 3)
  assert example['local_image'].shape == (3, 8, 6, 3)
  assert example['image'].dtype == example['local_image'].dtype == np.uint8
  views = example['local_image'].reshape(3, -1)
  assert len(np.unique(views, axis=0)) == 3
  example = parse('multi_crop(16, num_local=0)')(
    {'image': IMAGE}, np.random.default_rng(0)
  )
  assert example.keys() == {'image'}


def test_multi_crop_has_dinos_laws_for_each_view(monkeypatch):
  blurred, solarized, grey, flipped = [], [], [], []
  position = np.tile(np.arange(40, dtype=np.uint8), (40, 1))[:, :, None]
  monkeypatch.setattr(_pillow, 'blur', lambda x, r: blurred.append(x.size) or x)
  monkeypatch.setattr(
    _pillow, 'solarize', lambda x, t: solarized.append((x.size, t)) or x
  )
  monkeypatch.setattr(_pillow, 'grayscale', lambda x: grey.append(x.size) or x)
  colors = dict.fromkeys(color._FUNCTIONS, lambda x, _: x)
  monkeypatch.setattr(color, '_FUNCTIONS', colors)
  op, rng = (
    parse('multi_crop(9, local_size=5)'),
    np.random.default_rng(0),
  )
  for _ in range(400):
    views = op({'image': position}, rng)['local_image'].astype(int)
    flipped += list(views[:, 0, 0, 0] > views[:, 0, -1, 0])
  for seen, size, num, law in (
    (blurred, (9, 9), 400, None),
    (blurred, (5, 5), 3200, 0.5),
    (grey, (9, 9), 800, 0.2),
    (grey, (5, 5), 3200, 0.2),
    (solarized, ((9, 9), 128), 400, 0.2),
    (flipped, True, 3200, 0.5),
  ):
    count = seen.count(size)
    if law is None:  # always in the first view, and a tenth of the second
      law, count = 0.1, count - 400
    assert stats.binomtest(count, num, law).pvalue > 1e-3
  assert not solarized.count(((5, 5), 128))


def test_multi_crop_takes_its_crops_from_the_scales():
  y, x = np.indices((100, 100))
  image = np.stack([y, x, 0 * x], -1).astype(np.uint8)

  def sides(text, key):
    views = parse(text)({'image': image}, np.random.default_rng(0))[key].astype(
      int
    )
    return np.ptp(views[..., :2], axis=(1, 2))

  none = "global_ops=('', ''), local_ops='', num_local=50"
  large = sides(f'multi_crop(20, global_scale=(0.9, 1), {none})', 'image')
  small = sides(
    f'multi_crop(20, local_size=20, local_scale=(0.01, 0.02), {none})',
    'local_image',
  )
  assert large.min() > 75 and small.max() < 20


def test_views_of_several_images_make_a_batch():
  data = dict(name='synthetic', split='train', num_examples=8, image_size=16)
  ops = "multi_crop(12, num_local=2, local_size=6, method='bilinear')"
  train_input = pipeline.TrainInput(data=data, ops=ops, batch_size=4, seed=0)
  batch = next(train_input.batches())
  assert batch['image'].shape == (4, 2, 12, 12, 3)
  assert batch['local_image'].shape == (4, 2, 6, 6, 3)
  assert train_input.element_spec()['local_image'].shape == (4, 2, 6, 6, 3)


@pytest.mark.parametrize(
  'ops',
  [
    "rand_augment('rand-m9-mstd0.5-inc1')",
    'three_augment|color_jitter(0.3, 0.3, 0.3)',
    'randaug(2, 15)|aug_mix|auto_augment',
  ],
)
def test_batches_do_not_depend_on_the_number_of_threads(ops):
  data = dict(name='synthetic', split='train', num_examples=20, image_size=16)
  one, many = (
    [
      batch
      for batch, _ in zip(
        pipeline.TrainInput(
          data=data, ops=ops, batch_size=16, seed=3, num_threads=num
        ).batches(),
        range(3),
        strict=False,
      )
    ]
    for num in (0, 5)
  )
  for a, b in zip(one, many, strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])
    np.testing.assert_array_equal(a['index'], b['index'])
