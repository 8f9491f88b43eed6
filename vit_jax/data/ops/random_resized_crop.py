"""random_resized_crop: a random box of the image, resized.

Two sampling laws are in use and give different training distributions: at
equal scale TensorFlow's draws small boxes more often.
"""

import math
from collections.abc import Sequence

import numpy as np

from vit_jax.data.ops._checks import range_of, size_of
from vit_jax.data.ops.resize import check_method, resample
from vit_jax.data.ops_language import Op, image_op
from vit_jax.errors import UserError

Box = tuple[int, int, int, int]


def random_resized_crop(
  size: int | tuple[int, int],
  *,
  scale: Sequence[float] | None = None,
  ratio: Sequence[float] | None = None,
  sampling: str = 'torchvision',
  method: str = 'bilinear',
  antialias: bool = True,
  truncate: bool = False,
) -> Op:
  """Cuts a random box out of the image and resizes it to `size`.

  Args:
    size: an int (square) or `(height, width)`.
    scale: smallest and largest area of the box as a fraction of the image;
      None is (0.08, 1) for 'torchvision' and (0.05, 1) for 'tensorflow'.
    ratio: smallest and largest width / height of the box; None is (3/4, 4/3)
      for 'torchvision' and (0.75, 1.33) for 'tensorflow'.
    sampling: 'torchvision' (timm, DeiT: `torchvision_box`) or 'tensorflow'
      (vision_transformer, big_vision's inception_crop: `tensorflow_box`).
    method: how to resize, see `resize`.
    antialias: as in `resize`. The TensorFlow codebases train without.
    truncate: as in `resize`. big_vision does.
  """
  size = size_of(size)
  check_method(method, antialias=antialias)
  if sampling not in _LAWS:
    raise UserError(f'unknown sampling {sampling!r}; there are {list(_LAWS)}')
  draw, default_scale, default_ratio = _LAWS[sampling]
  scale = default_scale if scale is None else scale
  ratio = default_ratio if ratio is None else ratio
  scale = range_of('scale', scale, positive=True)
  ratio = range_of('ratio', ratio, positive=True)
  if scale[1] > 1:
    raise UserError(f'scale is a fraction of the area, at most 1; got {scale}')
  look = dict(method=method, antialias=antialias, truncate=truncate)

  def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left, height, width = draw(*image.shape[:2], scale, ratio, rng)
    image = image[top : top + height, left : left + width]
    return resample(image, size, **look)

  return image_op(change)


def torchvision_box(
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  rng: np.random.Generator,
) -> Box:
  """Returns `(top, left, height, width)` as torchvision's RandomResizedCrop.

  Area uniform in `scale`, aspect log-uniform in `ratio`, position uniform. Ten
  attempts to find a box that fits; then the largest central box whose aspect
  lies in `ratio`.
  """
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w = round(math.sqrt(area * aspect))
    h = round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = int(rng.integers(height - h + 1))
      left = int(rng.integers(width - w + 1))
      return top, left, h, w
  w = min(width, max(1, round(height * ratio[1])))
  h = min(height, max(1, round(width / ratio[0])))
  return (height - h) // 2, (width - w) // 2, h, w


def tensorflow_box(
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  rng: np.random.Generator,
) -> Box:
  """Returns a box as `tf.image.sample_distorted_bounding_box` draws it.

  Aspect uniform in `ratio`; then the height uniform over the integers that the
  area and the image allow. 100 attempts, then the whole image. A box smaller
  than the image is never placed at the last row or column, as in TensorFlow's
  kernel (`tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc`).
  """
  min_area, max_area = (s * height * width for s in scale)
  for _ in range(100):
    aspect = rng.uniform(*ratio)
    low = round(math.sqrt(min_area / aspect))
    high = round(math.sqrt(max_area / aspect))
    if round(high * aspect) > width:
      high = int((width + 0.5 - 1e-7) / aspect)
    high = min(high, height)
    h = int(rng.integers(low, high + 1)) if low < high else high
    # Rounding may push the area just over either limit.
    if h * round(h * aspect) < min_area:
      h += 1
    if h * round(h * aspect) > max_area:
      h -= 1
    w = round(h * aspect)
    if not min_area <= h * w <= max_area:
      continue
    if 0 < h <= height and 0 < w <= width:
      top = int(rng.integers(height - h)) if h < height else 0
      left = int(rng.integers(width - w)) if w < width else 0
      return top, left, h, w
  return 0, 0, height, width


_LAWS = {
  'torchvision': (torchvision_box, (0.08, 1.0), (3 / 4, 4 / 3)),
  'tensorflow': (tensorflow_box, (0.05, 1.0), (0.75, 1.33)),
}
