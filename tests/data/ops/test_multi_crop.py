"""Views of multi_crop, against DINO's table."""

import inspect

import numpy as np
import pytest
from scipy import stats

from tests.data.ops.op_runs import assert_refused, parse
from vit_jax.data import ops_language, pipeline
from vit_jax.data.ops import _pillow, color, multi_crop

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)

# arXiv:2104.14294 and DataAugmentationDINO of facebookresearch/dino.
COLOURS = [
  ('flip_lr', {'rate': 0.5}),
  (
    'color_jitter',
    dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, rate=0.8),
  ),
  ('grayscale', {'rate': 0.2}),
]


def blurred(rate):
  return [*COLOURS, ('gaussian_blur', {'rate': rate, 'radius': (0.1, 2.0)})]


def resolved(text):
  found = []
  for segment in ops_language.segments(text):
    taken = inspect.signature(ops_language.find(segment.name)).bind(
      *segment.args, **segment.kwargs
    )
    taken.apply_defaults()
    found.append((segment.name, dict(taken.arguments)))
  return found


def test_the_defaults_are_dinos(monkeypatch):
  crops, texts = [], []
  monkeypatch.setattr(
    multi_crop,
    'random_resized_crop',
    lambda size, **kw: crops.append((size, kw)),
  )
  monkeypatch.setattr(
    multi_crop.ops_language, 'parse', lambda text, **_: texts.append(text)
  )
  multi_crop.multi_crop()
  assert crops == [
    (224, dict(scale=(0.4, 1.0), method='bicubic')),
    (96, dict(scale=(0.05, 0.4), method='bicubic')),
  ]
  first, second, local = map(resolved, texts)
  assert first == blurred(1.0)
  assert second == [
    *blurred(0.1),
    ('solarize', {'rate': 0.2, 'threshold': 128}),
  ]
  assert local == blurred(0.5)
  parameters = inspect.signature(multi_crop.multi_crop).parameters
  assert parameters['num_local'].default == 8


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
  'text, message',
  [
    ('num_local=-1', 'num_local is 0, 1, 2'),
    ("global_ops='flip_lr'", 'a text for each view'),
    ("local_ops='flop_lr'", "unknown op 'flop_lr'"),
  ],
)
def test_mistakes_are_named(text, message):
  assert_refused(f'multi_crop({text})', message)
