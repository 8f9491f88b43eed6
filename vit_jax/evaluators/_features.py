"""A frozen model's features for every example of a training and a test split.

Few-shot, k-NN and linear probes read a representation instead of the logits,
so they have classes of their own and may run on data that the model was never
made for.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import RunError, UserError
from vit_jax.evaluators import _rows
from vit_jax.parallel import mesh as mesh_lib

# The default of TPUs and recent GPUs multiplies float32 in fewer digits.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Features:
  """The readable images of a split, in the order of the source, on the host."""

  x: np.ndarray  # float32 [N, D], finite
  label: np.ndarray  # int32 [N], in [0, num_classes)


@dataclasses.dataclass(eq=False)
class Splits:
  """A training and a test split, and a model's features of them.

  Evaluators of features extend it by their own options, and check those in
  `__post_init__` before they call this one.

  Args:
    predict: `(params, batch) -> {name: [B, ...]}`, jittable.
    mesh: the devices.
    data_train: the source of labelled examples, as in the input section.
    data_test: the source that the metrics are of.
    ops: the host ops for both, as in the input section of a config.
    batch_size: of the forward pass; it does not change the result.
    representation: which output of `predict` is the feature vector: 'features'
      (the input of the model's head), 'prefix_tokens' (the first of them, the
      class token), 'tokens' (their mean over the patches), any other [B, D]
      output; or several, joined by '+', as 'prefix_tokens+tokens' in DINO's
      probe of its ViT-B.
    on_error: 'stop' or 'skip' where an image cannot be read.
    num_threads: see `pipeline.TrainInput`.

  Raises:
    UserError: an option or the data; labels that are not one integer each.
  """

  predict: Callable[..., Mapping[str, jax.Array]]
  mesh: jax.sharding.Mesh
  _: dataclasses.KW_ONLY
  data_train: Mapping[str, Any]
  data_test: Mapping[str, Any]
  ops: str
  batch_size: int
  representation: str = 'features'
  on_error: str = 'stop'
  num_threads: int | None = None

  def __post_init__(self):
    self._splits = {
      name: _rows.Rows(
        self.mesh,
        data=getattr(self, name),
        ops=self.ops,
        batch_size=self.batch_size,
        on_error=self.on_error,
        num_threads=self.num_threads,
        name=name,
      )
      for name in ('data_train', 'data_test')
    }
    self.inputs = {name: rows.input for name, rows in self._splits.items()}
    self._check()

  def extract(
    self, params: Any
  ) -> tuple[Features, Features, int, dict[str, float]]:
    """Returns features of train and test, the number of classes, and facts.

    The number of classes is that of the sources or else the largest label of
    the two plus 1. The facts, which every evaluator of features returns too:

    `num_examples`: the number of test images that were read.
    `num_skipped` (with on_error='skip'): images of both splits that could not
      be read.

    Raises:
      UserError: a representation the model lacks, or labels out of range.
      RunError: features that are not finite.
    """
    found = {name: self._of_split(name, params) for name in self._splits}
    known = {x.num_classes for x in self.inputs.values()} - {None}
    largest = max(split.label.max() for split in found.values())
    num_classes = next(iter(known), int(largest) + 1)
    for name, split in found.items():
      label_N = split.label
      outside = label_N[(label_N < 0) | (label_N >= num_classes)]
      if outside.size:
        raise UserError(
          f'{name} has the labels {sorted(set(outside.tolist()))[:5]}, which '
          f'are not among the {num_classes} classes 0..{num_classes - 1}'
        )
    facts = {'num_examples': float(len(found['data_test'].x))}
    skipped = [rows.num_skipped for rows in self._splits.values()]
    if None not in skipped:
      facts['num_skipped'] = float(sum(skipped))
    return *found.values(), num_classes, facts

  def _of_split(self, name: str, params: Any) -> Features:
    parts = self._splits[name].map(
      _represent,
      params,
      predict=self.predict,
      representation=self.representation,
    )
    pairs = [(rows['x'], rows['label']) for rows in parts]
    x_ND, label_N = (np.concatenate(x) for x in zip(*pairs, strict=True))
    if not len(x_ND):
      raise UserError(f'{name}: none of its examples can be read')
    finite_N = np.isfinite(x_ND).all(axis=1)
    if not finite_N.all():
      raise RunError(
        f'{self.representation!r} is not finite for {np.sum(~finite_N)} of '
        f'{len(x_ND)} images of {name}: has the training diverged?'
      )
    return Features(x_ND, label_N)

  def _check(self) -> None:
    problems = []
    for name, data in self.inputs.items():
      label = data.element_spec().get('label')
      if label is None:
        problems.append(f'{name} has no labels')
      elif label.ndim != 1 or label.dtype.kind not in 'iu':
        problems.append(
          f'{name} has labels {label.dtype}{list(label.shape[1:])}; one '
          'integer for each image is needed'
        )
    counts = [x.num_classes for x in self.inputs.values()]
    if None not in counts and len(set(counts)) > 1:
      problems.append(
        f'data_train has {counts[0]} classes and data_test {counts[1]}: are '
        'they splits of one dataset?'
      )
    if problems:
      raise UserError('; '.join(problems))


def put(x: np.ndarray, mesh: jax.sharding.Mesh) -> jax.Array:
  """Returns an array that every device holds; equal in every process."""
  x = np.asarray(x)
  return _put(x.shape, mesh_lib.replicated(mesh), x.__getitem__)


def put_rows(
  x_N: np.ndarray, mesh: jax.sharding.Mesh, *, block: int = 1
) -> jax.Array:
  """Returns `[M, ...]`, sharded over data and fsdp, zeros after the first N.

  Args:
    x_N: `[N, ...]`, the whole of it, equal in every process.
    mesh: whose axes data and fsdp share M.
    block: M is the next number of which each device has a multiple of these.
  """
  parts = mesh_lib.padded(1, mesh) * block
  num_rows = math.ceil(len(x_N) / parts) * parts

  def rows(index):
    start, stop, _ = index[0].indices(num_rows)
    part = x_N[start:stop]
    padding = [(0, stop - start - len(part))] + [(0, 0)] * (x_N.ndim - 1)
    return np.pad(part, padding)

  return _put((num_rows, *x_N.shape[1:]), mesh_lib.batch_sharding(mesh), rows)


def _put(shape, where: jax.sharding.Sharding, part) -> jax.Array:
  # Explicit: JAX makes arrays from callbacks by implicit transfers.
  with jax.transfer_guard_host_to_device('allow'):
    return jax.make_array_from_callback(shape, where, part)


def _represent(params, batch, *, predict, representation):
  """Returns feature and label of each row."""
  outputs = predict(params, batch)
  vectors = [_vectors(outputs, name) for name in representation.split('+')]
  return dict(x=jnp.concatenate(vectors, axis=-1), label=batch['label'])


def _vectors(outputs: Mapping[str, jax.Array], name: str) -> jax.Array:
  """Returns the output `name` as float32 `[B, D]`."""
  if name not in outputs:
    shapes = {key: list(value.shape) for key, value in outputs.items()}
    raise UserError(
      f'representation: the model has no output {name!r}; it has {shapes}'
    )
  x = outputs[name].astype(jnp.float32)
  if name == 'tokens':
    x = jnp.mean(x, axis=1)
  elif name == 'prefix_tokens':
    x = x[:, 0]
  if x.ndim != 2:
    raise UserError(
      f'representation: {name!r} is {list(outputs[name].shape)}, but one '
      f'vector for each '
      f"image is needed; 'tokens' is the mean over patches"
    )
  return x
