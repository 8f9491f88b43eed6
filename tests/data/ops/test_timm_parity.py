"""timm's and torchvision's own transforms make the same pixels."""

import random

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import ops_language
from vit_jax.data.ops import (
  _pillow,
  _timm_policy,
  color,
  policies,
)

IMAGES = {
  'RGB': np.random.default_rng(0).integers(0, 256, (37, 29, 3)),
  'L': np.random.default_rng(1).integers(20, 200, (16, 23, 1)),
  'smooth': np.indices((40, 50)).sum(0)[:, :, None] * [2, 1, 0] + 30,
}
# RGB only: on greyscale images timm's fill colour is an error in Pillow.
PICTURES = {
  name: _pillow.to_pillow(IMAGES[name].astype(np.uint8))
  for name in ('RGB', 'smooth')
}


@pytest.fixture
def theirs():
  return pytest.importorskip('timm').data.auto_augment


@pytest.mark.parametrize('resample', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('name', _timm_policy.KINDS)
def test_every_op_is_timms_at_every_magnitude(
  name, resample, theirs, monkeypatch
):
  kind, method = _timm_policy.KINDS[name], _pillow.RESAMPLE[resample]
  if not kind.geometric and resample == 'bilinear':
    pytest.skip('moves no pixels')
  hparams = dict(img_mean=_pillow.IMAGENET_FILL, interpolation=method)
  for magnitude in (0, 1, 3, 4.7, 8, 9, 9.63, 10):
    for chance in (0.2, 0.7):
      monkeypatch.setattr(random, 'random', lambda c=chance: c)
      monkeypatch.setattr(
        random, 'uniform', lambda a, b, c=chance: a + (b - a) * c
      )
      op = theirs.AugmentOp(name, prob=1, magnitude=magnitude, hparams=hparams)
      argument = kind.argument and kind.argument(magnitude / 10, chance)
      look = (method, _pillow.IMAGENET_FILL) if kind.geometric else ()
      arguments = (argument, *look) if kind.argument else ()
      for picture in PICTURES.values():
        ours = np.asarray(kind.apply(picture, *arguments))
        if argument == 0 and kind.apply is _pillow.posterize:
          assert not ours.any()  # what timm did before Pillow refused
          continue
        np.testing.assert_array_equal(ours, np.asarray(op(picture)))


def test_ops_match_timms_policies(theirs):
  assert set(theirs.NAME_TO_OP) - set(_timm_policy.KINDS) == {
    'GaussianBlur',
    'TranslateX',
    'TranslateY',
  }
  assert theirs._RAND_TRANSFORMS == list(policies._PLAIN)
  assert theirs._RAND_INCREASING_TRANSFORMS == list(policies._INCREASING)
  assert theirs._AUGMIX_TRANSFORMS == list(policies._MIXED)


@pytest.mark.parametrize('name', policies._POLICIES)
def test_policies_of_autoaugment_are_timms(name, theirs):
  policy = [
    [(op.name, op.prob, op.magnitude) for op in pair]
    for pair in theirs.auto_augment_policy(name)
  ]
  assert policies._sub_policies(name) == policy


@pytest.mark.parametrize(
  'config',
  [
    'rand-m9-mstd0.5-inc1',
    'rand-m7-n3-p0.8-mstd101-mmax15',
    'rand-inc0-mmax12',
  ],
)
def test_settings_are_read_as_timm_reads_them(config, theirs, monkeypatch):
  made = []
  make = _timm_policy.Op

  def record(kind, **fields):
    made.append((kind, fields))
    return make(kind, **fields)

  monkeypatch.setattr(policies, 'Op', record)
  policies.rand_augment(config)
  transform = theirs.rand_augment_transform(config, {})
  for (kind, fields), op in zip(made, transform.ops, strict=True):
    assert kind is _timm_policy.KINDS[op.name]
    assert fields['probability'] == op.prob
    assert fields['magnitude'] == op.magnitude
    assert fields['noise'] == op.magnitude_std
    assert fields['largest'] == (op.magnitude_max or 10)


def test_aug_mix_mixes_as_timm(theirs, monkeypatch):
  chains = [[_pillow.invert], [_pillow.equalize, _pillow.autocontrast], []]
  weights, share = np.array([0.5, 0.2, 0.3]), 0.37
  transform = theirs.AugMixAugment([None], width=3)
  monkeypatch.setattr(np.random, 'dirichlet', lambda alpha: weights)
  monkeypatch.setattr(np.random, 'beta', lambda a, b: share)
  monkeypatch.setattr(np.random, 'randint', lambda low, high: 1)
  todo = iter(chains)
  monkeypatch.setattr(
    np.random, 'choice', lambda ops, depth, replace: next(todo)
  )
  picture = PICTURES['RGB']
  np.testing.assert_array_equal(
    np.asarray(policies._mix(picture, chains, weights, share)),
    np.asarray(transform(picture)),
  )


@pytest.mark.parametrize(
  'name', ['brightness', 'contrast', 'saturation', 'hue']
)
def test_color_jitter_is_torchvisions(name):
  functional = pytest.importorskip('torchvision').transforms.functional
  adjust = getattr(functional, f'adjust_{name}')
  factors = (-0.5, -0.1, 0.0, 0.25, 0.5) if name == 'hue' else (0, 0.4, 1, 1.7)
  for picture in (
    *PICTURES.values(),
    _pillow.to_pillow(IMAGES['L'].astype('u1')),
  ):
    for factor in factors:
      ours = color._FUNCTIONS[name](picture, factor)
      np.testing.assert_array_equal(
        np.asarray(ours), np.asarray(adjust(picture, factor))
      )


def test_greyscale_and_solarize_are_torchvisions():
  functional = pytest.importorskip('torchvision').transforms.functional
  image = IMAGES['RGB'].astype(np.uint8)
  picture = Image.fromarray(image)
  for text, theirs in (
    ('grayscale', functional.rgb_to_grayscale(picture, 3)),
    ('solarize', functional.solarize(picture, 128)),
  ):
    ours = ops_language.parse(text, trusted=True)(
      {'image': image}, np.random.default_rng(0)
    )
    np.testing.assert_array_equal(ours['image'], np.asarray(theirs))
