"""Random erasing: the boxes' laws, the fillings, what is left alone."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vit_jax.data import device_ops_language
from vit_jax.data.device_ops import random_erasing
from vit_jax.errors import UserError


def erase(text, num=512, size=(40, 60), seed=0):
  """Returns images of 7 after the op: `[B, H, W, 3]`."""
  batch = {'image': jnp.full((num, *size, 3), 7.0)}
  op = device_ops_language.parse(text)
  op = jax.jit(functools.partial(op, train=True))
  return np.asarray(op(batch, jax.random.key(seed))['image'])


def box_of(mask):
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_some_images_lose_a_box_of_timms_area_aspect_and_place():
  image = erase('random_erasing(0.25)', num=8000)
  erased = image[..., 0] == 0
  is_erased = erased.any((1, 2))
  # 4 standard deviations of 8000 draws.
  assert abs(is_erased.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 8000)
  erased = erased[is_erased]
  assert ((image == 0).all(-1) | (image == 7).all(-1)).all()
  boxes = np.array([box_of(mask) for mask in erased])
  top, bottom, left, right = boxes.T
  tall, wide = bottom - top, right - left
  np.testing.assert_array_equal(erased.sum((1, 2)), tall * wide)
  assert tall.max() < 40 and wide.max() < 60
  for first, last in ((top, bottom - 40), (left, right - 60)):
    assert first.min() == 0 and last.max() == 0  # at every edge

  rng = np.random.default_rng(0)  # The law in plain NumPy.
  want = []
  while len(want) < 4000:
    area = rng.uniform(0.02, 1 / 3) * 40 * 60
    ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
    h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
    if h < 40 and w < 60:
      top_left = rng.integers(40 - h + 1), rng.integers(60 - w + 1)
      want.append((h, w, *top_left))
  # The distance of two samples of one law is over 0.055 once in 1000 times.
  for got, wanted in zip(
    (tall, wide, top, left), np.array(want).T, strict=True
  ):
    assert scipy.stats.ks_2samp(got, wanted).statistic < 0.055


def test_defaults_match_deit_and_timm():
  parameters = inspect.signature(random_erasing.random_erasing).parameters
  assert {name: x.default for name, x in parameters.items()} == dict(
    rate=0.25, mode='const', count=1, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3)
  )


def test_a_filling_is_zero_or_normal_per_channel_or_per_pixel():
  rand = erase("random_erasing(1.0, mode='rand', count=2)")
  pixel = erase("random_erasing(1.0, mode='pixel')")
  colours, counts = [], []
  for one in rand:
    found = np.unique(one[(one != 7).all(-1)], axis=0)
    counts.append(len(found))
    colours.extend(found)
  # One box may hide the other.
  assert set(counts) <= {1, 2} and np.mean(counts) > 1.9
  noise = [one[(one != 7).all(-1)] for one in pixel]
  assert all(len(np.unique(x)) > 0.99 * x.size for x in noise[:20])
  for values in (np.array(colours), np.concatenate(noise)):
    assert abs(values.mean()) < 4 / np.sqrt(values.size)
    assert abs(values.std() - 1) < 0.1
  # Neighbouring images do not share their noise.
  assert len(set(map(float, (x[0, 0] for x in noise)))) == len(noise)


def test_several_boxes_share_the_area():
  op = 'random_erasing(1.0, count=%s, area=(0.3, 0.3), aspect=(1.0, 1.0))'
  one, three = erase(op % 1, size=(64, 64)), erase(op % 3, size=(64, 64))
  assert ((one == 0).mean((1, 2, 3)) > 0.28).all()
  share = (three == 0).mean((1, 2, 3))
  assert share.max() < 0.32 and share.min() < 0.2  # Some overlap.
  assert (share > 0.32 / 3).all()
  some = erase(op % '(1, 3)', size=(64, 64))[..., 0] == 0
  boxes = np.array([box_of(mask) for mask in some])
  area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
  # One box alone fills its frame: a third of the images.
  assert abs((area == some.sum((1, 2))).mean() - 1 / 3) < 0.09


def test_boxes_as_large_as_the_image_are_left_out():
  text = 'random_erasing(1.0, area=(%s, %s), aspect=(1.0, 1.0))'
  assert (erase(text % (1, 1), size=(32, 32)) == 7).all()
  assert (erase(text % (0.9, 0.9), size=(32, 32)) == 0).any((1, 2, 3)).all()


def test_evaluation_erases_nothing_and_integers_are_refused():
  batch = {'image': jnp.full((4, 8, 8, 3), 7, jnp.uint8)}
  op = device_ops_language.parse('random_erasing(1.0)')
  assert op(batch, None, train=False)['image'] is batch['image']
  with pytest.raises(UserError, match='uint8: normalize must come before it'):
    op(batch, jax.random.key(0), train=True)


@pytest.mark.parametrize(
  'text, message',
  [
    ('random_erasing(1.5)', 'rate=1.5 must lie'),
    ("random_erasing(mode='noise')", "mode='noise': expected one of"),
    ('random_erasing(count=0)', 'count=0: expected'),
    ('random_erasing(count=(3, 1))', r'count=\(3, 1\): expected'),
    ('random_erasing(area=(0.5, 0.1))', r'area=\(0.5, 0.1\): expected'),
    ('random_erasing(aspect=(0, 1))', r'aspect=\(0, 1\): expected'),
  ],
)
def test_impossible_erasing_is_explained(text, message):
  with pytest.raises(UserError, match=message):
    device_ops_language.parse(text)
