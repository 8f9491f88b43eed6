"""Flips and crops on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data import device_ops_language
from vit_jax.errors import UserError


def images(num=400, size=(6, 7)):
  """Pixels that tell where they are: 16 times the row plus the column."""
  rows, columns = np.indices(size)
  image = (16 * (rows + 1) + columns + 1).astype(np.uint8)[None, ..., None]
  return np.repeat(image, num, axis=0)


def run(text, image, train=True):
  op = device_ops_language.parse(text)
  return np.asarray(
    op({'image': jnp.array(image)}, jax.random.key(0), train=train)['image']
  )


def test_a_flip_mirrors_some_images_from_left_to_right():
  image = images()
  got = run('flip_lr(0.3)', image)
  flipped = (got == image[:, :, ::-1]).all((1, 2, 3))
  assert (flipped | (got == image).all((1, 2, 3))).all()
  # 4 standard deviations of 400 draws.
  assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(run('flip_lr', image, train=False), image)
  assert (run('flip_lr', image) == run('flip_lr(0.5)', image)).all()


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
def test_a_padded_crop_shifts_each_image_by_its_own_offset(mode):
  image = images()
  got = run(f"random_crop(padding=2, pad_mode='{mode}')", image)
  padded = np.pad(image[0, ..., 0], 2, mode=mode)
  windows = np.lib.stride_tricks.sliding_window_view(padded, (6, 7))
  places = (got[:, None, None, ..., 0] == windows).all((3, 4))
  assert (places.sum((1, 2)) == 1).all()
  # 25 windows of 16 images each; the rarest of them is seen 4 times or more.
  assert places.sum(0).min() >= 4
  np.testing.assert_array_equal(
    run('random_crop(padding=2)', image, train=False), image
  )


def test_evaluation_crops_the_centre():
  got = run('random_crop((4, 3))', images(2), train=False)
  np.testing.assert_array_equal(got, images(2)[:, 1:5, 2:5])
  assert run('random_crop((4, 3))', images(2)).shape == (2, 4, 3, 1)


@pytest.mark.parametrize('train', [True, False])
def test_a_window_larger_than_the_image_is_refused(train):
  with pytest.raises(UserError, match=r'cannot cut \(9, 9\) .* of'):
    run('random_crop(9)', images(2), train=train)


@pytest.mark.parametrize(
  'text, message',
  [
    ('flip_lr(1.5)', 'rate=1.5 must lie'),
    ('random_crop', r'expected random_crop\(size\) or'),
    ('random_crop(padding=-1)', r'expected random_crop\(size\) or'),
    ("random_crop(4, pad_mode='edge')", "pad_mode='edge': expected"),
  ],
)
def test_impossible_crops_are_explained(text, message):
  with pytest.raises(UserError, match=message):
    device_ops_language.parse(text)


def test_of_evaluation_keeps_the_ops_of_evaluation():
  text = (
    "flip_lr|random_crop(4)|normalize('imagenet')|my.op(1)|random_erasing|"
    'mixup(0.2)|random_crop(padding=2)'
  )
  want = "random_crop(4)|normalize('imagenet')|my.op(1)"
  assert device_ops_language.of_evaluation(text) == want
  assert device_ops_language.of_evaluation('') == ''


@pytest.mark.parametrize('train', [True, False])
def test_a_crop_keeps_the_top_left(train):
  got = run('crop((4, 3))', images(2), train=train)
  np.testing.assert_array_equal(got, images(2)[:, :4, :3])
  with pytest.raises(UserError, match=r'cannot cut \(7, 7\)'):
    run('crop(7)', images(2), train=train)
