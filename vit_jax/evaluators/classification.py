"""How well the labels are found: top-1, top-5, loss and calibration.

Every example counts exactly once. The device computes one number per example;
the sums are taken on the host in float64 and integers, so the result does not
depend on the batch size or on the number of devices.
"""

import collections
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import losses
from vit_jax.data import pipeline
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib

_log = logging.getLogger(__name__)

NUM_BINS = 15  # Guo et al. 2017, table 1.


class Evaluator:
  """Runs a model over a split and counts."""

  def __init__(
    self,
    predict: Callable[..., Mapping[str, jax.Array]],
    mesh: jax.sharding.Mesh,
    *,
    data: Mapping[str, Any],
    ops: str,
    batch_size: int,
    loss: str = 'softmax',
    per_class: bool = False,
    on_error: str = 'stop',
    num_threads: int | None = None,
  ):
    """Opens the data.

    Args:
      predict: `(params, batch) -> {'logits': [B, Y], ...}`, jittable.
      mesh: the devices; each batch is split over its data and fsdp axes.
      data: the source, as in the input section of a config.
      ops: the host ops, as in the input section of a config.
      batch_size: global batch; rounded up to a multiple of the devices that
        share a batch. It does not change the result.
      loss: 'softmax' or 'sigmoid': what the model was trained with. It decides
        the loss and the confidence (see `run`), not the accuracies.
      per_class: adds a top-1 for every class, and their mean.
      on_error: 'stop' or 'skip' where an image cannot be read.
      num_threads: see `pipeline.TrainInput`.

    Raises:
      UserError: an option or the data.
    """
    losses.cross_entropy(loss)
    shards = mesh.shape['data'] * mesh.shape['fsdp']
    self.input = pipeline.EvalInput(
      data=data,
      ops=ops,
      batch_size=math.ceil(batch_size / shards) * shards,
      on_error=on_error,
      num_threads=num_threads,
      sharding=mesh_lib.batch_sharding(mesh),
    )
    if 'label' not in self.input.element_spec():
      raise UserError(f'the examples of {dict(data)} have no label')
    self._predict, self._mesh, self._loss = predict, mesh, loss
    self._per_class, self._data = per_class, dict(data)
    self._skips = on_error == 'skip'

  def run(self, params: Any) -> dict[str, float]:
    """Returns what the model achieves on the whole split.

    `top1`, `top5`: fraction of the examples whose best logit, or one of whose
      best five, belongs to a right class (`losses.topk_correct`): the label;
      for multi-hot labels any listed class, as in big_vision, where examples
      that list none are left out of every number. `top5` appears with 6 classes
      or more: with fewer it would be 1.
    `loss`: mean cross-entropy in nats, without label smoothing. With softmax
      a multi-hot row is divided by its sum; with sigmoid it is the sum over
      classes.
    `expected_calibration_error`: Guo et al. 2017 (arXiv:1706.04599), eq. 3 with
      15 equal bins (0, 1/15], ..., (14/15, 1]: the mean over examples of
      |top-1 - mean confidence| of their bin. The confidence is the
      probability the model gives its best class: the largest softmax, or with
      sigmoid the sigmoid of the largest logit.
    `num_examples`: the number of examples behind these numbers.
    `num_skipped` (with on_error='skip'): examples that could not be read.
    `num_unlabelled` (where there are any): examples that list no class.
    `top1/<class>`, `top1_class_mean` (with per_class): for each class that
      occurs, the fraction of its examples that are found; their plain mean.

    Raises:
      UserError: labels that do not fit the model, or no labelled example.
    """
    sums = _Sums(self._per_class)
    for rows in _late(self._rows(params)):
      self._check_labels(rows)
      sums.add(rows)
    if not sums.num_examples:
      raise UserError(f'no example of {self._data} has a label')
    result = sums.result(self.input.class_names)
    if self._skips:
      result['num_skipped'] = self.input.num_examples - sums.num_read
      if self.input.skipped:
        _log.warning(
          'skipped %d examples of %s that cannot be read, among them:\n  %s',
          self.input.skipped,
          self._data,
          '\n  '.join(self.input.skipped_names),
        )
    if sums.num_read > sums.num_examples:
      result['num_unlabelled'] = sums.num_read - sums.num_examples
    return {key: float(value) for key, value in result.items()}

  def _rows(self, params: Any) -> Iterator[dict[str, jax.Array]]:
    """Dispatches one batch after the other."""
    batches = pipeline.prefetch_to_device(
      iter(self.input), mesh_lib.batch_sharding(self._mesh)
    )
    for batch in batches:
      yield _score(
        params,
        batch,
        predict=self._predict,
        loss=self._loss,
        out_sharding=mesh_lib.replicated(self._mesh),
      )

  def _check_labels(self, rows: Mapping[str, np.ndarray]) -> None:
    unknown = rows['label'][rows['unknown']]
    if unknown.size:
      raise UserError(
        f'{self._data} has the labels {sorted(set(unknown.tolist()))[:5]}, but '
        f'the model has {int(rows["num_classes"])} classes: set '
        'model.num_classes or choose another dataset'
      )
    if self._per_class and rows['label'].ndim == 2:
      raise UserError(
        f'per_class=True needs one label for each example; {self._data} has '
        'multi-hot labels'
      )


