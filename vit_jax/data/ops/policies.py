"""timm's augmentation policies: rand_augment, auto_augment and aug_mix.

All are made of the ops of `_timm_policy.py`. Everything random is drawn before
an image is touched. big_vision's RandAugment is the op `randaug`.
"""

import math

import numpy as np
from PIL import Image

from vit_jax.data import ops_language
from vit_jax.data.ops import _pillow, _timm_policy
from vit_jax.data.ops._timm_policy import KINDS, Kind, Op
from vit_jax.errors import UserError

_PLAIN = tuple(
  'AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color '
  'Contrast Brightness Sharpness ShearX ShearY TranslateXRel '
  'TranslateYRel'.split()
)
_HAVE_INCREASING = 'Posterize Solarize Color Contrast Brightness Sharpness'
_INCREASING = tuple(
  f'{name}Increasing' if name in _HAVE_INCREASING.split() else name
  for name in _PLAIN
)
_MIXED = tuple(
  'AutoContrast ColorIncreasing ContrastIncreasing BrightnessIncreasing '
  'SharpnessIncreasing Equalize Rotate PosterizeIncreasing '
  'SolarizeIncreasing ShearX ShearY TranslateXRel TranslateYRel'.split()
)
# Sub-policies of two ops: name, probability, magnitude.
_V0 = """
Equalize .8 1, ShearY .8 4; Color .4 9, Equalize .6 3;
Color .4 1, Rotate .6 8; Solarize .8 3, Equalize .4 7;
Solarize .4 2, Solarize .6 2; Color .2 0, Equalize .8 8;
Equalize .4 8, SolarizeAdd .8 3; ShearX .2 9, Rotate .6 8;
Color .6 1, Equalize 1 2; Invert .4 9, Rotate .6 0;
Equalize 1 9, ShearY .6 3; Color .4 7, Equalize .6 0;
Posterize .4 6, AutoContrast .4 7; Solarize .6 8, Color .6 9;
Solarize .2 4, Rotate .8 9; Rotate 1 7, TranslateYRel .8 9;
ShearX 0 0, Solarize .8 4; ShearY .8 0, Color .6 4;
Color 1 0, Rotate .6 2; Equalize .8 4, Equalize 0 8;
Equalize 1 4, AutoContrast .6 2; ShearY .4 7, SolarizeAdd .6 7;
Posterize .8 2, Solarize .6 10; Solarize .6 8, Equalize .6 1;
Color .8 6, Rotate .4 5
"""
_ORIGINAL = """
PosterizeOriginal .4 8, Rotate .6 9; Solarize .6 5, AutoContrast .6 5;
Equalize .8 8, Equalize .6 3; PosterizeOriginal .6 7, PosterizeOriginal .6 6;
Equalize .4 7, Solarize .2 4; Equalize .4 4, Rotate .8 8;
Solarize .6 3, Equalize .6 7; PosterizeOriginal .8 5, Equalize 1 2;
Rotate .2 3, Solarize .6 8; Equalize .6 8, PosterizeOriginal .4 6;
Rotate .8 8, Color .4 0; Rotate .4 9, Equalize .6 2;
Equalize 0 7, Equalize .8 8; Invert .6 4, Equalize 1 8;
Color .6 4, Contrast 1 8; Rotate .8 8, Color 1 2;
Color .8 8, Solarize .8 7; Sharpness .4 7, Invert .6 8;
ShearX .6 5, Equalize 1 9; Color .4 0, Equalize .6 3;
Equalize .4 7, Solarize .2 4; Solarize .6 5, AutoContrast .6 5;
Invert .6 4, Equalize 1 8; Color .6 4, Contrast 1 8;
Equalize .8 8, Equalize .6 3
"""
_POLICIES = {
  'original': _ORIGINAL,
  'originalr': _ORIGINAL.replace('PosterizeOriginal', 'PosterizeIncreasing'),
  'v0': _V0,
  'v0r': _V0.replace('Posterize', 'PosterizeIncreasing'),
  '3a': 'Solarize 1 5; Desaturate 1 10; GaussianBlurRand 1 10',
}

_MIX_KINDS = KINDS | {
  'TranslateXRel': Kind(_pillow.translate_x, _timm_policy.signed(0.3), True),
  'TranslateYRel': Kind(_pillow.translate_y, _timm_policy.signed(0.3), True),
}


def rand_augment(
  config: str,
  *,
  method: str = 'bicubic',
  fill: tuple[int, int, int] = _pillow.IMAGENET_FILL,
) -> ops_language.Op:
  """Applies a few random ops, each with a random magnitude.

  RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as timm has it, which
  differs from the paper: an op is skipped with probability 1/2, magnitudes are
  noisy, and the table has 15 ops. `rand_augment('rand-m9-mstd0.5-inc1')` is
  DeiT's. The text is timm's, 'rand' and settings with dashes between:

    m9       magnitude, an integer; default 10
    n2       how many ops an image gets; default 2
    p0.5     probability with which each of them does anything; default 0.5
    mstd0.5  standard deviation of the magnitude; over 100 draws it uniformly
             from 0 to m; default 0
    mmax10   where the magnitude is clipped; default 10
    inc1     ops that grow with the magnitude; without, posterize, solarize and
             the four enhancements are weakest in the middle or at the end

  The ops are drawn with replacement, so one may come twice. At magnitude 10
  'inc1' may keep 0 bits of the image, which is then black, as in DeiT's
  training. timm's other sets of ops (t) are not supported.

  Args:
    config: as above.
    method: how geometric ops resample: 'bilinear', 'bicubic' (timm's choice
      when the crop is resized bicubically) or 'random', one of the two each
      time.
    fill: colour of what geometric ops expose; the default is ImageNet's mean.
  """
  settings = _timm_policy.settings(
    config,
    'rand-m9-mstd0.5-inc1',
    m=(int, 10),
    n=(int, 2),
    p=(float, 0.5),
    mstd=(float, 0.0),
    mmax=(int, 10),
    inc=(int, 0),
  )
  if not 0 <= settings['p'] <= 1:
    raise UserError(f'{config!r}: p is 0 .. 1')
  geometry = _timm_policy.geometry(method, fill)
  ops = [
    Op(
      KINDS[name],
      probability=settings['p'],
      magnitude=settings['m'],
      noise=math.inf if settings['mstd'] > 100 else settings['mstd'],
      largest=settings['mmax'] or 10,
      **geometry,
    )
    for name in (_INCREASING if settings['inc'] else _PLAIN)
  ]

  def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    chosen = rng.integers(len(ops), size=settings['n'])
    return _timm_policy.apply([ops[i].draw(rng) for i in chosen], image)

  return _pillow.as_op(change)


