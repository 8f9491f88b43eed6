"""Random erasing: rectangles of an image become noise or the mean colour."""

import math

import jax
import jax.numpy as jnp

from vit_jax.data.device_ops.mixing import Box
from vit_jax.data.device_ops_language import ImageOp
from vit_jax.errors import UserError

_MODES = ('const', 'rand', 'pixel')
_MAX_TRIES = 10  # As in timm; the box is then left out.


def random_erasing(
  rate: float = 0.25,
  *,
  mode: str = 'const',
  count: int | tuple[int, int] = 1,
  area: tuple[float, float] = (0.02, 1 / 3),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> ImageOp:
  """Erases boxes of normalized images (arXiv:1708.04896, drawn as in timm).

  With probability `rate` an image loses `count` boxes. A box has the area
  U(area) H W / count and the ratio height / width exp(U(log aspect)), its sides
  are rounded and its place is uniform; it is drawn again, up to ten times,
  while it is not strictly lower and narrower than the image.

  It comes after `normalize`, where zero is the mean colour. DeiT erases before
  mixup and CutMix, timm's own loader after them; both orders work here.

  Args:
    rate: of an image to be erased at all.
    mode: 'const' fills with 0, 'rand' with one N(0, 1) per box and channel,
      'pixel' with N(0, 1) everywhere (DeiT).
    count: of boxes, or its smallest and largest value, drawn per image.
    area: of all boxes together, as fractions of the image.
    aspect: smallest and largest height / width.

  Raises:
    UserError: a value out of range; when tracing, images that are integers.
  """
  least, most = (count, count) if isinstance(count, int) else count
  problems = []
  if not 0 <= rate <= 1:
    problems.append(f'rate={rate!r} must lie in [0, 1]')
  if mode not in _MODES:
    problems.append(f'mode={mode!r}: expected one of {_MODES}')
  if not 1 <= least <= most:
    problems.append(f'count={count!r}: expected 1, or (1, 3), or alike')
  if not 0 < area[0] <= area[1] <= 1:
    problems.append(f'area={area!r}: expected two fractions, small one first')
  if not 0 < aspect[0] <= aspect[1]:
    problems.append(f'aspect={aspect!r}: expected two ratios, small one first')
  if problems:
    raise UserError('; '.join(problems))
  log_aspect = math.log(aspect[0]), math.log(aspect[1])

  def erase(image, key):
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise UserError(
        f'the images are {image.dtype}: normalize must come before it'
      )
    draw_key, fill_key = jax.random.split(key)
    # One call for all: each is compiled on its own.
    draws = jax.random.uniform(draw_key, (most + 1, 2 * _MAX_TRIES + 2))
    erased = draws[most, 0] < rate
    number = least + jnp.floor(draws[most, 1] * (most + 1 - least))
    box, fits = _draw_boxes(
      draws[:most], image.shape[:2], number, area, log_aspect
    )
    fits &= erased & (jnp.arange(most) < number)
    masks = box.inside(image.shape[:2])
    for i in range(most):
      shape = dict(const=(), rand=image.shape[2:], pixel=image.shape)[mode]
      fill = jnp.zeros(shape, image.dtype)
      if mode != 'const':
        # Of noise in every pixel one field is enough for all boxes.
        box_key = jax.random.fold_in(fill_key, i if mode == 'rand' else 0)
        fill = jax.random.normal(box_key, shape, image.dtype)
      mask = (masks[i] & fits[i])[:, :, None]
      image = jnp.where(mask, jnp.broadcast_to(fill, image.shape), image)
    return image

  return ImageOp(erase)


def _draw_boxes(
  draws, size: tuple[int, int], number, area, log_aspect
) -> tuple[Box, jax.Array]:
  """Returns boxes, and which of them fit into the image.

  `draws` are uniform in [0, 1), `[boxes, 2 * _MAX_TRIES + 2]`.
  """
  height, width = size
  pixels = area[0] + (area[1] - area[0]) * draws[:, :_MAX_TRIES]
  pixels *= height * width / number
  low, high = log_aspect
  ratio = jnp.exp(low + (high - low) * draws[:, _MAX_TRIES:-2])
  tall = jnp.int32(jnp.round(jnp.sqrt(pixels * ratio)))
  wide = jnp.int32(jnp.round(jnp.sqrt(pixels / ratio)))
  fits = (tall < height) & (wide < width)
  first = jnp.argmax(fits, axis=1)[:, None]
  tall, wide, fits = (
    jnp.take_along_axis(x, first, axis=1)[:, 0] for x in (tall, wide, fits)
  )
  top = jnp.int32(draws[:, -2] * (height - tall + 1))
  left = jnp.int32(draws[:, -1] * (width - wide + 1))
  return Box(top, top + tall, left, left + wide), fits
