"""multi_crop: several views of one image, for self-distillation."""

from collections.abc import Sequence

import numpy as np

from vit_jax.data import ops_language
from vit_jax.data.ops._checks import is_int
from vit_jax.data.ops.geometry import random_resized_crop
from vit_jax.data.ops_language import Example, Op, image_of
from vit_jax.errors import UserError

_COLORS = 'color_jitter(0.4, 0.4, 0.2, 0.1, rate=0.8)|grayscale(0.2)'
# DINO's; the two global views differ.
_GLOBAL = (
  f'flip_lr|{_COLORS}|gaussian_blur(1.0)',
  f'flip_lr|{_COLORS}|gaussian_blur(0.1)|solarize(0.2)',
)
_LOCAL = f'flip_lr|{_COLORS}|gaussian_blur(0.5)'


def multi_crop(
  size: int | tuple[int, int] = 224,
  *,
  num_local: int = 8,
  local_size: int | tuple[int, int] = 96,
  global_scale: Sequence[float] = (0.4, 1.0),
  local_scale: Sequence[float] = (0.05, 0.4),
  method: str = 'bicubic',
  global_ops: Sequence[str] = _GLOBAL,
  local_ops: str = _LOCAL,
) -> Op:
  """Makes a few large and many small views of the image.

  `image` becomes the global views, uint8 `[G, size, size, C]`, and
  `local_image` the local ones, `[num_local, local_size, local_size, C]`
  (missing if `num_local` is 0); in a batch they are `[B, G, ...]`. Each view is
  a `random_resized_crop` of its own, with ops after it.

  The defaults are DINO's (Caron et al. 2021, arXiv:2104.14294): two global
  views, both with colour jitter and greyscale, the first always blurred, the
  second seldom and at times solarized; local views blurred half the time. Its
  released models have 10 local views, S/16 with global_scale (0.25, 1) and
  local_scale (0.05, 0.25).

  Args:
    size: of the global views, an int (square) or `(height, width)`.
    num_local: how many local views.
    local_size: of the local views, likewise.
    global_scale: smallest and largest area of a global crop, as a fraction.
    local_scale: likewise, of a local crop.
    method: how crops are resized, see `resize`.
    global_ops: what follows the crop, in the mini-language; a text for each
      global view, as many as there are texts.
    local_ops: what follows the crop of every local view.
  """
  if not is_int(num_local, 0):
    raise UserError(f'num_local is 0, 1, 2, ...; got {num_local!r}')
  if isinstance(global_ops, str) or not len(global_ops):
    raise UserError(
      f'global_ops is a list with a text for each view; got {global_ops!r}'
    )
  # The text is the user's: `ops_language.FROM_FILES` excludes multi_crop.
  large = random_resized_crop(size, scale=global_scale, method=method)
  global_views = [
    (large, ops_language.parse(text, trusted=True)) for text in global_ops
  ]
  small = random_resized_crop(local_size, scale=local_scale, method=method)
  then = ops_language.parse(local_ops, trusted=True)
  local_views = [(small, then)] * num_local

  def op(example: Example, rng: np.random.Generator) -> Example:
    one = {'image': image_of(example)}

    def views(steps):
      return np.stack(
        [then(crop(one, rng), rng)['image'] for crop, then in steps]
      )

    example = example | {'image': views(global_views)}
    if local_views:
      example['local_image'] = views(local_views)
    return example

  return op
