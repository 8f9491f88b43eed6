"""aug_mix: AugMix, a mixture of several chains of ops and the image itself."""

import math

import numpy as np
from PIL import Image

from vit_jax.data.ops import _pillow, _timm_policy
from vit_jax.data.ops_language import Op
from vit_jax.errors import UserError

_NAMES = tuple(
  'AutoContrast ColorIncreasing ContrastIncreasing BrightnessIncreasing '
  'SharpnessIncreasing Equalize Rotate PosterizeIncreasing '
  'SolarizeIncreasing ShearX ShearY TranslateXRel TranslateYRel'.split()
)
_KINDS = _timm_policy.translating(0.3)


def aug_mix(
  config: str = 'augmix',
  *,
  method: str = 'bicubic',
  fill: tuple[int, int, int] = _pillow.IMAGENET_FILL,
) -> Op:
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
  settings = _timm_policy.parse(
    config,
    'augmix',
    dict(m=int, w=int, d=int, a=float, mstd=float),
    'augmix-m3-w3-d2',
  )
  width, depth = settings.get('w', 3), settings.get('d')
  alpha = settings.get('a', 1.0)
  if width < 1 or alpha <= 0 or (depth is not None and depth < 1):
    raise UserError(f'{config!r}: w and d are at least 1, a is positive')
  ops = [
    _timm_policy.Op(
      _KINDS[name],
      magnitude=settings.get('m', 3),
      noise=settings.get('mstd', math.inf),
      **_timm_policy.resampling(method, fill),
    )
    for name in _NAMES
  ]

  def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    weights = rng.dirichlet([alpha] * width)
    share = rng.beta(alpha, alpha)
    chains = []
    for _ in range(width):
      length = depth or int(rng.integers(1, 4))
      chosen = rng.integers(len(ops), size=length)
      chains.append([ops[i].draw(rng) for i in chosen])
    return mix(image, chains, weights, share)

  return _pillow.as_op(change)


def mix(
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
    picture = image
    for transform in chain:
      picture = transform(picture)
    mixed += weight * np.asarray(picture, np.float32)
  mixed = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
  return Image.blend(image, mixed, share)
