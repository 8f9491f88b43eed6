"""timm's augmentation ops by name, with a magnitude.

The ops of `policies.py` (timm/data/auto_augment.py, 1.0.31). Each has a
probability and a magnitude from 0 to 10, which may be noisy; an op converts the
magnitude into its argument.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.ops import _pillow
from vit_jax.errors import UserError

Transform = Callable[[Image.Image], Image.Image]

_MAX = 10.0
_METHODS = ('bilinear', 'bicubic')


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


@dataclasses.dataclass(frozen=True)
class Op:
  """An op of a policy.

  Attributes:
    kind: the transform.
    probability: with which it does anything.
    magnitude: from 0 to `largest`.
    noise: standard deviation of the magnitude; infinite draws it uniformly
      from 0 to `magnitude`.
    largest: at which a magnitude is clipped.
    method: 'bilinear', 'bicubic', or 'random': one of the two each time.
    fill: the colour of what a geometric op exposes.
  """

  kind: Kind
  probability: float = 1.0
  magnitude: float = _MAX
  noise: float = 0.0
  largest: float = _MAX
  method: str = 'bicubic'
  fill: _pillow.Color = _pillow.IMAGENET_FILL

  def draw(self, rng: np.random.Generator) -> Transform:
    """Returns the transform of one image, which may be none at all."""
    if self.probability < 1 and rng.random() >= self.probability:
      return lambda image: image
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
      method = _METHODS[rng.integers(2)]
    resample = _pillow.RESAMPLE[method]
    return lambda image: kind.apply(image, argument, resample, self.fill)


def signed(largest: float) -> Callable[[float, float], float]:
  """An argument from -largest to largest; a `chance` above 1/2 negates it."""
  return lambda level, chance: level * (-largest if chance > 0.5 else largest)


# v is the level, u the chance.
KINDS = {
  'AutoContrast': Kind(_pillow.autocontrast),
  'Equalize': Kind(_pillow.equalize),
  'Invert': Kind(_pillow.invert),
  'Rotate': Kind(_pillow.rotate, signed(30.0), True),
  'Posterize': Kind(_pillow.posterize, lambda v, u: int(v * 4)),
  'PosterizeIncreasing': Kind(_pillow.posterize, lambda v, u: 4 - int(v * 4)),
  'PosterizeOriginal': Kind(_pillow.posterize, lambda v, u: int(v * 4) + 4),
  'Solarize': Kind(_pillow.solarize, lambda v, u: min(256, int(v * 256))),
  'SolarizeIncreasing': Kind(
    _pillow.solarize, lambda v, u: 256 - min(256, int(v * 256))
  ),
  'SolarizeAdd': Kind(
    _pillow.solarize_add, lambda v, u: min(128, int(v * 110))
  ),
  'ShearX': Kind(_pillow.shear_x, signed(0.3), True),
  'ShearY': Kind(_pillow.shear_y, signed(0.3), True),
  'TranslateXRel': Kind(_pillow.translate_x, signed(0.45), True),
  'TranslateYRel': Kind(_pillow.translate_y, signed(0.45), True),
  'Desaturate': Kind(_pillow.color, lambda v, u: 1.0 - min(1.0, 0.5 + 0.5 * v)),
  'GaussianBlurRand': Kind(
    _pillow.blur, lambda v, u: 0.1 + (2.0 * min(v, 1.0) - 0.1) * u
  ),
}
for _name in ('Color', 'Contrast', 'Brightness', 'Sharpness'):
  _apply = getattr(_pillow, _name.lower())
  KINDS[_name] = Kind(_apply, lambda v, u: v * 1.8 + 0.1)
  KINDS[f'{_name}Increasing'] = Kind(
    _apply, lambda v, u: max(0.1, 1.0 + signed(0.9)(v, u))
  )


def apply(transforms: Sequence[Transform], image: Image.Image) -> Image.Image:
  """Returns the image after transforms, one after the other."""
  for transform in transforms:
    image = transform(image)
  return image


def geometry(method: str, fill: Any) -> dict[str, Any]:
  """Returns `method` and `fill`, checked, as fields of an Op."""
  if method not in (*_METHODS, 'random'):
    raise UserError(
      f"method is 'bilinear', 'bicubic' or 'random'; got {method!r}"
    )
  fill = tuple(fill) if isinstance(fill, list | tuple) else ()
  if len(fill) != 3 or not all(
    isinstance(v, int) and 0 <= v <= 255 for v in fill
  ):
    raise UserError('fill is a colour, three integers of 0 .. 255')
  return dict(method=method, fill=fill)


def settings(
  config: str,
  example: str,
  name: str | None = None,
  **keys: tuple[Callable[[str], Any], Any],
) -> dict[str, Any]:
  """Returns the settings of a text such as 'rand-m9-mstd0.5-inc1'.

  Args:
    config: a name and settings with dashes between.
    example: of such a text, for messages.
    name: that the text begins with; None is that of the example.
    **keys: of each setting the function that reads it, and the default.

  Raises:
    UserError: another name, an unknown setting, one given twice or a value
      that does not fit; all in one message.
  """
  name = name or example.split('-')[0]
  first, *rest = config.split('-') if isinstance(config, str) else ['']
  problems, given = [], {}
  if first != name:
    problems.append(f'it begins with {name!r}')
  for part in rest:
    # The longest key: 'mstd0.5' is not the magnitude 'std0.5'.
    key = max(filter(part.startswith, keys), key=len, default=None)
    if key is None or key in given:
      problems.append(f'{part!r} is unknown or given twice')
      continue
    try:
      given[key] = keys[key][0](part.removeprefix(key))
      if given[key] != given[key]:
        raise ValueError('not a number')
    except ValueError:
      problems.append(f'{part!r} has a value that does not fit')
  if problems:
    raise UserError(
      f'cannot read {config!r}: {"; ".join(problems)}; written as {example!r}, '
      f'with the settings {", ".join(keys)}'
    )
  return {key: default for key, (_, default) in keys.items()} | given
