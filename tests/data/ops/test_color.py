"""Changes of colour and sharpness: their laws and what they change."""

import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tests.data.ops.op_runs import assert_refused, parse, run
from vit_jax.data import pipeline
from vit_jax.data.ops import _pillow, color

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
PICTURE = Image.fromarray(IMAGE)


def assert_uniform(counts):
  assert stats.chisquare(counts).pvalue > 1e-3


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


def test_color_jitter_leaves_out_factors_of_zero(monkeypatch):
  seen = set()
  for name in color._FUNCTIONS:
    monkeypatch.setitem(
      color._FUNCTIONS, name, lambda x, _, name=name: seen.add(name) or x
    )
  run('color_jitter(0.3, saturation=0.3)', IMAGE)
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
  np.testing.assert_array_equal(run(text.format(1), IMAGE), changed)
  always = text.replace('rate={}', '').replace('{}, ', '').format('')
  for seed in range(9):
    np.testing.assert_array_equal(run(always, IMAGE, seed), changed)


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
  ],
)
def test_mistakes_are_named(text, message):
  assert_refused(text, message)


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
