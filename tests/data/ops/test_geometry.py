"""Sizes, crops and flips on the host."""

import collections

import numpy as np
import pytest

from tests.data.ops.op_runs import assert_refused, noise, parse, run
from vit_jax.data import ops_language
from vit_jax.errors import UserError


def ramp(height, width):
  """An image whose pixels are all different: `10 * y + x`."""
  y, x = np.mgrid[:height, :width]
  return (10 * y + x).astype(np.uint8)[:, :, None]


@pytest.mark.parametrize(
  'before, after',
  [
    ((40, 60), (20, 30)),
    ((60, 40), (30, 20)),
    ((7, 7), (20, 20)),
    ((375, 500), (20, 27)),  # 26.67 rounds up.
    ((2, 300), (20, 3000)),
  ],
)
def test_resize_small_keeps_the_aspect_ratio(before, after):
  image = noise(*before, 3)
  got = run('resize_small(20)', image)
  assert got.shape == (*after, 3)
  np.testing.assert_array_equal(got, run(f'resize({after})', image))


@pytest.mark.parametrize(
  'before, nearest, down',
  [
    ((375, 500), (256, 341), (256, 341)),  # 341.33
    ((500, 333), (384, 256), (384, 256)),  # 384.38
    ((500, 334), (383, 256), (383, 256)),  # 383.23
    ((281, 500), (256, 456), (256, 455)),  # 455.52
    ((640, 427), (384, 256), (383, 256)),  # 383.7
    ((300, 300), (256, 256), (256, 256)),
    ((1, 3), (256, 768), (256, 768)),
  ],
)
def test_the_longer_side_is_rounded_as_asked(before, nearest, down):
  image = noise(*before, 1)
  for rounding, after in (('nearest', nearest), ('down', down)):
    text = f'resize_small(256, rounding={rounding!r})'
    assert run(text, image).shape == (*after, 1)
  assert run('resize_small(256)', image).shape == (*nearest, 1)


def test_resize_small_hands_its_method_on():
  image = noise(50, 70, 3)
  for how in ('method="area"', 'antialias=False', 'method="bicubic"'):
    np.testing.assert_array_equal(
      run(f'resize_small(25, {how})', image),
      run(f'resize((25, 35), {how})', image),
    )


def test_central_crop_takes_the_centre():
  np.testing.assert_array_equal(
    run('central_crop((2, 3))', ramp(6, 8))[:, :, 0],
    [[22, 23, 24], [32, 33, 34]],
  )
  # Of an odd margin the far end loses more.
  np.testing.assert_array_equal(
    run('central_crop(2)', ramp(5, 5))[:, :, 0], [[11, 12], [21, 22]]
  )
  # The largest square.
  np.testing.assert_array_equal(
    run('central_crop', ramp(2, 6))[:, :, 0], [[2, 3], [12, 13]]
  )
  np.testing.assert_array_equal(run('central_crop(4)', ramp(4, 4)), ramp(4, 4))


@pytest.mark.parametrize(
  'margin, down, even', [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 2), (5, 2, 2)]
)
def test_half_an_odd_margin_is_rounded_as_asked(margin, down, even):
  image = ramp(2 + margin, 4)
  for text, top in (
    ('central_crop((2, 4))', down),
    ("central_crop((2, 4), rounding='down')", down),
    ("central_crop((2, 4), rounding='even')", even),
  ):
    np.testing.assert_array_equal(run(text, image), image[top : top + 2])
  image = image.swapaxes(0, 1)
  got = run("central_crop((4, 2), rounding='even')", image)
  np.testing.assert_array_equal(got, image[:, even : even + 2])


@pytest.mark.parametrize('op', ['central_crop', 'random_crop'])
@pytest.mark.parametrize('shape', [(31, 40, 3), (40, 31, 3)])
def test_a_crop_larger_than_the_image_names_both_sizes(op, shape):
  size = f'{shape[0]} x {shape[1]}'
  with pytest.raises(UserError, match=rf'{op}\(32\).* 32 x 32 .* of {size}; '):
    run(f'{op}(32)', noise(*shape))


def test_random_crop_places_are_equally_likely():
  image, op = ramp(4, 5), parse('random_crop((2, 4))')
  rng = np.random.default_rng(0)
  corners = collections.Counter()
  for _ in range(3000):
    got = op({'image': image}, rng)['image'][:, :, 0]
    y, x = divmod(int(got[0, 0]), 10)
    np.testing.assert_array_equal(got, image[y : y + 2, x : x + 4, 0])
    corners[y, x] += 1
  assert set(corners) == {(y, x) for y in range(3) for x in range(2)}
  # 500 expected, standard deviation 20.
  assert all(400 < n < 600 for n in corners.values())


