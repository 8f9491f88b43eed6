"""Made-up images in place of a recipe's data, where only shapes matter."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.data import ops_language
from vit_jax.errors import UserError

# Enough for any warm-up; images are made when they are read.
_NUM_EXAMPLES = 10**7


def image_shape(
  ops: str, *, trusted: bool = False
) -> tuple[int, int, int] | None:
  """Returns [H, W, C] after the host ops, if it is so for images of any size.

  Args:
    ops: of a config's input section, or of weights.
    trusted: whether the user wrote them, see `ops_language.parse`.
  """
  if not any(
    segment.name == 'decode' for segment in ops_language.segments(ops)
  ):
    return None  # The number of channels is then up to the source.
  parsed, shapes = ops_language.parse(ops, trusted=trusted), set()
  for size in ((600, 800), (900, 700)):
    example = {'image': np.zeros((*size, 3), np.uint8), 'label': 0}
    try:
      shapes.add(parsed(example, np.random.default_rng(0))['image'].shape)
    except (ValueError, LookupError):  # They need more than an image.
      return None
  return shapes.pop() if len(shapes) == 1 else None


def input_section(
  section: Mapping[str, Any],
  num_classes: int | None,
  size: tuple[int, int] | None = None,
) -> dict[str, Any]:
  """Returns an input section that reads nothing and yields the same shapes.

  Args:
    section: of a config.
    num_classes: of the labels; None for 1000.
    size: height and width of the images before the ops; needed where the ops
      do not tell what they become.

  Raises:
    UserError: the ops do not tell and no size is given.
  """
  shape = image_shape(section['ops'], trusted=True)
  if size is None and shape is None:
    raise UserError(
      f'config.input.ops={section["ops"]!r} does not tell the size of the '
      'images: give it with --image_size'
    )
  data = dict(
    name='synthetic',
    split='train',
    num_examples=_NUM_EXAMPLES,
    image_size=size or shape[:2],
    channels=3 if shape is None else shape[2],
    num_classes=num_classes or 1000,
  )
  return dict(section, data=data)
