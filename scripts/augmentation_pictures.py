r"""Draw docs/augmentations.png: each host op at three strengths.

  python scripts/augmentation_pictures.py [--image=photo.jpg] [--out=x.png]

Without an image it takes the photograph of a flower that comes with
scikit-learn. Ops that draw at random are shown with a fixed generator.
"""

import argparse

import matplotlib
import numpy as np
from PIL import Image

from vit_jax.data import ops_language
from vit_jax.data.ops import _timm_policy, randaug

matplotlib.use('Agg')
import matplotlib.pyplot as plt

SIDE = 224
# One op of timm's table at magnitude 3, 6 and 9, the sign as given.
TIMM = (
  'AutoContrast',
  'Equalize',
  'Invert',
  'Rotate',
  'PosterizeIncreasing',
  'SolarizeIncreasing',
  'SolarizeAdd',
  'ColorIncreasing',
  'ContrastIncreasing',
  'BrightnessIncreasing',
  'SharpnessIncreasing',
  'ShearX',
  'ShearY',
  'TranslateXRel',
  'TranslateYRel',
)
BIG_VISION = tuple(randaug.table(10, 'fixed'))
# Ops as they are written in a config, and the titles of the pictures.
TEXTS = {
  'rand_augment': {
    f'm {m}': f"rand_augment('rand-m{m}-inc1-p1')" for m in (3, 6, 9)
  },
  'randaug': {f'M {m}': f'randaug(2, {m})' for m in (5, 10, 15)},
  'auto_augment': {
    name: f'auto_augment({name!r})' for name in ('original', 'v0', 'v0r')
  },
  'three_augment': {f'draw {i}': 'three_augment' for i in (1, 2, 3)},
  'aug_mix': {f'm {m}': f"aug_mix('augmix-m{m}')" for m in (3, 6, 9)},
  'color_jitter': {
    f'{v}, {v}, {v}': f'color_jitter({v}, {v}, {v})' for v in (0.2, 0.4, 0.8)
  },
  'color_jitter, hue': {
    f'hue {v}': f'color_jitter(hue=({v}, {v}))' for v in (0.1, 0.25, 0.5)
  },
  'grayscale': {'': 'grayscale'},
  'gaussian_blur': {
    f'radius {r}': f'gaussian_blur(radius=({r}, {r}))' for r in (0.5, 1, 2)
  },
  'solarize': {
    f'threshold {t}': f'solarize(threshold={t})' for t in (192, 128, 64)
  },
  'random_resized_crop': {
    f'area {s}': f'random_resized_crop({SIDE}, scale=({s}, {s}))'
    for s in (0.8, 0.4, 0.08)
  },
  "sampling='tensorflow'": {
    f'area {s} .. 1': (
      f"random_resized_crop({SIDE}, scale=({s}, 1), sampling='tensorflow')"
    )
    for s in (0.8, 0.4, 0.05)
  },
  'random_crop, reflected': {
    f'padding {p}': f"random_crop({SIDE}, padding={p}, pad_mode='reflect')"
    for p in (4, 30, 90)
  },
  'multi_crop': {
    'global': f'multi_crop({SIDE}, num_local=0)',
    'local': f'multi_crop({SIDE}, local_size={SIDE}, num_local=1)',
    'local, area 0.05 .. 0.25': (
      f'multi_crop({SIDE}, local_size={SIDE}, num_local=1,'
      'local_scale=(0.05, 0.25))'
    ),
  },
}


def main():
  """Draws the picture."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--image', help='a photograph')
  parser.add_argument('--out', default='docs/augmentations.png')
  arguments = parser.parse_args()
  image = photograph(arguments.image)
  rows = [
    *(timm_row(name, image) for name in TIMM),
    *(big_vision_row(name, image) for name in BIG_VISION),
    *(text_row(name, texts, image) for name, texts in TEXTS.items()),
  ]
  rows = [('original', [('', image)] * 3), *rows]
  draw(rows, arguments.out)


def photograph(path: str | None) -> np.ndarray:
  """Returns the middle square of a photograph, uint8 [SIDE, SIDE, 3]."""
  if path is None:
    from sklearn.datasets import load_sample_image

    picture = Image.fromarray(load_sample_image('flower.jpg'))
  else:
    picture = Image.open(path).convert('RGB')
  ops = ops_language.parse(f'resize_small({SIDE})|central_crop({SIDE})')
  example = ops({'image': np.asarray(picture)}, np.random.default_rng(0))
  return example['image']


def timm_row(name: str, image: np.ndarray):
  """Returns a title and, of three magnitudes, argument and picture."""
  kind, cells = _timm_policy.KINDS[name], []
  for magnitude in (3, 6, 9):
    op = _timm_policy.Op(kind, magnitude=magnitude)
    chance = np.random.default_rng(2)  # its first number is below 1/2
    out = np.asarray(op.draw(chance)(Image.fromarray(image)))
    cells.append((f'm {magnitude}' if kind.argument else '', out))
  return f'timm: {name}', cells if kind.argument else cells[:1]


def big_vision_row(name: str, image: np.ndarray):
  """As `timm_row`, of big_vision's table at 5, 10 and 15."""
  cells = []
  for magnitude in (5, 10, 15):
    op = randaug.table(magnitude, 'fixed')[name]
    out = op(Image.fromarray(image), np.random.default_rng(2))
    cells.append((f'M {magnitude}', np.asarray(out)))
  plain = name in ('AutoContrast', 'Equalize', 'Invert')
  return f'big_vision: {name}', cells[:1] if plain else cells


def text_row(name: str, texts: dict[str, str], image: np.ndarray):
  """As `timm_row`, of ops in the mini-language."""
  cells = []
  for seed, (words, text) in enumerate(texts.items()):
    example = ops_language.parse(text, trusted=True)(
      {'image': image}, np.random.default_rng(4 + seed)
    )
    out = example['image']
    if out.ndim == 4:
      out = example.get('local_image', out)[0]
    cells.append((words, out))
  return name, cells


def draw(rows, path: str) -> None:
  """Writes the picture: rows in three columns of the page."""
  columns = 3
  per_column = -(-len(rows) // columns)
  figure, axes = plt.subplots(
    per_column, 3 * columns, figsize=(13, 1.62 * per_column), dpi=64
  )
  for axis in axes.flat:
    axis.axis('off')
  for i, (title, cells) in enumerate(rows):
    column, row = divmod(i, per_column)
    for j, (words, image) in enumerate(cells):
      axis = axes[row, 3 * column + j]
      axis.imshow(image)
      axis.set_title(words, fontsize=6.5, pad=2, color='0.35')
    first = axes[row, 3 * column]
    first.text(
      0, 1.16, title, transform=first.transAxes, fontsize=8, weight='bold'
    )
  figure.subplots_adjust(0.01, 0.005, 0.99, 0.975, wspace=0.06, hspace=0.42)
  figure.savefig(path, pil_kwargs=dict(optimize=True))
  plt.close(figure)


if __name__ == '__main__':
  main()
