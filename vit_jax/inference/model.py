"""A model for inference: images in, logits, features and class names out.

model = vit_jax.load('runs/pets')
model.predict('cat.jpg')         # [Prediction('Bengal', 0.97, label=5), ...]
model(images)['features']        # [B, D]
model.save('pets.safetensors')
"""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.inference import (
  classes,
  image_size as image_size_lib,
  images as images_lib,
  preprocessing,
)
from vit_jax.parallel import mesh as mesh_lib, rules as rules_lib
from vit_jax.pretrained import blocks, catalog
from vit_jax.pretrained.weights import Weights, build_model
from vit_jax.printable import printable

_MAX_THREADS = 16


def load(
  source: str | os.PathLike,
  *,
  ops: str | None = None,
  device_ops: str | None = None,
  class_names: str | os.PathLike | Sequence[str] | None = None,
  loss: str | None = None,
  image_size: int | Sequence[int] | None = None,
  batch_size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  on_log: Callable[[str], Any] = print,
  **options,
) -> 'Model':
  """Returns a model that is ready for images; see `vit_jax.load`.

  The options are those of `catalog.load`.
  """
  weights = catalog.load(source, on_log=on_log, **options)
  weights = dataclasses.replace(
    weights.with_preprocess(ops=ops, device_ops=device_ops),
    class_names=classes.names_of(weights, class_names),
    source=dict(weights.source, loss=classes.loss_of(weights, loss)),
  )
  if image_size is not None:
    weights = image_size_lib.resize(
      weights, image_size, keep_ops=ops is not None, on_log=on_log
    )
  return Model(weights, batch_size=batch_size, mesh=mesh, on_log=on_log)


