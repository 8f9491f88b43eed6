"""rand_augment: timm's RandAugment, as DeiT and most torch recipes use it.

RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as timm has it, which differs
from the paper: an op is skipped with probability 1/2, magnitudes are noisy, and
the table has 15 ops. big_vision's is the op `randaug`.
"""

import ast
import math

import numpy as np

from vit_jax.data.ops import _pillow, _timm_policy
from vit_jax.data.ops_language import Op
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


def _weighted(text: str) -> dict[str, float]:
  """Returns the weights in a text such as 'Rotate 3, ShearX 0.5'."""
  return {
    name: ast.literal_eval(weight)
    for name, weight in map(str.split, text.split(','))
  }


# Other sets of ops, with weights or (None) each as likely as the others.
_SETS = {
  '3a': dict.fromkeys(('SolarizeIncreasing', 'Desaturate', 'GaussianBlur')),
  '3aw': _weighted(
    'SolarizeIncreasing 6, Desaturate 6, GaussianBlur 6, Rotate 3, ShearX 2, '
    'ShearY 2, PosterizeIncreasing 1, AutoContrast 1, ColorIncreasing 1, '
    'SharpnessIncreasing 1, ContrastIncreasing 1, BrightnessIncreasing 1, '
    'Equalize 1, Invert 1'
  ),
  'weights': _weighted(
    'Rotate 3, ShearX 2, ShearY 2, TranslateXRel 1, TranslateYRel 1, '
    'ColorIncreasing .25, SharpnessIncreasing .25, AutoContrast .25, '
    'SolarizeIncreasing .05, SolarizeAdd .05, ContrastIncreasing .05, '
    'BrightnessIncreasing .05, Equalize .05, PosterizeIncreasing .05, '
    'Invert .05'
  ),
}
_EXAMPLE = 'rand-m9-mstd0.5-inc1'


def rand_augment(
  config: str,
  *,
  method: str = 'bicubic',
  fill: tuple[int, int, int] = _pillow.IMAGENET_FILL,
) -> Op:
  """Applies a few random ops, each with a random magnitude.

  `rand_augment('rand-m9-mstd0.5-inc1')` is DeiT's. The text is timm's, 'rand'
  and settings with dashes between:

    m9       magnitude, an integer; default 10
    n2       how many ops an image gets; default 2
    p0.5     probability with which each of them does anything; default 0.5
    mstd0.5  standard deviation of the magnitude; over 100 draws it uniformly
             from 0 to m; default 0
    mmax10   where the magnitude is clipped; default 10
    inc1     ops that grow with the magnitude; without, posterize, solarize and
             the four enhancements are weakest in the middle or at the end
    tweights, t3a, t3aw   another set of ops

  The ops are drawn with replacement, so one may come twice; from a set with
  weights (tweights, t3aw) without. At magnitude 10 'inc1' may keep 0 bits of
  the image, which is then black, as in DeiT's training.

  Args:
    config: as above.
    method: how geometric ops resample: 'bilinear', 'bicubic' (timm's choice
      when the crop is resized bicubically) or 'random', one of the two each
      time.
    fill: colour of what geometric ops expose; the default is ImageNet's mean.
  """
  settings = _timm_policy.parse(
    config,
    'rand',
    dict(m=int, n=int, p=float, mstd=float, mmax=int, inc=int, t=_SETS.get),
    _EXAMPLE,
  )
  noise = settings.get('mstd', 0.0)
  num_ops, probability = settings.get('n', 2), settings.get('p', 0.5)
  largest = settings.get('mmax', 0) or 10
  if not 0 <= probability <= 1:
    raise UserError(f'{config!r}: p is 0 .. 1')
  names = _INCREASING if settings.get('inc') else _PLAIN
  weights = None
  if 't' in settings:
    names = settings['t']
    if names is None:
      raise UserError(f'{config!r}: t is followed by one of {list(_SETS)}')
    if None not in names.values():
      weights = np.array(list(names.values())) / sum(names.values())
  if weights is not None and num_ops > len(weights):
    raise UserError(f'{config!r}: the set has {len(weights)} ops only')
  ops = [
    _timm_policy.Op(
      _timm_policy.KINDS[name],
      probability=probability,
      magnitude=settings.get('m', 10),
      noise=math.inf if noise > 100 else noise,
      largest=largest,
      **_timm_policy.look(method, fill),
    )
    for name in names
  ]

  def draw(rng: np.random.Generator) -> list:
    if weights is None:
      chosen = rng.integers(len(ops), size=num_ops)
    else:
      chosen = rng.choice(len(ops), num_ops, replace=False, p=weights)
    return [ops[i].draw(rng) for i in chosen]

  return _timm_policy.op_of(draw)
