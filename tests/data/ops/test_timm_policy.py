"""timm's tables, entry by entry, also where timm is not installed."""

import inspect
import json
import zlib

import numpy as np
import pytest
from scipy import stats

from vit_jax.data import ops_language
from vit_jax.data.ops import _pillow, _timm_policy, policies


def digest(table):
  return zlib.crc32(json.dumps(table).encode())


# The digests are of timm 1.0.31's own tables; test_timm_parity.py compares
# their entries where timm is installed, and says which of them differs.
@pytest.mark.parametrize(
  'name, expected',
  [
    ('original', 2058795464),
    ('originalr', 3014426529),
    ('v0', 4049548045),
    ('v0r', 953535925),
    ('3a', 4222123264),
  ],
)
def test_policies_are_timms(name, expected):
  assert digest(policies._sub_policies(name)) == expected


@pytest.mark.parametrize(
  'table, expected',
  [
    (list(policies._PLAIN), 4071162941),
    (list(policies._INCREASING), 343189592),
    (list(policies._MIXED), 2548160479),
  ],
)
def test_sets_of_ops_are_timms(table, expected):
  assert digest(table) == expected


def test_a_name_is_the_function_of_its_name():
  others = {
    'TranslateXRel': _pillow.translate_x,
    'TranslateYRel': _pillow.translate_y,
    'ShearX': _pillow.shear_x,
    'ShearY': _pillow.shear_y,
    'SolarizeAdd': _pillow.solarize_add,
    'Desaturate': _pillow.color,
    'GaussianBlurRand': _pillow.blur,
  }
  moving = {'Rotate', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel'}
  for name, kind in _timm_policy.KINDS.items():
    plain = name.removesuffix('Increasing').removesuffix('Original').lower()
    assert kind.apply is (others.get(name) or getattr(_pillow, plain)), name
    assert kind.geometric == (name in moving), name
    without = name in ('AutoContrast', 'Equalize', 'Invert')
    assert (kind.argument is None) == without, name


def test_the_larger_magnitudes_that_mmax_allows_are_cut_as_in_timm():
  for name, at_12 in (
    ('Rotate', 36),
    ('PosterizeIncreasing', 0),
    ('SolarizeIncreasing', 0),
    ('SolarizeAdd', 128),  # of 132
    ('ColorIncreasing', 2.08),
    ('TranslateXRel', 0.54),
    ('Posterize', 4),
    ('Solarize', 256),
    ('Color', 2.26),
    ('Desaturate', 0),  # wholly grey
  ):
    assert _timm_policy.KINDS[name].argument(1.2, 0.0) == pytest.approx(at_12)
  assert _timm_policy.KINDS['GaussianBlurRand'].argument(1.2, 1.0) == 2


def test_greying_grows_with_the_magnitude():
  desaturate = _timm_policy.KINDS['Desaturate'].argument
  assert [desaturate(x, 0.9) for x in (0, 0.5, 1)] == [0.5, 0.25, 0]


def test_the_ops_of_a_sub_policy_come_in_its_order(monkeypatch):
  monkeypatch.setitem(policies._POLICIES, '3a', 'Invert 1 0, SolarizeAdd 1 1')
  dark = np.full((1, 1, 1), 100, np.uint8)
  out = ops_language.parse("auto_augment('3a')", trusted=True)(
    {'image': dark}, np.random.default_rng(0)
  )
  assert out['image'].item() == 155  # 111 inverted would be 144


def test_defaults_are_timms(monkeypatch):
  for op in (policies.rand_augment, policies.auto_augment):
    parameters = inspect.signature(op).parameters
    assert parameters['method'].default == 'bicubic'
    assert parameters['fill'].default == (124, 116, 104)
  assert (
    inspect.signature(policies.auto_augment).parameters['config'].default
    == 'original'
  )
  seen = []
  monkeypatch.setattr(
    policies, '_mix', lambda image, *rest: seen.append(rest) or image
  )
  op = ops_language.parse('aug_mix', trusted=True)
  rng = np.random.default_rng(0)
  for _ in range(1000):
    op({'image': np.zeros((1, 1, 1), np.uint8)}, rng)
  assert {len(chains) for chains, _, _ in seen} == {3}
  share = [share for _, _, share in seen]
  assert stats.kstest(share, stats.uniform(0, 1).cdf).pvalue > 1e-3
  first = [weights[0] for _, weights, _ in seen]
  assert stats.kstest(first, stats.beta(1, 2).cdf).pvalue > 1e-3


def test_aug_mix_turns_by_at_most_nine_degrees(monkeypatch):
  monkeypatch.setattr(policies, '_MIXED', ('Rotate',))
  turns = []
  kind = _timm_policy.Kind(
    lambda x, degrees, *_: turns.append(degrees) or x,
    policies._MIX_KINDS['Rotate'].argument,
    True,
  )
  monkeypatch.setattr(policies, '_MIX_KINDS', {'Rotate': kind})
  op = ops_language.parse('aug_mix', trusted=True)
  rng = np.random.default_rng(0)
  for _ in range(300):
    op({'image': np.zeros((1, 1, 1), np.uint8)}, rng)
  # +-30 degrees * 3 / 10.
  assert stats.kstest(turns, stats.uniform(-9, 18).cdf).pvalue > 1e-3


def test_aug_mix_moves_by_at_most_three_tenths_of_a_side():
  for name in ('TranslateXRel', 'TranslateYRel'):
    assert policies._MIX_KINDS[name].argument(1.0, 0.0) == 0.3
