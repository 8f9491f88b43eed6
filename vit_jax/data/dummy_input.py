"""Made-up data in place of a recipe's own, where only shapes or speed matter.

Smoke runs, ahead-of-time compilation, benchmarks and summaries all use it. The
recipe's own host ops run on the made-up examples, so that every field has the
shape and type that it has in training, whatever the ops make of an image.
"""

from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError

# Enough for any warm-up; images are made when they are read.
_NUM_EXAMPLES = 10**7
# Height and width of two images that ops of a fixed output size make equal.
_SIZES = ((600, 800), (900, 700))
_NUM_CLASSES = 1000


def data_section(
  num_classes: int | None = None, *, encoded: bool = False, **keys: Any
) -> dict[str, Any]:
  """Returns a data section of made-up images, labels and texts.

  Args:
    num_classes: of the labels; None for 1000.
    encoded: whether images are JPEG files, whose decoding takes time.
    **keys: of the source `synthetic`, or `synthetic_jpegs` if encoded.
  """
  name = 'synthetic_jpegs' if encoded else 'synthetic'
  keys = dict(split='train', num_classes=num_classes or _NUM_CLASSES) | keys
  return dict(keys, name=name)


def input_section(
  section: Mapping[str, Any],
  num_classes: int | None,
  size: tuple[int, int] | None = None,
) -> dict[str, Any]:
  """Returns an input section on made-up data that yields the same shapes.

  `size`, the height and width of the images before the ops, is needed where the
  shape after the ops depends on it.

  Raises:
    UserError: the shape depends on the size and no size is given.
  """
  if size is None and image_shape(section['ops'], trusted=True) is None:
    raise UserError(
      f'config.input.ops={section["ops"]!r} does not determine the size of the '
      'images: give it with --image_size'
    )
  data = data_section(
    num_classes, num_examples=_NUM_EXAMPLES, image_size=size or _SIZES[0]
  )
  return dict(section, data=data)


def image_shape(
  ops: str, *, trusted: bool = False
) -> tuple[int, int, int] | None:
  """Returns [H, W, C] after the host ops, if the same for images of any size.

  Of several views in `image` it is the shape of one.
  """
  import numpy as np  # Not above: recipes import this file.

  from vit_jax.data import ops_language

  if not any(s.name == 'decode' for s in ops_language.segments(ops)):
    return None  # The source then decides the number of channels.
  parsed, shapes = ops_language.parse(ops, trusted=trusted), set()
  for size in _SIZES:
    example = {'image': np.zeros((*size, 3), np.uint8), 'label': 0, 'text': ''}
    try:
      example = parsed(example, np.random.default_rng(0))
    except (ValueError, LookupError):  # They need other fields.
      return None
    shapes.add(example['image'].shape[-3:])
  return shapes.pop() if len(shapes) == 1 else None
