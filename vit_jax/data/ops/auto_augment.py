"""auto_augment: AutoAugment's policies for ImageNet, as in timm."""

from vit_jax.data.ops import _pillow, _timm_policy
from vit_jax.data.ops_language import Op
from vit_jax.errors import UserError

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


def auto_augment(
  config: str = 'original',
  *,
  method: str = 'bicubic',
  fill: tuple[int, int, int] = _pillow.IMAGENET_FILL,
) -> Op:
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
  settings = _timm_policy.parse(
    config, name, dict(mstd=float), 'original-mstd0.5'
  )
  geometry = _timm_policy.resampling(method, fill)
  noise = settings.get('mstd', 0.0)
  policy = [
    [
      _timm_policy.Op(
        _timm_policy.KINDS[kind],
        probability=probability,
        magnitude=magnitude,
        noise=noise,
        **geometry,
      )
      for kind, probability, magnitude in pair
    ]
    for pair in sub_policies(name)
  ]

  return _timm_policy.op_of(
    lambda rng: [one.draw(rng) for one in policy[rng.integers(len(policy))]]
  )


def sub_policies(name: str) -> list[list[tuple[str, float, float]]]:
  """Returns (op, probability, magnitude) of the ops of each sub-policy."""
  return [
    [
      (kind, float(probability), float(magnitude))
      for kind, probability, magnitude in map(str.split, pair.split(','))
    ]
    for pair in _POLICIES[name].split(';')
  ]
