"""Weights that answer: images in, logits, features and class names out.

model = vit_jax.load('runs/pets')
model.predict('cat.jpg')         # [Prediction('Bengal', 0.97, label=5), ...]
model(images)['features']        # [B, D]
model.save('pets.safetensors')
"""

import concurrent.futures
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import lookup, sharding, trees
from vit_jax.data import device_ops as device_ops_language
from vit_jax.errors import UserError
from vit_jax.inference import classes, images as images_lib
from vit_jax.pretrained import blocks, catalog
from vit_jax.pretrained.weights import Weights

_MAX_THREADS = 16


def load(
  source: str | os.PathLike,
  *,
  model: Mapping[str, Any] | None = None,
  step: int | None = None,
  ema: bool | None = None,
  ops: str | None = None,
  device_ops: str | None = None,
  class_names: str | os.PathLike | Sequence[str] | None = None,
  loss: str | None = None,
  batch_size: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  weights_dir: str | os.PathLike | None = None,
  on_log: Callable[[str], Any] = print,
  **options,
) -> 'Model':
  """Returns a model that is ready for images.

  Args:
    source: a training run, a file (.npz, .safetensors, .pth), a folder of timm
      or Hugging Face, a name such as 'augreg-B/16', an address; all that
      `catalog.load` takes.
    model: keys of the model section that win over what is found, such as
      `{'dtype': 'bfloat16'}`.
    step: of a run, which checkpoint; None is the newest.
    ema: of a run, whether to take the averaged weights; None takes them if
      there are any.
    ops: how an image is prepared on the host, such as
      `'decode|resize(224)'`; None is what the weights were evaluated with.
    device_ops: how it is normalised, such as `'normalize(-1, 1)'`; likewise.
    class_names: a list, a file, or 'imagenet'; None is what the weights know.
      See `classes.names_of`.
    loss: 'softmax' or 'sigmoid': how logits become probabilities; None is what
      the weights were trained with, softmax if nothing tells.
    batch_size: of the one compiled program, rounded up to the devices. Fewer
      images cost as much as that many, more are taken in turns: 1 is best for
      single images, 32 and more for many.
    mesh: devices, from `sharding.make_mesh`; None is all of this process. Axes
      fsdp and tensor split a model that is too large for one of them.
    weights_dir: where weights lie and downloads go, see `catalog.load`.
    on_log: is given a line of text for every download.
    **options: of the reader, see `catalog.load`.

  Raises:
    UserError: nothing is found, it cannot be read, or an option does not fit.
  """
  weights = catalog.load(
    source,
    model=model,
    weights_dir=weights_dir,
    on_log=on_log,
    step=step,
    ema=ema,
    **options,
  )
  given = {'ops': ops, 'device_ops': device_ops}
  given = {key: value for key, value in given.items() if value is not None}
  weights = dataclasses.replace(
    weights,
    preprocess=weights.preprocess | given,
    class_names=classes.names_of(weights, class_names),
    source=dict(weights.source, loss=classes.loss_of(weights, loss)),
  )
  return Model(weights, batch_size=batch_size, mesh=mesh)


