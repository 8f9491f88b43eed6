"""Learning rates against an independent NumPy oracle and published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.optim import schedules


def _oracle(k, schedule, base, total, warmup, cooldown, end, timescale):
  """The rate of update k, case by case, in float64."""
  if schedule == 'rsqrt':
    rate = base if k < warmup else base * (1 + (k - warmup) / timescale) ** -0.5
  elif schedule == 'constant':
    rate = base
  elif k <= warmup:
    rate = base
  else:
    done = (k - warmup) / (total - warmup)
    left = np.cos(done * np.pi / 2) ** 2 if schedule == 'cosine' else 1 - done
    rate = end + left * (base - end)
  if k < warmup:
    return rate * k / warmup
  if k > total - cooldown:
    rate = end + (rate - end) * (total - k) / cooldown
  return rate


_CASES = [
  (schedule, warmup, cooldown, end)
  for schedule in schedules.NAMES
  if schedule != 'deit'
  for warmup in (0, 7)
  for cooldown in (0, 9)
  for end in (None, 0.02)
  # An end that is never reached is an error.
  if cooldown or end is None or schedule in ('cosine', 'linear')
]


@pytest.mark.parametrize('schedule, warmup, cooldown, end', _CASES)
def test_schedule_equals_the_oracle_at_every_update(
  schedule, warmup, cooldown, end
):
  rate = schedules.Rate(
    schedule,
    learning_rate=0.3,
    total_steps=40,
    warmup_steps=warmup,
    cooldown_steps=cooldown,
    end_learning_rate=end,
    timescale_steps=5 if schedule == 'rsqrt' else None,
  )
  k = np.arange(1, 41)
  expected = [
    _oracle(i, schedule, 0.3, 40, warmup, cooldown, end or 0.0, 5) for i in k
  ]
  actual = jax.jit(jax.vmap(rate))(k)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
  'schedule, end, values',
  [
    # google-research/vision_transformer, base 0.03, 10k steps, 500 warm-up.
    (
      'cosine',
      None,
      {1: 6e-5, 250: 0.015, 500: 0.03, 5000: 0.0162387, 10_000: 0.0},
    ),
    ('linear', 1e-5, {250: 0.015, 500: 0.03, 5000: 0.0157942, 10_000: 1e-5}),
  ],
)
def test_schedule_has_the_published_values(schedule, end, values):
  rate = schedules.Rate(
    schedule,
    learning_rate=0.03,
    total_steps=10_000,
    warmup_steps=500,
    end_learning_rate=end,
  )
  for k, value in values.items():
    np.testing.assert_allclose(rate(k), value, rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize(
  'schedule, options, values',
  [
    # big_vision's create_learning_rate_schedule, 100 steps, 10 of warm-up.
    ('cosine', {}, {50: 0.5868}),
    (
      'rsqrt',
      dict(timescale_steps=30, cooldown_steps=20),
      {80: 0.5477, 99: 0.0251},
    ),
    ('linear', dict(end_learning_rate=1e-5), {50: 0.5556}),
  ],
)
def test_schedule_has_big_visions_values(schedule, options, values):
  rate = schedules.Rate(
    schedule, learning_rate=1.0, total_steps=100, warmup_steps=10, **options
  )
  for k, value in values.items():
    np.testing.assert_allclose(rate(k), value, atol=5e-5)


def test_rsqrt_has_big_visions_timescale_by_default():
  rate = schedules.Rate('rsqrt', learning_rate=1.0, total_steps=100_000)
  np.testing.assert_allclose(rate(30_000), 0.5, rtol=1e-6)


@pytest.mark.parametrize('name', ['cosine', 'linear'])
def test_a_schedule_has_its_ends_to_the_bit(name):
  value = dict(name=name, start=0.04, end=0.1)
  at = schedules.between(value, total_steps=10, where='weight_decay')
  assert at(1) == np.float32(0.04)
  assert at(11) == at(99) == np.float32(0.1)  # 0.04 + (0.1 - 0.04) is less.


def test_the_cooldown_may_begin_where_the_warmup_ends():
  rate = schedules.Rate(
    'constant',
    learning_rate=1.0,
    total_steps=5,
    warmup_steps=2,
    cooldown_steps=3,
  )
  rates = [rate(k) for k in range(1, 6)]
  np.testing.assert_allclose(rates, [1 / 2, 1, 2 / 3, 1 / 3, 0], atol=1e-7)


@pytest.mark.parametrize('schedule', schedules.NAMES)
def test_run_of_no_steps_needs_no_fitting_durations(schedule):
  rate = schedules.Rate(
    schedule,
    learning_rate=0.1,
    total_steps=0,
    warmup_steps=500,
    cooldown_steps=0 if schedule == 'deit' else 100,
    stair_steps=50 if schedule == 'deit' else None,
  )
  assert np.isfinite(rate(0)) and np.isfinite(rate(1))


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(warmup_steps=100), 'warmup_steps=100 must be less than the 100'),
    (dict(warmup_steps=500), 'warmup_steps=500 must be less than the 100'),
    (dict(warmup_steps=60, cooldown_steps=50), 'overlap in a run of 100 steps'),
    (dict(warmup_steps=-1), 'warmup_steps=-1 must be a whole number'),
    (dict(cooldown_steps=2.5), 'cooldown_steps=2.5 must be a whole number'),
    (dict(warmup_steps=None), 'warmup_steps=None must be a whole number'),
    (dict(total_steps=-5), 'total_steps=-5 must be a whole number'),
    (dict(learning_rate=0.0), r'learning_rate=0\.0 must be a number > 0'),
    (dict(learning_rate='1e-3'), "learning_rate='1e-3' must be a number"),
    (dict(learning_rate=float('nan')), 'learning_rate=nan must be a number'),
    (dict(learning_rate=True), 'learning_rate=True must be a number'),
    (dict(end_learning_rate=-1e-5), 'must lie between 0 and'),
    (dict(end_learning_rate=2.0), 'must lie between 0 and'),
    (dict(schedule='step'), r"schedule='step'; expected one of \['cosine'"),
    (dict(timescale_steps=10), "no effect with schedule='cosine'"),
    (dict(schedule='rsqrt', timescale_steps=0), 'timescale_steps=0 must be'),
    (
      dict(schedule='constant', end_learning_rate=0.1),
      "end_learning_rate has no effect with schedule='constant'",
    ),
  ],
)
def test_impossible_schedule_is_an_error_that_says_why(changes, message):
  args = dict(schedule='cosine', learning_rate=1.0, total_steps=100) | changes
  with pytest.raises(UserError, match=message):
    schedules.Rate(**args)


def test_all_mistakes_are_reported_at_once():
  with pytest.raises(UserError, match=r'schedule.*warmup_steps.*learning_rate'):
    schedules.Rate('step', learning_rate=-1, total_steps=10, warmup_steps=-1)


def test_deit_holds_the_published_rate_in_each_epoch():
  # timm 0.3.2 with DeiT's arguments; epochs 0 and 1 are both the warm-up's
  # first.
  rate = schedules.Rate(
    'deit',
    learning_rate=1e-3,
    total_steps=300 * 1251,
    warmup_steps=5 * 1251,
    end_learning_rate=1e-5,
    stair_steps=1251,
  )
  table = [1e-6, 1e-6, 2.008e-4, 4.006e-4, 6.004e-4, 8.002e-4, 9.9932e-4]
  for epoch, published in enumerate(table):
    for k in (1251 * epoch + 1, 1251 * (epoch + 1)):
      np.testing.assert_allclose(rate(k), published, rtol=1e-4)
  last = 1e-5 + 0.99e-3 * 0.5 * (1 + np.cos(np.pi * 298 / 300))
  np.testing.assert_allclose(rate(300 * 1251), last, rtol=1e-3)


@pytest.mark.parametrize(
  'kwargs, message',
  [
    (dict(schedule='deit'), 'needs stair_steps or stair_epochs'),
    (dict(schedule='cosine', stair_steps=3), 'stair_steps has no effect with'),
    (dict(schedule='deit', stair_steps=3, cooldown_steps=2), 'cooldown_steps '),
    (dict(schedule='deit', stair_steps=3, learning_rate=1e-7), 'rises from'),
  ],
)
def test_stairs_that_do_not_fit_are_an_error(kwargs, message):
  options = dict(learning_rate=0.1, total_steps=20) | kwargs
  with pytest.raises(UserError, match=message):
    schedules.Rate(**options)
