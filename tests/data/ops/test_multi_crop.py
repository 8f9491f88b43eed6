"""Views of multi_crop, against DINO's table."""

import inspect

from vit_jax.data import ops_language
from vit_jax.data.ops import multi_crop

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
    taken = inspect.signature(ops_language._find(segment.name)).bind(
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
