"""Batched inference: any number of images through one compiled program."""

import concurrent.futures
import itertools
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import trees
from vit_jax.data import device_ops_language
from vit_jax.errors import UserError
from vit_jax.inference import images as images_lib
from vit_jax.parallel import mesh as mesh_lib, rules as rules_lib
from vit_jax.pretrained import blocks, model_section
from vit_jax.pretrained.weights import Weights, build_model

_MAX_THREADS = 16


class Forward:
  """Reads images, fills batches up, and keeps host and devices busy.

  Attributes:
    batch_size: of the program, a multiple of the devices that share a batch.
    module: the linen module.
    params: float32, on the devices.
  """

  def __init__(
    self,
    weights: Weights,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    on_log: Callable[[str], Any] = print,
  ):
    """Sends the parameters to the devices; compiles nothing yet.

    Args:
      weights: with the preprocessing; it may be missing until images come.
      batch_size: rounded up to the devices.
      on_log: is given a line of text where images are resized by default.

    Raises:
      UserError: a section or ops that do not fit what they name.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
      raise UserError(f'batch_size is at least 1; got {batch_size!r}')
    self.batch_size = mesh_lib.padded(batch_size, mesh)
    self.module = build_model(weights)
    named = weights.params
    if weights.model.get('scan'):
      named = blocks.stack(named)
    params = trees.unflatten({k: _float32(x) for k, x in named.items()})
    shardings = rules_lib.state_shardings({'params': params}, mesh)['params']
    self.params = jax.device_put(params, shardings)
    self._sharding = mesh_lib.batch_sharding(mesh)

    preprocess = self._preprocess = dict(weights.preprocess)
    self._on_log, self._notes, self._resize_noted = on_log, [], False
    self._image_size = _fixed_size(named, preprocess)
    if 'ops' not in preprocess and self._image_size is not None:
      ops = preprocess['ops'] = f'decode|resize({self._image_size})'
      self._notes.append(
        'the weights do not say how images were prepared: using'
        f' {_option("ops", ops)}'
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
    self._apply = jax.jit(self._outputs)

  def stream(
    self, images: Iterable[Any], outputs: Sequence[str] | None
  ) -> Iterator[dict[str, np.ndarray] | UserError]:
    """Yields the outputs, or the error, for each image; see `Model.stream`."""
    self._check_preprocess()
    images, first = iter(images), None
    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
      pending = None
      while chunk := list(itertools.islice(images, self.batch_size)):
        arrays = list(pool.map(self._read_or_error, chunk))
        self._log_notes()
        good = (a for a in arrays if isinstance(a, np.ndarray))
        first = next(good, None) if first is None else first
        arrays = [
          self._alike(array, first, image)
          for array, image in zip(arrays, chunk, strict=True)
        ]
        current = arrays, self._dispatch(arrays)
        # Fetched only now: the devices have the next batch already.
        if pending is not None:
          yield from _rows(*pending, outputs)
        pending = current
      if pending is not None:
        yield from _rows(*pending, outputs)

  def prepare(self, images: Sequence[Any]) -> jax.Array:
    """Returns images as the module takes them; see `Model.prepare`."""
    self._check_preprocess()
    arrays = []
    for image in images:
      array = self._reader.read(image)
      array = self._alike(array, arrays[0] if arrays else array, image)
      if isinstance(array, UserError):
        raise array
      arrays.append(array)
    self._log_notes()
    return self._normalized(jnp.asarray(np.stack(arrays)))

  def _normalized(self, image_BHWC: jax.Array) -> jax.Array:
    # Evaluation draws nothing, so that there is no key.
    return self._normalize({'image': image_BHWC}, None, train=False)['image']

  def _outputs(self, params, image) -> dict[str, jax.Array]:
    image = self._normalized(image)
    return self.module.apply({'params': params}, image, train=False)

  def _dispatch(self, arrays: list) -> dict[str, jax.Array] | None:
    """Starts the devices on those that are arrays; None if there are none."""
    good = [a for a in arrays if isinstance(a, np.ndarray)]
    if not good:
      return None
    batch = np.zeros((self.batch_size, *good[0].shape), good[0].dtype)
    for i, array in enumerate(good):
      batch[i] = array
    try:
      return self._apply(self.params, jax.device_put(batch, self._sharding))
    except flax.errors.ScopeParamShapeError as e:
      raise UserError(
        f'the model does not take images {list(batch.shape[1:])} (height, '
        'width, channels): give ops that make images as in its training, such '
        f'as {_option("ops", "decode(1)")}; {e}'
      ) from e

  def _read_or_error(self, image: Any) -> np.ndarray | UserError:
    try:
      return self._reader.read(image)
    except UserError as e:
      return e

  def _alike(self, array, first, image) -> np.ndarray | UserError:
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
      f' {first.dtype}. Other ops may help, such as {_option("ops", wanted)}'
    )

  def _check_preprocess(self) -> None:
    examples = {'ops': 'decode|resize(224)', 'device_ops': 'normalize(-1, 1)'}
    missing = [
      _option(key, example)
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

  def _log_notes(self) -> None:
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


def _option(name: str, value: str) -> str:
  """Returns how an option is given, in Python and to the commands."""
  flag = f'--{name}={shlex.quote(value)}'
  return f'{name}={value!r} ({flag} on the command line)'


def _fixed_size(named, preprocess) -> tuple[int, int] | None:
  """Returns the only size of images that a learned table of positions takes."""
  if 'position_embedding' not in named:
    return None
  size = model_section.image_size(named) or preprocess.get('image_size')
  return None if size is None else tuple(size)


def _rows(arrays, found, outputs) -> Iterator[dict | UserError]:
  """Yields for each image its error, or its row of what was found."""
  if found is not None:
    if unknown := sorted(set(outputs or ()) - set(found)):
      headless = '' if 'logits' in found else ' (there is no head)'
      raise UserError(
        f'the model has no output {", ".join(unknown)}{headless}; it has'
        f' {", ".join(found)}'
      )
    found = jax.device_get({key: found[key] for key in outputs or found})
  row = 0
  for array in arrays:
    if isinstance(array, UserError):
      yield array
    else:
      yield {key: value[row] for key, value in found.items()}
      row += 1


def _float32(array: np.ndarray) -> np.ndarray:
  floating = jnp.issubdtype(array.dtype, jnp.floating)
  return np.asarray(array, np.float32) if floating else array
