"""randaug: big_vision's RandAugment, used by AugReg and the S/16 baseline.

The table is the one of TensorFlow's EfficientNet, as big_vision has it in
pp/archive/autoaugment.py. timm's RandAugment, which DeiT uses, is the op
`rand_augment`.
"""

import functools
import math

import numpy as np
from PIL import Image, ImageStat

from vit_jax.data.ops import _pillow
from vit_jax.data.ops._checks import is_int
from vit_jax.data.ops_language import Op
from vit_jax.errors import UserError

_FILL = (128, 128, 128)
_NEAREST = _pillow.RESAMPLE['nearest']
# Positions half-way between two pixels are common and are rounded up; Pillow's
# have 16 bits after the point and might just miss the half.
_TIE = 2**-8
_FLAVOURS = ('fixed', 'compat')


def randaug(
  num_layers: int = 2, magnitude: float = 10, *, flavour: str = 'fixed'
) -> Op:
  """Applies `num_layers` ops one after the other, each one of 16.

  Each layer draws its op uniformly and always applies it, at the same
  magnitude M, without noise; what has a direction takes it at random. The
  arguments are

    Rotate +-3M degrees; ShearX, ShearY +-0.03M; TranslateX, TranslateY +-10M
    pixels; Cutout a square of 2 * int(4M) pixels around a random one; exposed
    area and cut squares are grey, (128, 128, 128); nearest neighbour
    Color, Contrast, Brightness, Sharpness: factor 0.1 + 0.18M
    Posterize keeps int(0.4M) bits, at least 1; SolarizeAdd adds int(11M) to
    values below 128; Solarize inverts values from int(25.6M) on
    AutoContrast, Equalize, Invert

  so that M = 0 is far from doing nothing, and Solarize does nothing from 10 on
  and Posterize from 20.

  Arithmetic is Pillow's: blends are as in TensorFlow, grey levels and smoothed
  pixels may differ from TensorFlow's by one before they are blended.

  Args:
    num_layers: ops that an image gets.
    magnitude: M; 10 and 15 are usual, more than 10 is meant to be possible.
    flavour: 'fixed', or 'compat' with two slips that published models were
      trained with: Solarize's threshold wraps around at 256 (M = 10 and 20
      invert the image, M = 15 is 128), and the grey level that Contrast blends
      with is height * width / 256, at most 255, whatever the image holds (196
      at 224 x 224).
  """
  if not is_int(num_layers, 0):
    raise UserError(f'num_layers is 0, 1, 2, ...; got {num_layers!r}')
  if not isinstance(magnitude, int | float) or not 0 <= magnitude < math.inf:
    raise UserError(f'magnitude is a number of at least 0; got {magnitude!r}')
  if flavour not in _FLAVOURS:
    raise UserError(f'flavour is one of {_FLAVOURS}; got {flavour!r}')
  ops = list(table(magnitude, flavour).values())

  def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for i in rng.integers(len(ops), size=num_layers):
      image = ops[i](image, rng)
    return image

  return _pillow.as_op(change)


def table(magnitude: float, flavour: str) -> dict[str, functools.partial]:
  """Returns the 16 ops at one magnitude, each `(image, rng) -> image`."""
  level, compat = magnitude / 10, flavour == 'compat'
  factor, threshold = level * 1.8 + 0.1, int(level * 256)
  threshold = threshold % 256 if compat else min(256, threshold)

  def plain(function, *args):
    return lambda image, rng: function(image, *args)

  def signed(function, largest):
    return lambda image, rng: function(
      image, largest if rng.random() < 0.5 else -largest
    )

  def moved(matrix, largest):
    return signed(
      lambda image, x: _pillow.affine(image, matrix(x), _NEAREST, _FILL),
      level * largest,
    )

  return {
    'AutoContrast': plain(_pillow.autocontrast),
    'Equalize': plain(_pillow.equalize),
    'Invert': plain(_pillow.invert),
    'Rotate': signed(
      lambda image, degrees: _pillow.rotate(image, degrees, _NEAREST, _FILL),
      level * 30.0,
    ),
    'Posterize': plain(_pillow.posterize, max(1, int(level * 4))),
    'Solarize': plain(_pillow.solarize, threshold),
    'Color': plain(_pillow.color, factor),
    'Contrast': plain(_contrast, factor, compat),
    'Brightness': plain(_pillow.brightness, factor),
    'Sharpness': plain(_pillow.sharpness, factor),
    # TensorFlow's origin is the centre of the first pixel, not its corner.
    'ShearX': moved(lambda f: (1, f, _TIE - f / 2, 0, 1, 0), 0.3),
    'ShearY': moved(lambda f: (1, 0, 0, f, 1, _TIE - f / 2), 0.3),
    'TranslateX': moved(lambda n: (1, 0, n, 0, 1, 0), 100.0),
    'TranslateY': moved(lambda n: (1, 0, 0, 0, 1, n), 100.0),
    'Cutout': functools.partial(_cutout, half=int(level * 40)),
    'SolarizeAdd': plain(_pillow.solarize_add, int(level * 110)),
  }


def _contrast(image: Image.Image, factor: float, compat: bool) -> Image.Image:
  """Blends with one grey level, cut to a whole number as big_vision does."""
  if compat:
    level = min(255, image.size[0] * image.size[1] // 256)
  else:
    level = int(ImageStat.Stat(image.convert('L')).mean[0])
  flat = Image.new('L', image.size, level).convert(image.mode)
  return Image.blend(flat, image, factor)


def _cutout(
  image: Image.Image, rng: np.random.Generator, half: int
) -> Image.Image:
  width, height = image.size
  x, y = int(rng.integers(width)), int(rng.integers(height))
  box = (max(0, x - half), max(0, y - half))
  box += (min(width, x + half), min(height, y + half))
  image = image.copy()
  image.paste(_FILL if image.mode == 'RGB' else _FILL[0], box)
  return image