def test_random_crop_pads_with_zeros_or_mirrored():
  image = ramp(1, 3)
  seen = {
    mode: {
      tuple(run(f'random_crop((1, 3), {args})', image, seed).ravel())
      for seed in range(99)
    }
    for mode, args in [
      ('zero', 'padding=1, pad_mode="zero"'),
      ('reflect', 'padding=1, pad_mode="reflect"'),
    ]
  }
  zeros = {(0, 0, 1), (0, 1, 2), (1, 2, 0), (0, 0, 0)}  # Also rows of padding.
  assert seen['zero'] == zeros
  assert seen['reflect'] == {(1, 0, 1), (0, 1, 2), (1, 2, 1)}


def test_random_crop_pads_small_images_only_where_they_are_small():
  image = ramp(2, 9) + 1
  for seed in range(20):
    got = run('random_crop(4, pad_if_needed=True)', image, seed)[:, :, 0]
    assert got.shape == (4, 4)
    rows = got[got.any(axis=1)]
    assert len(rows) <= 2 and np.all(rows > 0)  # Columns are not padded.
  # From 2 by 1 + 2 at each end to 8: three positions.
  text = 'random_crop((6, 1), padding=1, pad_if_needed=True)'
  seen = {run(text, ramp(2, 1) + 1, s).tobytes() for s in range(199)}
  assert len({column for column in seen if any(column)}) == 3
  unpadded = run('random_crop((2, 9), pad_if_needed=True)', image)
  np.testing.assert_array_equal(unpadded, image)


def test_flip_mirrors_columns_exactly():
  image = noise(4, 5, 3)
  np.testing.assert_array_equal(run('flip_lr(1)', image), image[:, ::-1])
  np.testing.assert_array_equal(run('flip_lr(0)', image), image)


@pytest.mark.parametrize('args, rate', [('', 0.5), ('(0.2)', 0.2)])
def test_flip_happens_at_its_rate(args, rate):
  image, op = ramp(1, 2), parse('flip_lr' + args)
  rng = np.random.default_rng(0)
  flips = [op({'image': image}, rng)['image'][0, 0, 0] for _ in range(4000)]
  assert abs(np.mean(flips) - rate) < 0.03  # Four standard deviations.


@pytest.mark.parametrize(
  'text, message',
  [
    ('flip_lr(1.5)', 'probability, 0 to 1; got 1.5'),
    ('flip_lr("a")', "probability, 0 to 1; got 'a'"),
    ('resize_small((3, 4))', 'shorter side is a positive int; got (3, 4)'),
    ("resize_small(3, rounding='up')", "'nearest' or 'down'; got 'up'"),
    ("central_crop(3, rounding='up')", "'down' or 'even'; got 'up'"),
    ('random_crop(3, padding=-1)', '0 or more; got -1'),
    ('random_crop(3, pad_mode="wrap")', "there are ['zero', 'reflect']"),
  ],
)
def test_bad_arguments_are_refused(text, message):
  assert_refused(text, message)


ARGUMENTS = {
  'central_crop': '(5)',
  'color_jitter': '(0.4, 0.4, 0.2, 0.1)',
  'onehot': '(9)',
  'rand_augment': "('rand-p1')",
  'random_crop': '(5, padding=1)',
  'random_resized_crop': '(5)',
  'resize': '(5)',
  'resize_small': '(5)',
  'vtab_label': "('dsprites_location')",
}


# Those that work in Pillow, which knows 1 and 3 channels.
OF_PILLOW = {
  'aug_mix',
  'auto_augment',
  'color_jitter',
  'gaussian_blur',
  'grayscale',
  'rand_augment',
  'randaug',
  'solarize',
  'three_augment',
}
# multi_crop makes several images of one.
NAMES = sorted({*ops_language.names()} - {'multi_crop'})


@pytest.mark.parametrize('name', NAMES)
def test_every_op_leaves_its_input_alone_and_is_decided_by_its_generator(name):
  text = name + ARGUMENTS.get(name, '')
  op = parse(text)
  for channels in (1, 3) if name in OF_PILLOW else (1, 3, 10):
    image = noise(9, 8, channels)
    image.flags.writeable = False
    example = {'image': image, 'label': 3, 'index': 5}
    before = dict(example)
    for seed in range(4):
      first = op(example, np.random.default_rng(seed))
      second = op(example, np.random.default_rng(seed))
      assert example.keys() == before.keys()
      assert all(example[key] is before[key] for key in before)
      assert first.keys() == example.keys()
      for key in first:
        np.testing.assert_array_equal(first[key], second[key])
      assert first['image'].dtype == np.uint8
      assert first['image'].shape[2] == channels
