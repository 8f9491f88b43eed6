"""The formulae of mixing and erasing against timm, where it is installed."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vit_jax.data import device_ops_language
from vit_jax.data.device_ops import mixing

torch = pytest.importorskip('torch')
mixup_file = pytest.importorskip('timm.data.mixup')
erasing_file = pytest.importorskip('timm.data.random_erasing')

KEY = jax.random.key(3)


def test_boxes_of_even_sides_equal_timms(monkeypatch):
  rng = np.random.default_rng(0)
  for _ in range(50):
    side, row, column = rng.integers(0, 17) * 2, *rng.integers(0, 32, 2)
    # Sides that do not lie on the edge of what int() rounds down.
    weight = 1 - ((side + 0.5) / 32) ** 2 if side < 32 else 0.0
    draws = iter([row, column])
    monkeypatch.setattr(
      np.random, 'randint', lambda *_, draws=draws, **__: next(draws)
    )
    (top, bottom, left, right), corrected = mixup_file.cutmix_bbox_and_lam(
      (3, 32, 32), weight
    )
    box = mixing.Box.of_cutmix(jnp.float32(weight), row, column, (32, 32))
    assert tuple(map(int, box)) == (top, bottom, left, right)
    left_over = 1 - box.area() / (32 * 32)
    np.testing.assert_allclose(left_over, corrected, rtol=1e-6)


@pytest.mark.parametrize('mode', ['batch', 'pair', 'elem'])
def test_mixed_images_and_targets_equal_timms_for_the_same_draws(
  mode, monkeypatch
):
  rng = np.random.default_rng(0)
  image = rng.normal(size=(8, 12, 12, 3)).astype(np.float32)
  label = rng.integers(0, 5, 8).astype(np.int32)
  op = mixing.mixup_cutmix(mode=mode, label_smoothing=0.1)
  batch = {'image': jnp.array(image), 'label': jax.nn.one_hot(label, 5)}
  ours = op(batch, KEY, train=True)

  weight, is_cut, box = jax.tree.map(np.array, op.draw(KEY, 8, (12, 12)))
  is_cut = is_cut & (weight < 1)
  theirs = mixup_file.Mixup(
    0.8, 1.0, mode=mode, label_smoothing=0.1, num_classes=5
  )
  rows = iter(np.flatnonzero(is_cut))

  def next_box(*args, **kwargs):
    i = next(rows)
    return tuple(int(x[i]) for x in box), weight[i]

  monkeypatch.setattr(mixup_file, 'cutmix_bbox_and_lam', next_box)
  monkeypatch.setattr(
    theirs, '_params_per_batch', lambda: (float(weight[0]), bool(is_cut[0]))
  )
  monkeypatch.setattr(
    theirs, '_params_per_elem', lambda n: (weight[:n].copy(), is_cut[:n])
  )
  channels_first = torch.tensor(image.transpose(0, 3, 1, 2))
  x, y = theirs(channels_first, torch.tensor(label))
  np.testing.assert_allclose(
    ours['image'], x.numpy().transpose(0, 2, 3, 1), atol=1e-6
  )
  np.testing.assert_allclose(ours['label'], y.numpy(), atol=1e-6)


def test_erased_boxes_have_the_distribution_of_timms():
  num, size = 2000, (40, 60)
  theirs = erasing_file.RandomErasing(1.0, max_count=2, device='cpu')
  random.seed(0)
  want = np.ones((num, *size), bool)
  for one in want:
    image = torch.ones((1, *size))
    one[:] = theirs(image)[0].numpy() == 0
  op = device_ops_language.parse('random_erasing(1.0, count=(1, 2))')
  images = {'image': jnp.ones((num, *size, 1))}
  got = np.asarray(op(images, KEY, train=True)['image'])[..., 0] == 0
  for measure in (
    lambda x: x.sum((1, 2)),
    lambda x: x.any(2).sum(1),
    lambda x: x.any(1).sum(1),
    lambda x: x.any(2).argmax(1),
    lambda x: x.any(1).argmax(1),
  ):
    # Over 0.062 once in 1000 times.
    statistic = scipy.stats.ks_2samp(measure(got), measure(want)).statistic
    assert statistic < 0.062
