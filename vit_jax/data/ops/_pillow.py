"""Augmentations of a Pillow image, shared by the ops.

All of them are Pillow's own code, called as timm, torchvision and DeiT call it,
or give the same pixels in less time.
A policy turns its image into Pillow's once, does all it does, and turns back.
Images are of mode RGB or L; what a greyscale image is filled with is the grey
of the colour.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_jax.data.ops import resize
from vit_jax.data.ops._checks import probability
from vit_jax.data.ops_language import Example, Op, image_of
from vit_jax.errors import UserError

Color = tuple[int, int, int]

# round(255 * mean) of ImageNet: what timm fills exposed corners with.
IMAGENET_FILL = (124, 116, 104)
RESAMPLE = {
  'nearest': Image.Resampling.NEAREST,
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}


# Stretches each channel so that its extremes become 0 and 255.
autocontrast = ImageOps.autocontrast
equalize = ImageOps.equalize  # Makes the histogram of each channel flat.
invert = ImageOps.invert
solarize = ImageOps.solarize  # `(image, threshold)` inverts values from it on.


def _enhancer(kind: type) -> Callable[[Image.Image, float], Image.Image]:
  return lambda image, factor: kind(image).enhance(factor)


# `(image, factor)`: factor 1 is the image, factor 0 ...
color = _enhancer(ImageEnhance.Color)  # ... is grey;
contrast = _enhancer(ImageEnhance.Contrast)  # ... is its mean grey everywhere;
brightness = _enhancer(ImageEnhance.Brightness)  # ... is black;
sharpness = _enhancer(ImageEnhance.Sharpness)  # ... is smoothed.


def as_op(
  change: Callable[[Image.Image, np.random.Generator], Image.Image],
  rate: float | None = None,
) -> Op:
  """Returns the op that applies `change(picture, rng)` to the image.

  Args:
    change: of an image of mode RGB or L; it may return the very image.
    rate: the probability of the change; None changes every image and draws no
      random number for the decision.
  """
  rate = None if rate is None else probability(rate)

  def op(example: Example, rng: np.random.Generator) -> Example:
    image = picture_of(example)
    if rate is not None and rng.random() >= rate:
      return example
    picture = to_pillow(image)
    changed = change(picture, rng)
    if changed is picture:
      return example
    return example | {'image': to_array(changed)}

  return op


def picture_of(example: Example) -> np.ndarray:
  """Returns the image of an example, uint8 `[H, W, 3]` or `[H, W, 1]`."""
  image = image_of(example)
  if image.dtype != np.uint8 or image.shape[2] not in (1, 3) or not image.size:
    raise UserError(
      'this op takes uint8 images of 3 channels or 1; got '
      f'{image.dtype}{list(image.shape)}'
    )
  return image


def to_pillow(image: np.ndarray) -> Image.Image:
  """Returns uint8 `[H, W, 3]` or `[H, W, 1]` as an image of mode RGB or L."""
  if image.shape[2] == 1:
    image = image[:, :, 0]
  return Image.fromarray(image)


def to_array(image: Image.Image) -> np.ndarray:
  """Returns the uint8 `[H, W, C]` of an image of mode RGB or L."""
  array = np.asarray(image)
  return array[:, :, None] if array.ndim == 2 else array


def affine(
  image: Image.Image, matrix, resample: Image.Resampling, fill: Color
) -> Image.Image:
  """Moves pixels; `matrix` (a, b, c, d, e, f) leads from output to input.

  The output's (x, y) is the input's (a x + b y + c, d x + e y + f), with the
  origin in the corner and pixel centres at halves. Pillow's bicubic kernel here
  has a = -1 and no antialiasing, unlike the one of its resize.
  """
  moved = _shift(image, matrix, resample, fill)
  if moved is not None:
    return moved
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    resample=resample,
    fillcolor=_fill(image, fill),
  )


def _mover(matrix: Callable[[float, int, int], tuple]) -> Callable:
  """Returns `(image, amount, resample, fill) -> image`.

  `matrix(amount, width, height)` is that of `affine`.
  """

  def move(image, amount: float, resample, fill: Color) -> Image.Image:
    return affine(image, matrix(amount, *image.size), resample, fill)

  return move


# Row y moves left by `factor * y` pixels, or column x up by `factor * x`.
shear_x = _mover(lambda factor, width, height: (1, factor, 0, 0, 1, 0))
shear_y = _mover(lambda factor, width, height: (1, 0, 0, factor, 1, 0))
# To the left, or up, by a fraction of the side.
translate_x = _mover(lambda part, width, height: (1, 0, part * width, 0, 1, 0))
translate_y = _mover(lambda part, width, height: (1, 0, 0, 0, 1, part * height))


def rotate(image, degrees: float, resample, fill: Color) -> Image.Image:
  """Turns the image about its centre, counter-clockwise."""
  return image.rotate(degrees, resample, fillcolor=_fill(image, fill))


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
  """Adds to the values below 128, at most up to 255."""
  table = [min(255, v + addition) if v < 128 else v for v in range(256)]
  return image.point(table * len(image.getbands()))


def posterize(image: Image.Image, bits: int) -> Image.Image:
  """Keeps the highest `bits` bits; with 0 the image is black.

  Pillow drew it black too, until it made 0 bits an error: timm's recipes ask
  for them once in some hundred images, and DeiT trained with those.
  """
  if bits >= 8:
    return image
  if bits < 1:
    return Image.new(image.mode, image.size, 0)
  return ImageOps.posterize(image, bits)


def blur(image: Image.Image, radius: float) -> Image.Image:
  """Blurs by Pillow's approximation of a Gaussian (boxes, three times)."""
  return image.filter(ImageFilter.GaussianBlur(radius))


def grayscale(image: Image.Image) -> Image.Image:
  """Makes all channels the luma of ITU-R 601."""
  return image.convert('L').convert(image.mode)


def hue(image: Image.Image, turn: float) -> Image.Image:
  """Turns the hue by -0.5 .. 0.5 of the circle, in steps of 1/255.

  As in torchvision's adjust_hue on Pillow images; grey stays as it is.
  """
  if image.mode == 'L':
    return image
  steps = int(turn * 255)
  h, s, v = image.convert('HSV').split()
  h = h.point([(level + steps) % 256 for level in range(256)])
  return Image.merge('HSV', (h, s, v)).convert(image.mode)


def _shift(image, matrix, resample, fill: Color) -> Image.Image | None:
  """Returns what `affine` does where Numba can do it, else None.

  It does bicubic shears and translations of colour images, in a quarter of the
  time.
  """
  kernels = resize.kernels()
  if not kernels or image.mode != 'RGB' or resample != Image.Resampling.BICUBIC:
    return None
  a, b, c, d, e, f = map(float, matrix)
  if a != 1 or e != 1:
    return None
  pixels, fill = np.asarray(image), np.array(fill, np.uint8)
  if (d, f) == (0, 0):
    return Image.fromarray(kernels.shift_rows(pixels, b, c, fill))
  if (b, c) == (0, 0):
    turn = Image.Transpose.TRANSPOSE
    columns = np.asarray(image.transpose(turn))
    return Image.fromarray(kernels.shift_rows(columns, d, f, fill)).transpose(
      turn
    )
  return None


def _fill(image: Image.Image, fill: Color) -> Color | int:
  if image.mode == 'RGB':
    return fill
  return Image.new('RGB', (1, 1), fill).convert('L').getpixel((0, 0))
