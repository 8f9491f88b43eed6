"""Mixup and CutMix against answers worked by hand, and their distributions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vit_jax.data import device_ops_language
from vit_jax.data.device_ops import mixing
from vit_jax.errors import UserError


def batch_of(num_rows, size=16, num_classes=5):
  """Rows that tell which image they are: row i is all i."""
  image = jnp.arange(num_rows, dtype=jnp.float32)[:, None, None, None]
  image = jnp.broadcast_to(image, (num_rows, size, size, 3))
  label = jnp.arange(num_rows, dtype=jnp.int32) % num_classes
  return {'image': image, 'label': label}


def mix(op, batch, num_classes=5):
  op = dataclasses.replace(op, num_classes=num_classes)
  return op(batch, jax.random.key(0), train=True)


def draw(op, num_rows, size=(16, 16)):
  return op.draw(jax.random.key(0), num_rows, size)


def test_partners_are_the_other_end_or_the_row_before_of_a_group():
  rows = jnp.arange(8)
  for op, want in {
    mixing.mixup(1.0): [7, 6, 5, 4, 3, 2, 1, 0],
    mixing.mixup(1.0, group_size=4): [3, 2, 1, 0, 7, 6, 5, 4],
    mixing.mixup(1.0, group_size=100): [7, 6, 5, 4, 3, 2, 1, 0],
    mixing.mixup(1.0, partner='roll'): [7, 0, 1, 2, 3, 4, 5, 6],
    mixing.mixup(1.0, partner='roll', group_size=4): [3, 0, 1, 2, 7, 4, 5, 6],
  }.items():
    np.testing.assert_array_equal(op.partners(rows), want)


def test_mixup_blends_images_and_smoothed_labels_with_one_weight():
  op = mixing.mixup(1.0, label_smoothing=0.1)
  mixed = mix(op, batch_of(64))
  w = float(draw(op, 64)[0][0])
  assert 0.05 < w < 0.95
  own = np.arange(64)
  want = w * own + (1 - w) * own[::-1]
  np.testing.assert_allclose(mixed['image'][:, 2, 3, 1], want, rtol=1e-5)
  # The classes of rows 0 and 1 are 0 and 1, of their partners 3 and 2.
  on, off = 0.9 + 0.1 / 5, 0.1 / 5
  want = [
    [w * on + (1 - w) * off, off, off, w * off + (1 - w) * on, off],
    [off, w * on + (1 - w) * off, w * off + (1 - w) * on, off, off],
  ]
  np.testing.assert_allclose(mixed['label'][:2], want, rtol=1e-5)
  assert mixed['label'].dtype == jnp.float32


def test_a_cutmix_box_is_centred_even_and_clipped():
  # 1 - 0.75 = 0.25: half the sides of 10 x 20, 5 x 10; down to even, 4 x 10.
  weight = jnp.array([0.75, 0.75, 0.75, 1.0, 0.0])
  row, column = jnp.array([5, 1, 9, 5, 5]), jnp.array([10, 0, 18, 10, 19])
  box = mixing.Box.of_cutmix(weight, row, column, (10, 20))
  want = [(3, 7, 5, 15), (0, 3, 0, 5), (7, 10, 13, 20), (5, 5, 10, 10)]
  want.append((0, 10, 9, 20))
  np.testing.assert_array_equal(np.stack(box, axis=1), want)
  np.testing.assert_array_equal(box.area(), [40, 15, 21, 0, 110])
  inside = box.inside((10, 20))
  np.testing.assert_array_equal(inside.sum((1, 2)), [40, 15, 21, 0, 110])
  assert inside[1, :3, :5].all() and inside[4, :, 9:].all()


def test_cutmix_pastes_the_partner_and_weights_labels_by_area():
  op = mixing.cutmix(mode='elem')
  batch = batch_of(64)
  mixed = mix(op, batch)
  weight, is_cut, _ = draw(op, 64)
  assert is_cut.all()
  pixels = np.asarray(mixed['image'][..., 0]).reshape(64, -1)
  own = pixels == np.arange(64)[:, None]
  assert (own | (pixels == np.arange(64)[::-1, None])).all()
  np.testing.assert_allclose(own.mean(1), weight, atol=1e-6)
  assert 20 < (own.mean(1) < 1).sum()
  classes = np.arange(64) % 5
  differ = classes != classes[::-1]
  label = np.asarray(mixed['label'])[np.arange(64), classes]
  np.testing.assert_allclose(label[differ], own.mean(1)[differ], atol=1e-6)


@pytest.mark.parametrize(
  'mode, distinct', [('batch', 1), ('pair', 32), ('elem', 64)]
)
def test_rows_share_a_draw_by_mode(mode, distinct):
  op = mixing.mixup_cutmix(mode=mode)
  weight, is_cut, box = draw(op, 64, (500, 500))
  if mode != 'elem':  # A row and its partner have the same.
    np.testing.assert_array_equal(weight, weight[::-1])
    np.testing.assert_array_equal(is_cut, is_cut[::-1])
  draws = set(zip(*map(np.asarray, (weight, *box)), strict=True))
  assert len(draws) == distinct


def test_the_groups_of_a_batch_draw_on_their_own():
  op = mixing.mixup(1.0, group_size=4)
  weight, _, _ = draw(op, 64)
  groups = np.asarray(weight).reshape(16, 4)
  assert (groups == groups[:, :1]).all()
  assert len(set(groups[:, 0])) == 16


def test_draws_follow_their_laws():
  op = mixing.mixup_cutmix(
    0.8, 1.0, mode='elem', switch_rate=0.3, rate=0.9, group_size=None
  )
  weight, is_cut, _ = draw(op, 20_000, (224, 224))
  weight, is_cut = np.asarray(weight), np.asarray(is_cut)
  # 20,000 draws: a frequency is within 4 * 0.5 / sqrt(20,000) = 0.014.
  assert abs(is_cut.mean() - 0.3) < 0.014
  mixup = weight[~is_cut]
  assert abs((mixup == 1).mean() - 0.1) < 0.014
  mixed = mixup[mixup < 1]
  assert abs(mixed.mean() - 0.5) < 0.02
  assert abs(mixed.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.004
  # Clipping at the border leaves 0.68 on average where Beta(1, 1) says 0.5.
  cut = weight[is_cut & (weight < 1)]
  assert abs(0.9 * cut.mean() + 0.1 - (0.9 * 0.68 + 0.1)) < 0.02


def test_the_centre_of_a_box_is_uniform_over_the_image():
  # A weight of 1/2: boxes of int(16 * 0.707) = 11, 10 x 16 around the centre.
  op = mixing.cutmix(1e9, mode='elem')
  _, _, box = draw(op, 8000, (16, 24))
  top, bottom, left, right = map(np.asarray, box)
  row = np.where(top > 0, top + 5, bottom - 5)
  column = np.where(left > 0, left + 8, right - 8)
  for centre, side in ((row, 16), (column, 24)):
    counts = np.bincount(centre, minlength=side)
    assert len(counts) == side
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_defaults_match_deit_and_timm():
  rest = dict(
    switch_rate=0.5,
    rate=1.0,
    mode='batch',
    group_size=None,
    partner='reverse',
    dominant=False,
    label_smoothing=0.0,
    num_classes=None,
  )
  for op, alphas in (
    (mixing.mixup_cutmix(), (0.8, 1.0)),
    (mixing.cutmix(), (0.0, 1.0)),
    (mixing.mixup(0.3), (0.3, 0.0)),
  ):
    assert op == mixing.Mix(*alphas, **rest)


def test_a_dominant_row_keeps_the_larger_weight():
  weight, _, _ = draw(mixing.mixup(0.2, mode='elem', dominant=True), 64)
  free, _, _ = draw(mixing.mixup(0.2, mode='elem'), 64)
  np.testing.assert_array_equal(weight, np.maximum(free, 1 - free))
  assert weight.min() >= 0.5 and free.min() < 0.1


def test_soft_and_multi_hot_labels_are_mixed_as_they_are():
  label = np.zeros((64, 5), np.float32)
  label[0, :2], label[63, 1:3] = 1, (0.2, 0.8)
  op = mixing.mixup(1.0)
  mixed = mix(op, batch_of(64) | {'label': jnp.array(label)}, None)
  w = float(draw(op, 64)[0][0])
  want = [w, w + (1 - w) * 0.2, (1 - w) * 0.8, 0, 0]
  np.testing.assert_allclose(mixed['label'][0], want, rtol=1e-5)


def test_a_label_without_a_class_becomes_nan():
  batch = batch_of(64)
  batch['label'] = batch['label'].at[3].set(7)
  label = np.asarray(mix(mixing.mixup(1.0), batch)['label'])
  np.testing.assert_array_equal(np.flatnonzero(np.isnan(label).any(1)), [3, 60])


@pytest.mark.parametrize(
  'text, message',
  [
    ('mixup(0)', 'leave the op out'),
    ('mixup(-1)', 'mixup_alpha=-1 must be at least 0'),
    ('cutmix(rate=1.5)', r'rate=1.5 must lie in [0, 1]'),
    ("mixup(1, mode='half')", "mode='half': expected one of"),
    ("mixup(1, partner='random')", "partner='random': expected one of"),
    ("mixup(1, mode='pair', partner='roll')", "'pair' needs partner='reverse'"),
    ('mixup(1, label_smoothing=1)', 'label_smoothing=1 must lie'),
    ('mixup(1, group_size=1)', 'group_size=1: expected a whole number'),
    ('mixup(1, num_classes=0.5)', 'num_classes=0.5: expected a whole number'),
    ('mixup(1)|cutmix', 'mixup(1) and cutmix: a batch is mixed once'),
    ('mixup(1, num_classes=4)', 'num_classes=4, but the data has 5 classes'),
  ],
)
def test_impossible_mixing_is_explained(text, message):
  with pytest.raises(UserError) as e:
    device_ops_language.parse(text, num_classes=5)
  assert message in str(e.value)


@pytest.mark.parametrize(
  'text, rows, message',
  [
    ('mixup(1)', 8, r'mixup\(1\): the images are uint8: normalize must come'),
    ('normalize(0, 1)|mixup(1, group_size=3)', 8, 'does not divide the batch'),
    ('normalize(0, 1)|mixup(1)', 7, 'a group has 7 rows; .* an even number'),
    ('normalize(0, 1)|mixup(1, partner="roll")', 1, 'a group has 1 rows'),
    ('normalize(0, 1)|cutmix', 8, r'cutmix: .* not say .* add num_classes='),
  ],
)
def test_a_batch_that_does_not_fit_is_explained(text, rows, message):
  batch = batch_of(rows)
  batch['image'] = batch['image'].astype(jnp.uint8)
  with pytest.raises(UserError, match=message):
    device_ops_language.parse(text)(batch, jax.random.key(0), train=True)


def test_views_of_a_row_share_its_weight_and_other_fields_stay_the_rows():
  batch = batch_of(8)
  key = jax.random.key(0)
  op = mixing.mixup_cutmix(mode='elem', num_classes=5)
  want = op(batch, key, train=True)
  views = jnp.stack([batch['image'], batch['image'] + 100], axis=1)
  rest = {'local_image': views, 'index': jnp.arange(8)}
  got = op({'image': views, 'label': batch['label']} | rest, key, train=True)
  np.testing.assert_allclose(got['image'][:, 0], want['image'], rtol=1e-6)
  np.testing.assert_allclose(got['image'][:, 1], want['image'] + 100, rtol=1e-6)
  assert got['local_image'] is views and got['index'] is rest['index']
  np.testing.assert_array_equal(got['label'], want['label'])


def test_images_without_labels_are_mixed():
  batch = batch_of(8)
  want = mix(mixing.mixup(1.0), dict(batch))['image']
  del batch['label']
  got = mix(mixing.mixup(1.0), batch, None)
  np.testing.assert_array_equal(got['image'], want)
  assert got.keys() == {'image'}
  with pytest.raises(UserError, match=r"no 'image'; it has \['text'\]"):
    mix(mixing.mixup(1.0), {'text': jnp.zeros((8, 3))})


def test_evaluation_mixes_nothing():
  batch = batch_of(7)
  same = device_ops_language.parse('mixup_cutmix')(batch, None, train=False)
  assert all(same[key] is batch[key] for key in batch)
