"""rand_augment: timm's RandAugment, as DeiT and most torch recipes use it.

RandAugment (Cubuk et al. 2019, arXiv:1909.13719) as timm has it, which differs
from the paper: an op is skipped with probability 1/2, magnitudes are noisy, and
the table has 15 ops. big_vision's is the op `randaug`.
"""

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
  settings = _timm_policy.parse(
    config,
    'rand',
    dict(m=int, n=int, p=float, mstd=float, mmax=int, inc=int),
    _EXAMPLE,
  )
  noise = settings.get('mstd', 0.0)
  num_ops, probability = settings.get('n', 2), settings.get('p', 0.5)
  largest = settings.get('mmax', 0) or 10
  if not 0 <= probability <= 1:
    raise UserError(f'{config!r}: p is 0 .. 1')
  names = _INCREASING if settings.get('inc') else _PLAIN
  ops = [
    _timm_policy.Op(
      _timm_policy.KINDS[name],
      probability=probability,
      magnitude=settings.get('m', 10),
      noise=math.inf if noise > 100 else noise,
      largest=largest,
      **_timm_policy.resampling(method, fill),
    )
    for name in names
  ]

  def draw(rng: np.random.Generator) -> list:
    chosen = rng.integers(len(ops), size=num_ops)
    return [ops[i].draw(rng) for i in chosen]

  return _timm_policy.op_of(draw)
