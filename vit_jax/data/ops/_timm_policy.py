"""timm's augmentation policies: ops by name, with a magnitude.

RandAugment, AutoAugment and AugMix of timm (timm/data/auto_augment.py, 1.0.31)
are made of the same ops. Each has a probability and a magnitude from 0 to 10,
which may be noisy; each op converts the magnitude into its argument. Everything
random is drawn before an image is touched.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import ops_language
from vit_jax.data.ops import _pillow
from vit_jax.errors import UserError

Transform = Callable[[Image.Image], Image.Image]

_MAX = 10.0
_TRANSLATE = 0.45  # of the side, at the largest magnitude
METHODS = ('bilinear', 'bicubic')


def _signed(largest: float):
  """An argument from -largest to largest; a `chance` above 1/2 negates it."""

  def argument(level, chance):
    value = level * largest
    return -value if chance > 0.5 else value

  return argument


@dataclasses.dataclass(frozen=True)
class Kind:
  """One of timm's ops.

  Attributes:
    apply: function of `_pillow.py`, called with the image and the argument,
      and with `resample` and `fill` if it is geometric.
    argument: `(level, chance)` -> argument; None without one. The level is
      magnitude / 10; `chance` is a random number from 0 to 1.
    geometric: whether it moves pixels.
  """

  apply: Callable[..., Image.Image]
  argument: Callable[[float, float], Any] | None = None
  geometric: bool = False


_ENHANCEMENTS = ('Color', 'Contrast', 'Brightness', 'Sharpness')
KINDS = {
  'AutoContrast': Kind(_pillow.autocontrast),
  'Equalize': Kind(_pillow.equalize),
  'Invert': Kind(_pillow.invert),
  'Rotate': Kind(_pillow.rotate, _signed(30.0), True),
  # v is the level.
  'Posterize': Kind(_pillow.posterize, lambda v, _: int(v * 4)),
  'PosterizeIncreasing': Kind(_pillow.posterize, lambda v, _: 4 - int(v * 4)),
  'PosterizeOriginal': Kind(_pillow.posterize, lambda v, _: int(v * 4) + 4),
  'Solarize': Kind(_pillow.solarize, lambda v, _: min(256, int(v * 256))),
  'SolarizeIncreasing': Kind(
    _pillow.solarize, lambda v, _: 256 - min(256, int(v * 256))
  ),
  'SolarizeAdd': Kind(
    _pillow.solarize_add, lambda v, _: min(128, int(v * 110))
  ),
  'ShearX': Kind(_pillow.shear_x, _signed(0.3), True),
  'ShearY': Kind(_pillow.shear_y, _signed(0.3), True),
  'TranslateXRel': Kind(_pillow.translate_x, _signed(_TRANSLATE), True),
  'TranslateYRel': Kind(_pillow.translate_y, _signed(_TRANSLATE), True),
  'Desaturate': Kind(_pillow.color, lambda v, _: 1.0 - min(1.0, 0.5 + 0.5 * v)),
  'GaussianBlurRand': Kind(
    _pillow.blur,
    lambda level, chance: 0.1 + (2.0 * min(level, 1.0) - 0.1) * chance,
  ),
}
for _name in _ENHANCEMENTS:
  _apply = getattr(_pillow, _name.lower())
  KINDS[_name] = Kind(_apply, lambda level, _: level * 1.8 + 0.1)
  KINDS[f'{_name}Increasing'] = Kind(
    _apply, lambda level, chance: max(0.1, 1.0 + _signed(0.9)(level, chance))
  )


def translating(fraction: float) -> dict[str, Kind]:
  """Returns KINDS whose translations reach `fraction` of the side."""
  reach = _signed(fraction)
  return KINDS | {
    name: dataclasses.replace(KINDS[name], argument=reach)
    for name in ('TranslateXRel', 'TranslateYRel')
  }


@dataclasses.dataclass(frozen=True)
class Op:
  """An op of a policy.

  Attributes:
    kind: the transform.
    method: 'bilinear', 'bicubic', or 'random': one of the two each time.
    fill: the colour of what a geometric op exposes.
    probability: with which it does anything.
    magnitude: from 0 to `largest`.
    noise: standard deviation of the magnitude; infinite draws it uniformly
      from 0 to `magnitude`.
    largest: at which a magnitude is clipped.
  """

  kind: Kind
  method: str
  fill: _pillow.Color
  probability: float = 1.0
  magnitude: float = _MAX
  noise: float = 0.0
  largest: float = _MAX

  def draw(self, rng: np.random.Generator) -> Transform | None:
    """Returns the transform of one image, or None to skip it."""
    if self.probability < 1 and rng.random() >= self.probability:
      return None
    kind = self.kind
    if kind.argument is None:
      return kind.apply
    magnitude = self.magnitude
    if self.noise == math.inf:
      magnitude = rng.uniform(0, magnitude)
    elif self.noise > 0:
      magnitude = rng.normal(magnitude, self.noise)
    level = max(0.0, min(magnitude, self.largest)) / _MAX
    argument = kind.argument(level, rng.random())
    if not kind.geometric:
      return lambda image: kind.apply(image, argument)
    method = self.method
    if method == 'random':
      method = METHODS[rng.integers(2)]
    resample = _pillow.RESAMPLE[method]
    return lambda image: kind.apply(image, argument, resample, self.fill)


def op_of(
  draw: Callable[[np.random.Generator], list[Transform | None]],
) -> ops_language.Op:
  """Returns the op that applies what `draw` returns for each image."""
  return lambda example, rng: (
    example | {'image': run(_pillow.picture_of(example), draw(rng))}
  )


def run(image: np.ndarray, transforms: list[Transform | None]) -> np.ndarray:
  """Returns `[H, W, C]` after the results of `Op.draw`, None left out."""
  transforms = [transform for transform in transforms if transform]
  if not transforms:
    return image
  picture = _pillow.to_pillow(image)
  for transform in transforms:
    picture = transform(picture)
  return _pillow.to_array(picture)


def resampling(method: str, fill: Any) -> dict[str, Any]:
  """Returns `method` and `fill` as fields of an Op.

  Raises:
    UserError: an unknown method, or a fill that is not a colour.
  """
  if method not in (*METHODS, 'random'):
    raise UserError(
      f"method is 'bilinear', 'bicubic' or 'random'; got {method!r}"
    )
  fill = tuple(fill) if isinstance(fill, list | tuple) else ()
  if len(fill) != 3 or not all(
    isinstance(v, int) and 0 <= v <= 255 for v in fill
  ):
    raise UserError('fill is a colour, three integers of 0 .. 255')
  return dict(method=method, fill=fill)


def parse(
  config: str, name: str, keys: dict[str, Callable[[str], Any]], example: str
) -> dict[str, Any]:
  """Returns the settings of a text such as 'rand-m9-mstd0.5-inc1'.

  The text is `name` and settings with dashes between; `keys` reads the value of
  each setting, and `example` is for messages.

  Raises:
    UserError: another name, an unknown setting, one given twice or a value
      that does not fit; all in one message.
  """
  first, *rest = config.split('-') if isinstance(config, str) else ['']
  problems, settings = [], {}
  if first != name:
    problems.append(f'it begins with {name!r}')
  for part in rest:
    # The longest key first: 'mstd0.5' is not the magnitude 'std0.5'.
    key = next(
      (k for k in sorted(keys, key=len, reverse=True) if part.startswith(k)),
      None,
    )
    if key is None or key in settings:
      problems.append(f'{part!r} is unknown or given twice')
      continue
    try:
      settings[key] = keys[key](part.removeprefix(key))
      if settings[key] != settings[key]:
        raise ValueError('not a number')
    except (ValueError, KeyError):
      problems.append(f'{part!r} has a value that does not fit')
  if problems:
    raise UserError(
      f'cannot read {config!r}: {"; ".join(problems)}; written as {example!r}, '
      f'with the settings {", ".join(keys)}'
    )
  return settings