class Model:
  """A model with its weights, its preprocessing and the names of its classes.

  Attributes:
    weights: all of it as it was loaded, arrays on the host.
    config: the model section, with which `config.model` builds the same.
    class_names: of the logits in order, or None.
    loss: 'softmax' or 'sigmoid', see `load`.
    batch_size: of the compiled program.
    params: float32, on the devices.
    num_params: how many numbers they are.
  """

  def __init__(
    self,
    weights: Weights,
    *,
    batch_size: int = 8,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Sends the parameters to the devices; see `load`.

    Raises:
      UserError: options or preprocessing that do not parse, parameters that are
        not those of the model.
    """
    if mesh is None:
      mesh = sharding.make_mesh(devices=jax.local_devices())
    if not isinstance(batch_size, int) or batch_size < 1:
      raise UserError(f'batch_size is at least 1; got {batch_size!r}')
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    self.weights = weights
    self.config = dict(weights.model)
    self.class_names = weights.class_names
    self.loss = classes.loss_of(weights, None)
    self.batch_size = math.ceil(batch_size / parts) * parts
    self._module = lookup.build('models', self.config, 'Model')
    named = trees.flatten(weights.params)
    if self.config.get('scan'):
      named = blocks.stack(named)
    params = trees.unflatten({k: _float32(x) for k, x in named.items()})
    self.num_params = sum(x.size for x in jax.tree.leaves(params))
    shardings = sharding.state_shardings({'params': params}, mesh)['params']
    self.params = jax.device_put(params, shardings)
    self._sharding = sharding.batch_sharding(mesh)
    preprocess = weights.preprocess
    self._read = self._normalize = None
    if 'ops' in preprocess:
      kernel = named.get('patch_embedding/kernel')
      num_channels = 3 if kernel is None else kernel.shape[-2]
      self._read = images_lib.Reader(preprocess['ops'], num_channels).read
    if 'device_ops' in preprocess:
      self._normalize = device_ops_language.parse(preprocess['device_ops'])
    # A learned table of positions is for images of one size only.
    fixed = 'position_embedding' in named and preprocess.get('image_size')
    self._image_size = tuple(fixed) if fixed else None
    self._apply = jax.jit(self._outputs)

  def __repr__(self) -> str:
    name = self.weights.source.get('name', self.weights.source.get('path'))
    num_classes = self.config.get('num_classes')
    parts = [
      self.config.get('variant', self.config['name']),
      f'{self.num_params:,} parameters',
      f'{num_classes:,} classes' if num_classes else 'no head',
    ]
    return f'Model({", ".join(parts)}; {name or "made here"})'

  def __call__(
    self, images: Any, *, outputs: Sequence[str] | None = None
  ) -> dict[str, np.ndarray]:
    """Returns what the model makes of images, float32 arrays on the host.

    `logits` [B, Y], where the model has a head; `features` [B, D], which the
    head reads; `tokens` [B, L, D], of the patches row by row; `prefix`
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
    rows = [_good(row) for row in self.stream(items, outputs=outputs)]
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
    rows = self.stream(items, outputs=('logits',))
    answers = [self.best(_good(row)['logits'], top_k=top_k) for row in rows]
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
    self._check_preprocess()
    images, size = iter(images), self._image_size
    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
      pending = None
      while chunk := list(itertools.islice(images, self.batch_size)):
        arrays = list(pool.map(self._read_or_error, chunk))
        if size is None:  # All are as large as the first.
          shapes = (a.shape[:2] for a in arrays if isinstance(a, np.ndarray))
          size = next(shapes, None)
        arrays = [self._of_size(array, size) for array in arrays]
        current = arrays, self._dispatch(arrays)
        # Fetched only now: the devices have the next batch already.
        if pending is not None:
          yield from self._rows(*pending, outputs)
        pending = current
      if pending is not None:
        yield from self._rows(*pending, outputs)

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

  def save(self, path: str | os.PathLike, *, format: str | None = None) -> None:
    """Writes the model for us or for others; see `catalog.save`.

    Args:
      path: of a file, or of a folder for 'timm' and 'huggingface'.
      format: 'vit_jax', 'google_npz', 'big_vision_npz', 'timm' or
        'huggingface'; None goes by the suffix.

    Raises:
      UserError: an unknown format, or one that cannot express the model.
    """
    catalog.save(self.weights, path, format=format)

  def _outputs(self, params, image) -> dict[str, jax.Array]:
    # Evaluation draws nothing, so that there is no key.
    batch = self._normalize({'image': image}, None, train=False)
    return self._module.apply({'params': params}, batch['image'], train=False)

  def _dispatch(self, arrays: list) -> dict[str, jax.Array] | None:
    """Starts the devices on those that are arrays; None if there are none."""
    good = [a for a in arrays if isinstance(a, np.ndarray)]
    if not good:
      return None
    batch = np.zeros((self.batch_size, *good[0].shape), good[0].dtype)
    for i, array in enumerate(good):
      batch[i] = array
    return self._apply(self.params, jax.device_put(batch, self._sharding))

  def _rows(self, arrays, found, outputs) -> Iterator[dict | UserError]:
    if found is not None:
      if unknown := sorted(set(outputs or ()) - set(found)):
        raise UserError(
          f'the model has no {", ".join(unknown)}; it has {", ".join(found)}'
          + (
            '' if 'logits' in found else '. Without a head there are no classes'
          )
        )
      found = jax.device_get({k: found[k] for k in outputs or found})
    good = 0
    for array in arrays:
      if isinstance(array, UserError):
        yield array
      else:
        yield {key: value[good] for key, value in found.items()}
        good += 1

  def _read_or_error(self, image: Any) -> np.ndarray | UserError:
    try:
      return self._read(image)
    except UserError as e:
      return e

  def _of_size(self, array, size) -> np.ndarray | UserError:
    if isinstance(array, UserError) or array.shape[:2] == size:
      return array
    height, width = size
    what = 'others here are' if self._image_size is None else 'the model takes'
    return UserError(
      f'an image is {array.shape[0]}x{array.shape[1]} after the ops'
      f' {self.weights.preprocess["ops"]!r}; {what} {height}x{width}. Ops that'
      f' resize help: ops={f"decode|resize({size})"!r}'
    )

  def _check_preprocess(self) -> None:
    if self._read is not None and self._normalize is not None:
      return
    size = self._image_size or (224, 224)
    examples = {
      'ops': f"'decode|resize({size})'",
      'device_ops': "'normalize(-1, 1)' or \"normalize('imagenet')\"",
    }
    missing = [
      f'{key}={example}'
      for key, example in examples.items()
      if key not in self.weights.preprocess
    ]
    raise UserError(
      'nothing tells how images were prepared for these weights, and the answers'
      ' depend on it; when loading, say what it was, such as '
      + ', '.join(missing)
    )


def _float32(array: np.ndarray) -> np.ndarray:
  floating = jnp.issubdtype(array.dtype, jnp.floating)
  return np.asarray(array, np.float32) if floating else array


def _good(row: dict | UserError) -> dict[str, np.ndarray]:
  if isinstance(row, UserError):
    raise row
  return row
