"""Weights for inference on images of another size than in training."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax import trees
from vit_jax.data import ops_language
from vit_jax.errors import UserError
from vit_jax.pretrained import model_section, resample
from vit_jax.pretrained.weights import Weights

_SIZED = ('resize', 'resize_small', 'central_crop', 'random_crop')
_SIZED += ('random_resized_crop',)


def resize(
  weights: Weights,
  image_size: int | Sequence[int],
  *,
  keep_ops: bool = False,
  on_log: Callable[[str], Any] = print,
) -> Weights:
  """Returns the weights for images of another size.

  The table of positions is resized as `init_from` does, by the method of the
  weights' own code base. The host ops give that size; sizes before the last
  one, such as that of a resize before a crop, change in proportion.

  Args:
    weights: with their preprocessing.
    image_size: a side of square images, or (height, width).
    keep_ops: whether the host ops stay as they are, because the user gave them.
    on_log: receives a line of text that says what changed.

  Raises:
    UserError: no size, or one that the patches of the model do not divide.
  """
  size = (image_size,) * 2 if np.ndim(image_size) == 0 else tuple(image_size)
  if len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
    raise UserError(
      f'image_size={image_size!r}: expected a number of pixels, or (height,'
      ' width)'
    )
  named = trees.flatten(weights.params)
  patch = model_section.patch_size(named)
  table = named.get('position_embedding')
  if patch is not None:
    _check_divides(size, patch)
  done = []
  if patch is not None and np.ndim(table) == 3:
    grid = tuple(n // p for n, p in zip(size, patch, strict=True))
    method = weights.model.get('position_resize')
    method = method or weights.source.get('resize', 'timm')
    named['position_embedding'] = resample.resize_position(
      np.asarray(table), grid, method=method
    )
    done.append(f"positions {grid[0]}x{grid[1]} (resized as '{method}')")
  preprocess = dict(weights.preprocess, image_size=size)
  if 'ops' in preprocess and not keep_ops:
    preprocess['ops'] = resized_ops(preprocess['ops'], size)
    done.append(f'ops {preprocess["ops"]!r}')
  on_log(f'for images of {size[0]}x{size[1]}: {", ".join(done)}')
  return dataclasses.replace(
    weights, params=trees.unflatten(named), preprocess=preprocess
  )


def resized_ops(ops: str, size: tuple[int, int]) -> str:
  """Returns host ops whose images have another size.

  `'decode|resize_small(256)|central_crop(224)'` becomes, for (384, 384),
  `'decode|resize_small(439)|central_crop(384)'`: the ratio of the crop stays.
  Ops without any size are followed by a resize.
  """
  segments = ops_language.segments(ops)
  sized = [i for i, s in enumerate(segments) if _size_of(s) is not None]
  if not sized:
    return '|'.join([*(s.text for s in segments), f'resize({_short(size)})'])
  old = _pair(_size_of(segments[sized[-1]]))
  texts = [segment.text for segment in segments]
  for i in sized:
    value = _size_of(segments[i])
    new = [
      round(side * n / o)
      for side, n, o in zip(_pair(value), size, old, strict=True)
    ]
    if segments[i].name == 'resize_small':  # The shorter side.
      new = [round(value * max(n / o for n, o in zip(size, old, strict=True)))]
    texts[i] = _with_size(segments[i], _short(new))
  return '|'.join(texts)


def _check_divides(size: tuple[int, int], patch: Sequence[int]) -> None:
  if not any(n % p for n, p in zip(size, patch, strict=True)):
    return
  near = [
    tuple(max(round_(n / p), 1) * p for n, p in zip(size, patch, strict=True))
    for round_ in (math.floor, math.ceil)
  ]
  listed = ' and '.join(str(_short(n)) for n in dict.fromkeys(near))
  raise UserError(
    f'image_size={_short(size)}: patches of {patch[0]}x{patch[1]} do not divide'
    f' it. The nearest sizes are {listed}'
  )


def _size_of(segment: ops_language.Segment) -> int | tuple[int, int] | None:
  if segment.name not in _SIZED:
    return None
  return segment.kwargs.get('size', next(iter(segment.args), None))


def _with_size(segment: ops_language.Segment, size: Any) -> str:
  kwargs = {k: v for k, v in segment.kwargs.items() if k != 'size'}
  values = [size, *segment.args[1:]]
  arguments = [repr(v) for v in values] + [
    f'{k}={v!r}' for k, v in kwargs.items()
  ]
  return f'{segment.name}({", ".join(arguments)})'


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else tuple(size)


def _short(size: Sequence[int]) -> Any:
  """Returns one number for a square, as in the op language."""
  return size[0] if len(set(size)) == 1 else tuple(size)