class Model:
  """A model with its weights, its preprocessing and the names of its classes.

  Attributes:
    weights: all of it as it was loaded, arrays on the host.
    config: the model section of a config that builds the same model.
    class_names: of the logits in order, or None.
    loss: 'softmax' or 'sigmoid', see `load`.
    batch_size: of the compiled program.
    module: the linen module; `module.apply({'params': params}, image_BHWC,
      train=False)` is the forward pass, for a loop of one's own. It takes what
      `prepare` returns, and with `train=True` the key `rngs={'dropout': key}`.
    params: nested dict of arrays, float32, on the devices.
    num_params: how many numbers they hold.
  """

  def __init__(
    self,
    weights: Weights,
    *,
    batch_size: int = 8,
    mesh: jax.sharding.Mesh | None = None,
    on_log: Callable[[str], Any] = print,
  ):
    """Sends the parameters to the devices; see `load`.

    Raises:
      UserError: options or preprocessing that do not parse, parameters that are
        not those of the model.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
      raise UserError(f'batch_size is at least 1; got {batch_size!r}')
    if mesh is None:
      mesh = mesh_lib.make_mesh(devices=jax.local_devices())
    self.weights = weights
    self.config = dict(weights.model)
    self.class_names = weights.class_names
    self.loss = classes.loss_of(weights, None)
    self.batch_size = mesh_lib.padded(batch_size, mesh)
    self.module = build_model(weights)
    self._images = preprocessing.Preprocessing(weights, on_log)
    named = weights.params
    if weights.model.get('scan'):
      named = blocks.stack(named)
    params = trees.unflatten({k: _float32(x) for k, x in named.items()})
    shardings = rules_lib.state_shardings({'params': params}, mesh)['params']
    self.params = jax.device_put(params, shardings)
    self.num_params = sum(x.size for x in jax.tree.leaves(self.params))
    self._sharding = mesh_lib.batch_sharding(mesh)
    self._apply = jax.jit(self._outputs)

  def __repr__(self) -> str:
    num_classes = self.config.get('num_classes')
    parts = [
      str(self.config.get('variant', self.config['name'])),
      f'{self.num_params:,} parameters',
      f'{num_classes:,} classes' if num_classes else 'no head',
    ]
    return printable(f'Model({", ".join(parts)})')

  def __call__(
    self, images: Any, *, outputs: Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """Returns what the model makes of images, float32 arrays on the host.

    `logits` [B, Y], where the model has a head; `features` [B, D], which the
    head reads; `tokens` [B, L, D], of the patches row by row; `prefix_tokens`
    [B, R, D], class token and registers, where it has them. Without the leading
    axis for a single image.

    Args:
      images: one, or a list of them: paths, bytes of files, PIL images or
        arrays [H, W, C] (uint8 unless the device ops say otherwise), of any
        size; or an array [B, H, W, C].
      outputs: which of them; None is all. The tokens of many images take much
        memory.

    Raises:
      UserError: an image that cannot be read; preprocessing that nobody knows.
    """
    items, single = images_lib.as_list(images)
    if not items:
      raise UserError('no images were given')
    rows = list(_good(items, self.stream(items, outputs=outputs), single))
    if single:
      return rows[0]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

  def predict(
    self, images: Any, *, top_k: int = 5
  ) -> list[classes.Prediction] | list[list[classes.Prediction]]:
    """Returns the `top_k` likeliest classes of an image, or of each of several.

    Args:
      images: as in a call of the model.
      top_k: how many (all, if the model has fewer), the best first.

    Raises:
      UserError: as a call of the model; a model without a head.
    """
    items, single = images_lib.as_list(images)
    rows = _good(items, self.stream(items, outputs=('logits',)), single)
    answers = [self.best(row['logits'], top_k=top_k) for row in rows]
    return answers[0] if single else answers

  def stream(
    self, images: Iterable[Any], *, outputs: Sequence[str] | None = None
  ) -> Iterator[dict[str, np.ndarray] | UserError]:
    """Yields the outputs for each image in turn, for more than memory holds.

    Where an image cannot be read, its error is yielded in its place. Images are
    read by threads while the devices work.

    Args:
      images: as in a call of the model, any iterable of them.
      outputs: likewise.
    """
    self._images.check()
    images, first = iter(images), None
    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
      pending = None
      while chunk := list(itertools.islice(images, self.batch_size)):
        arrays = list(pool.map(self._images.read, chunk))
        self._images.log_notes()
        good = (a for a in arrays if isinstance(a, np.ndarray))
        first = next(good, None) if first is None else first
        arrays = [
          self._images.alike(array, first, image)
          for array, image in zip(arrays, chunk, strict=True)
        ]
        current = arrays, self._dispatch(arrays)
        # Fetched only now: the devices have the next batch already.
        if pending is not None:
          yield from _rows(*pending, outputs)
        pending = current
      if pending is not None:
        yield from _rows(*pending, outputs)

  def prepare(self, images: Any) -> jax.Array:
    """Returns what the module takes: images read, resized and normalised.

    Args:
      images: as in a call of the model.

    Returns:
      float32 [B, H, W, C], or [H, W, C] for a single image, on one device.

    Raises:
      UserError: as a call of the model.
    """
    items, single = images_lib.as_list(images)
    if not items:
      raise UserError('no images were given')
    self._images.check()
    arrays = []
    for image in items:
      array = self._images.read(image)
      array = self._images.alike(array, arrays[0] if arrays else array, image)
      if isinstance(array, UserError):
        raise array
      arrays.append(array)
    self._images.log_notes()
    image_BHWC = self._images.normalize(jnp.asarray(np.stack(arrays)))
    return image_BHWC[0] if single else image_BHWC

  def best(
    self, logits_Y: np.ndarray, *, top_k: int = 5
  ) -> list[classes.Prediction]:
    """Returns names and probabilities for the logits of one image."""
    if np.ndim(logits_Y) != 1:
      raise UserError(
        f'a prediction needs logits [{self.config.get("num_classes")}] of one'
        f' image; got {np.shape(logits_Y)}'
      )
    return classes.best(
      np.asarray(logits_Y),
      loss=self.loss,
      class_names=self.class_names,
      top_k=top_k,
    )

  def save(
    self,
    path: str | os.PathLike,
    *,
    format: str | None = None,
    allow_note_only: bool = False,
  ) -> None:
    """Writes the model for us or for others; see `catalog.save`.

    Args:
      path: of a file, or of a folder for 'timm' and 'huggingface'.
      format: 'vit_jax', 'google_npz', 'big_vision_npz', 'timm', 'huggingface'
        or a module of one's own; None goes by the suffix.
      allow_note_only: whether an .npz may hold a model that Google's code
        computes differently (exact GELU, another epsilon).

    Raises:
      UserError: an unknown format, or one that cannot express the model.
    """
    catalog.save(
      self.weights, path, format=format, allow_note_only=allow_note_only
    )

  def _outputs(self, params, image) -> dict[str, jax.Array]:
    image = self._images.normalize(image)
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
        f'as {preprocessing.option("ops", "decode(1)")}; {e}'
      ) from e


def _good(
  items: Sequence[Any], rows: Iterable[dict | UserError], single: bool
) -> Iterator[dict[str, np.ndarray]]:
  """Yields rows until one is an error, which is raised."""
  for i, (item, row) in enumerate(zip(items, rows, strict=True)):
    if isinstance(row, UserError):
      named = single or images_lib.where(item)
      raise row if named else UserError(f'image {i}: {row}')
    yield row


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
