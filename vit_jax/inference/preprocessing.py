"""Preparation of images as the weights say, or as a default that is logged."""

import shlex
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vit_jax.data import device_ops_language
from vit_jax.errors import UserError
from vit_jax.inference import images as images_lib
from vit_jax.pretrained import model_section
from vit_jax.pretrained.weights import Weights


class Preprocessing:
  """Host and device ops of weights; those missing are asked for with images."""

  def __init__(self, weights: Weights, on_log: Callable[[str], Any]):
    preprocess = self._preprocess = dict(weights.preprocess)
    named = weights.params
    self._on_log, self._notes, self._resize_noted = on_log, [], False
    self._image_size = _fixed_size(named, preprocess)
    if 'ops' not in preprocess and self._image_size is not None:
      ops = preprocess['ops'] = f'decode|resize({self._image_size})'
      self._notes.append(
        'the weights do not say how images were prepared: using'
        f' {option("ops", ops)}'
      )
    self._reader = self._normalize = None
    if 'ops' in preprocess:
      self._reader = images_lib.Reader(
        preprocess['ops'],
        model_section.num_channels(named),
        image_size=self._image_size,
        trusted='ops' in weights.trusted,
      )
    if 'device_ops' in preprocess:
      self._normalize = device_ops_language.parse(
        preprocess['device_ops'], trusted='device_ops' in weights.trusted
      )

  def read(self, image: Any) -> np.ndarray | UserError:
    """Returns an image after the host ops, or why it cannot be read."""
    try:
      return self._reader.read(image)
    except UserError as e:
      return e

  def normalize(self, image_BHWC: jax.Array) -> jax.Array:
    # Evaluation draws nothing, so that there is no key.
    return self._normalize({'image': image_BHWC}, None, train=False)['image']

  def alike(self, array, first, image) -> np.ndarray | UserError:
    """Returns what can share a batch with the first image, or an error."""
    if isinstance(array, UserError):
      return array
    size = self._image_size or first.shape[:2]
    if array.shape[:2] == size and array.dtype == first.dtype:
      return array
    what = f'{array.shape[0]}x{array.shape[1]} {array.dtype}'
    wanted = f'decode|resize({size})'
    return UserError(
      f'{images_lib.where(image)}an image is {what} after the ops'
      f' {self._preprocess["ops"]!r}; expected {size[0]}x{size[1]}'
      f' {first.dtype}. Other ops may help, such as {option("ops", wanted)}'
    )

  def check(self) -> None:
    """Raises UserError where the weights do not say how to prepare images."""
    examples = {'ops': 'decode|resize(224)', 'device_ops': 'normalize(-1, 1)'}
    missing = [
      option(key, example)
      for key, example in examples.items()
      if key not in self._preprocess
    ]
    if missing:
      raise UserError(
        'the weights do not say how images were prepared, and the answers'
        f' depend on it. Give what it was, such as {"; ".join(missing)}'
        + '. Many models were trained with device_ops="normalize(\'imagenet\')"'
        * ('device_ops' not in self._preprocess)
      )

  def log_notes(self) -> None:
    """Logs once that images are prepared in a way that was not asked for."""
    if self._reader.resized and not self._resize_noted:
      self._resize_noted = True
      height, width = self._image_size
      ops = f'decode|resize({self._image_size})'
      self._notes.append(
        f"resizing images to {height}x{width}, because this model's"
        f' preprocessing does not; pass --ops={shlex.quote(ops)} (ops={ops!r}'
        ' in Python) to choose it yourself'
      )
    while self._notes:
      self._on_log(self._notes.pop(0))


def option(name: str, value: str) -> str:
  """Returns how an option is given, in Python and to the commands."""
  flag = f'--{name}={shlex.quote(value)}'
  return f'{name}={value!r} ({flag} on the command line)'


def _fixed_size(named, preprocess) -> tuple[int, int] | None:
  """Returns the only size of images that a learned table of positions takes."""
  if 'position_embedding' not in named:
    return None
  size = model_section.image_size(named) or preprocess.get('image_size')
  return None if size is None else tuple(size)