class _Sums:
  """The exact sums over examples, on the host."""

  def __init__(self, per_class: bool):
    self._per_class = per_class
    self.num_read = self.num_examples = 0
    self._hits = collections.Counter()
    self._loss = 0.0
    self._bins = np.zeros((2, NUM_BINS))  # Hits and summed confidences.
    self._classes = [0, 0]  # Examples and hits of each class.

  def add(self, rows: Mapping[str, np.ndarray]) -> None:
    """Adds the rows of a batch that count."""
    counted = rows['counted']
    self.num_read += int(rows['mask'].sum())
    self.num_examples += int(counted.sum())
    for key in ('top1', 'top5'):
      if key in rows:
        self._hits[key] += int(rows[key][counted].sum())
    self._loss += float(rows['loss'][counted].sum(dtype=np.float64))
    hit, confidence = rows['top1'][counted], rows['confidence'][counted]
    self._bins += _by_bin(hit, confidence)
    if self._per_class:
      label, num_classes = rows['label'][counted], int(rows['num_classes'])
      for i, x in enumerate((label, label[hit])):
        self._classes[i] += np.bincount(x, minlength=num_classes)

  def result(self, class_names: Sequence[str] | None) -> dict[str, float]:
    """Returns the metrics."""
    n = self.num_examples
    result = {key: hits / n for key, hits in sorted(self._hits.items())}
    result['loss'] = self._loss / n
    hits, confidences = self._bins
    error = np.abs(hits - confidences).sum() / n
    result['expected_calibration_error'] = error
    result['num_examples'] = n
    if self._per_class:
      result.update(_class_table(*self._classes, class_names))
    return result


def _by_bin(hit: np.ndarray, confidence: np.ndarray) -> np.ndarray:
  """Returns `[2, NUM_BINS]`: hits and summed confidences of each bin."""
  upper = np.arange(1, NUM_BINS, dtype=np.float32) / np.float32(NUM_BINS)
  index = np.searchsorted(upper, confidence, side='left')
  sums = [np.bincount(index, x, NUM_BINS) for x in (hit, confidence)]
  return np.stack(sums)


def _class_table(
  examples: np.ndarray, hits: np.ndarray, names: Sequence[str] | None
) -> dict[str, float]:
  """Returns `top1_class_mean` and `top1/<class>` of the classes that occur."""
  names = [str(i) for i in range(len(examples))] if names is None else names
  twice = {name for name, n in collections.Counter(names).items() if n > 1}
  table = {}
  for i in np.flatnonzero(examples):
    # ImageNet has two classes named crane and two named maillot.
    key = f'{names[i]} ({i})' if names[i] in twice else names[i]
    table[f'top1/{key}'] = hits[i] / examples[i]
  return {'top1_class_mean': float(np.mean(list(table.values()))), **table}


@functools.partial(jax.jit, static_argnames=('predict', 'loss', 'out_sharding'))
def _score(params, batch, *, predict, loss, out_sharding):
  """Returns what counts of each row, on every process.

  One program with the model, so that outputs which nobody asks for (tokens)
  are not computed; evaluators with the same `predict` share its compilation.
  """
  logits_BY = predict(params, batch)['logits'].astype(jnp.float32)
  label, mask_B = batch['label'], batch['mask']
  num_classes = logits_BY.shape[-1]
  targets_BY = losses.targets(label, num_classes)
  hit_B, labelled_B = losses.topk_correct(logits_BY, targets_BY)
  rows = dict(label=label, mask=mask_B, counted=mask_B & labelled_B, top1=hit_B)
  if num_classes > 5:
    rows['top5'], _ = losses.topk_correct(logits_BY, targets_BY, k=5)
  if loss == 'softmax':
    sum_B1 = jnp.sum(targets_BY, axis=-1, keepdims=True)
    targets_BY = targets_BY / jnp.where(sum_B1 > 0, sum_B1, 1)
    confidence_BY = jax.nn.softmax(logits_BY)
  else:
    confidence_BY = jax.nn.sigmoid(logits_BY)
  rows['loss'] = losses.cross_entropy(loss)(logits_BY, targets_BY)
  rows['confidence'] = jnp.max(confidence_BY, axis=-1)
  unknown_B = jnp.zeros_like(mask_B)
  if label.ndim == 1:
    unknown_B = mask_B & ((label < 0) | (label >= num_classes))
  rows['unknown'] = unknown_B
  rows['num_classes'] = jnp.int32(num_classes)
  return jax.lax.with_sharding_constraint(rows, out_sharding)


def _late(rows: Iterator[Any]) -> Iterator[Any]:
  """Yields each result on the host, after the next batch was dispatched."""
  waiting = None
  for current in rows:
    if waiting is not None:
      yield jax.device_get(waiting)
    waiting = current
  if waiting is not None:
    yield jax.device_get(waiting)