def auto_augment(
  config: str = 'original',
  *,
  method: str = 'bicubic',
  fill: tuple[int, int, int] = _pillow.IMAGENET_FILL,
) -> ops_language.Op:
  """Applies one sub-policy, drawn uniformly, of a learnt policy.

  Args:
    config: 'original' is the paper's for ImageNet (Cubuk et al. 2018,
      arXiv:1805.09501), 'v0' that of TensorFlow's EfficientNet; with an r added
      posterize keeps fewer bits the larger its magnitude. '3a' is DeiT III's
      (see `three_augment`). '-mstd0.5' after it makes the magnitudes noisy with
      this standard deviation.
    method: see `rand_augment`.
    fill: see `rand_augment`.
  """
  name = config.split('-')[0] if isinstance(config, str) else config
  if name not in _POLICIES:
    raise UserError(f'unknown policy {name!r}; there are {list(_POLICIES)}')
  settings = _timm_policy.settings(
    config, 'original-mstd0.5', name, mstd=(float, 0.0)
  )
  geometry = _timm_policy.geometry(method, fill)
  policy = [
    [
      Op(KINDS[kind], probability, magnitude, settings['mstd'], **geometry)
      for kind, probability, magnitude in pair
    ]
    for pair in _sub_policies(name)
  ]

  def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pair = policy[rng.integers(len(policy))]
    return _timm_policy.apply([op.draw(rng) for op in pair], image)

  return _pillow.as_op(change)


def _sub_policies(name: str) -> list[list[tuple[str, float, float]]]:
  """Returns (op, probability, magnitude) of the ops of each sub-policy."""
  return [
    [
      (kind, float(probability), float(magnitude))
      for kind, probability, magnitude in map(str.split, pair.split(','))
    ]
    for pair in _POLICIES[name].split(';')
  ]


def aug_mix(
  config: str = 'augmix',
  *,
  method: str = 'bicubic',
  fill: tuple[int, int, int] = _pillow.IMAGENET_FILL,
) -> ops_language.Op:
  """Mixes the image with a mixture of chains of augmentations.

  AugMix (Hendrycks et al. 2019, arXiv:1912.02781) as in timm: the weights of
  the chains are Dirichlet(a, ..., a), the share of their mixture Beta(a, a).
  The loss that the paper adds is not part of it. The text is timm's, 'augmix'
  and settings with dashes between:

    m3       magnitude, an integer; default 3
    w3       chains; default 3
    d2       ops of a chain, drawn with replacement; default 1, 2 or 3 at random
    a1       the a above; default 1
    mstd0.5  standard deviation of the magnitude; by default it is uniform from
             0 to m

  timm's b1, another way to mix, is not there. `method` and `fill` are those of
  `rand_augment`.
  """
  settings = _timm_policy.settings(
    config,
    'augmix-m3-w3-d2',
    m=(int, 3),
    w=(int, 3),
    d=(int, None),
    a=(float, 1.0),
    mstd=(float, math.inf),
  )
  width, depth, alpha = settings['w'], settings['d'], settings['a']
  if width < 1 or alpha <= 0 or (depth is not None and depth < 1):
    raise UserError(f'{config!r}: w and d are at least 1, a is positive')
  geometry = _timm_policy.geometry(method, fill)
  ops = [
    Op(
      _MIX_KINDS[name],
      magnitude=settings['m'],
      noise=settings['mstd'],
      **geometry,
    )
    for name in _MIXED
  ]

  def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    weights = rng.dirichlet([alpha] * width)
    share = rng.beta(alpha, alpha)
    chains = []
    for _ in range(width):
      length = depth or int(rng.integers(1, 4))
      chosen = rng.integers(len(ops), size=length)
      chains.append([ops[i].draw(rng) for i in chosen])
    return _mix(image, chains, weights, share)

  return _pillow.as_op(change)


def _mix(
  image: Image.Image,
  chains: list[list[_timm_policy.Transform]],
  weights: np.ndarray,
  share: float,
) -> Image.Image:
  """Returns `(1 - share) * image + share * sum(weight * chain(image))`.

  The sum is float32 and then cut to whole levels, as in timm.
  """
  mixed = 0.0
  for chain, weight in zip(chains, np.float32(weights), strict=True):
    mixed += weight * np.asarray(_timm_policy.apply(chain, image), np.float32)
  mixed = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
  return Image.blend(image, mixed, share)
