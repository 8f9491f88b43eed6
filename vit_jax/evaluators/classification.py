"""Classification: top-1, top-5, loss and calibration on a labelled split.

Every example counts exactly once. The device computes one number per example;
the sums are taken on the host in float64 and integers, so the result does not
depend on the batch size or on the number of devices.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import losses
from vit_jax.data import label_sets
from vit_jax.errors import UserError
from vit_jax.evaluators import _rows

NUM_BINS = 15  # Guo et al. 2017, table 1.


@dataclasses.dataclass(eq=False)
class Evaluator:
  """Scores a model's logits against the labels of a split.

  Args:
    predict: `(params, batch) -> {'logits': [B, Y], ...}`, jittable.
    mesh: the devices.
    data: the source, as in the input section of a config.
    ops: the host ops, as in the input section of a config.
    batch_size: of the forward pass; it does not change the result.
    loss: 'softmax' or 'sigmoid': what the model was trained with. It affects
      the loss and the confidence (see `run`), not the accuracies.
    per_class: adds a top-1 for every class, and their mean.
    labels: what the labels mean for a model of ImageNet-1k, such as
      'imagenet-a' or 'real:/data/real.json', see `data/label_sets.py`; or the
      names of the model's classes in their order, by which those of the data
      go. None takes them as they are.
    on_error: 'stop' or 'skip' where an image cannot be read.
    num_threads: see `pipeline.TrainInput`.

  Raises:
    UserError: an option or the data.
  """

  predict: Callable[..., Mapping[str, jax.Array]]
  mesh: jax.sharding.Mesh
  _: dataclasses.KW_ONLY
  data: Mapping[str, Any]
  ops: str
  batch_size: int
  loss: str = 'softmax'
  per_class: bool = False
  labels: str | Sequence[str] | None = None
  on_error: str = 'stop'
  num_threads: int | None = None

  outputs: ClassVar = ('logits',)
  lower_is_better: ClassVar = ('loss', 'expected_calibration_error')

  def __post_init__(self):
    losses.cross_entropy(self.loss)
    data, self._scored = self.data, None
    if self.labels is not None:
      data = {k: x for k, x in data.items() if k == 'split'}
      data |= dict(name='relabelled', data=dict(self.data), labels=self.labels)
      self._scored = label_sets.find(self.labels).scored
    self._split = _rows.Rows(
      self.mesh,
      data=data,
      ops=self.ops,
      batch_size=self.batch_size,
      on_error=self.on_error,
      num_threads=self.num_threads,
    )
    data_input = self._split.input
    if 'label' not in data_input.element_spec():
      raise UserError(f'the examples of {dict(self.data)} have no label')
    self.inputs = {'data': data_input}
    self.num_classes = data_input.num_classes

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
    sums = _Sums(self.per_class)
    for rows in self._split.map(
      _score,
      params,
      predict=self.predict,
      loss=self.loss,
      scored=self._scored,
    ):
      self._check_labels(rows)
      sums.add(rows)
    if not sums.num_examples:
      raise UserError(f'no example of {dict(self.data)} has a label')
    result = sums.result(self._split.input.class_names)
    if self._split.num_skipped is not None:
      result['num_skipped'] = self._split.num_skipped
    if sums.num_read > sums.num_examples:
      result['num_unlabelled'] = sums.num_read - sums.num_examples
    return {key: float(value) for key, value in result.items()}

  def _check_labels(self, rows: Mapping[str, np.ndarray]) -> None:
    unknown = rows['label'][rows['unknown']]
    if unknown.size:
      raise UserError(
        f'{dict(self.data)} has the labels {sorted(set(unknown.tolist()))[:5]},'
        f' but the model has {rows["num_classes"][0]} classes: set '
        'model.num_classes or choose another dataset'
      )
    if self.per_class and rows['label'].ndim == 2:
      raise UserError(
        f'per_class=True needs one label for each example; {dict(self.data)}'
        ' has multi-hot labels'
      )


class _Sums:
  """The exact sums over examples, on the host."""

  def __init__(self, per_class: bool):
    self._per_class = per_class
    self.num_read = self.num_examples = 0
    self._correct = collections.Counter()
    self._loss = 0.0
    self._bins = np.zeros((2, NUM_BINS))  # Correct and summed confidences.
    self._classes = [0, 0]  # Examples and correct ones of each class.

  def add(self, rows: Mapping[str, np.ndarray]) -> None:
    """Adds the labelled rows of a batch."""
    self.num_read += len(rows['labelled'])
    rows = {key: x[rows['labelled']] for key, x in rows.items()}
    self.num_examples += len(rows['labelled'])
    for key in ('top1', 'top5'):
      if key in rows:
        self._correct[key] += int(rows[key].sum())
    self._loss += float(rows['loss'].sum(dtype=np.float64))
    self._bins += _by_bin(rows['top1'], rows['confidence'])
    if self._per_class and len(rows['label']):
      label, num_classes = rows['label'], int(rows['num_classes'][0])
      for i, x in enumerate((label, label[rows['top1']])):
        self._classes[i] += np.bincount(x, minlength=num_classes)

  def result(self, class_names: Sequence[str] | None) -> dict[str, float]:
    """Returns the metrics."""
    n = self.num_examples
    result = {key: count / n for key, count in sorted(self._correct.items())}
    result['loss'] = self._loss / n
    correct, confidences = self._bins
    error = np.abs(correct - confidences).sum() / n
    result['expected_calibration_error'] = error
    result['num_examples'] = n
    if self._per_class:
      result.update(_class_table(*self._classes, class_names))
    return result


def _by_bin(correct: np.ndarray, confidence: np.ndarray) -> np.ndarray:
  """Returns `[2, NUM_BINS]`: correct and summed confidences of each bin."""
  upper = np.arange(1, NUM_BINS, dtype=np.float32) / np.float32(NUM_BINS)
  index = np.searchsorted(upper, confidence, side='left')
  sums = [np.bincount(index, x, NUM_BINS) for x in (correct, confidence)]
  return np.stack(sums)


def _class_table(
  examples: np.ndarray, correct: np.ndarray, names: Sequence[str] | None
) -> dict[str, float]:
  """Returns `top1_class_mean` and `top1/<class>` of the classes that occur."""
  keys = class_keys(names, len(examples))
  table = {
    f'top1/{keys[i]}': correct[i] / examples[i]
    for i in np.flatnonzero(examples)
  }
  return {'top1_class_mean': float(np.mean(list(table.values()))), **table}


def class_keys(names: Sequence[str] | None, num_classes: int) -> list[str]:
  """Returns a different text for each class; its number without a name."""
  if names is None:
    return [str(i) for i in range(num_classes)]
  twice = {name for name, n in collections.Counter(names).items() if n > 1}
  # ImageNet has two classes named crane and two named maillot.
  return [f'{x} ({i})' if x in twice else x for i, x in enumerate(names)]


def _score(params, batch, *, predict, loss, scored):
  """Returns the numbers of each row that the sums are taken of.

  `scored` are the classes that count; the others' logits are left out.
  """
  logits_BY = _rows.logits_of(predict(params, batch))
  label, num_classes = batch['label'], logits_BY.shape[-1]
  targets_BY = losses.targets(label, num_classes)
  if scored is not None:
    logits_BY = logits_BY[:, np.array(scored)]
    targets_BY = targets_BY[:, np.array(scored)]
  correct_B, labelled_B = losses.topk_correct(logits_BY, targets_BY)
  rows = dict(label=label, labelled=labelled_B, top1=correct_B)
  if logits_BY.shape[-1] > 5:
    rows['top5'], _ = losses.topk_correct(logits_BY, targets_BY, k=5)
  if loss == 'softmax':
    sum_B1 = jnp.sum(targets_BY, axis=-1, keepdims=True)
    targets_BY = targets_BY / jnp.where(sum_B1 > 0, sum_B1, 1)
    confidence_BY = jax.nn.softmax(logits_BY)
  else:
    confidence_BY = jax.nn.sigmoid(logits_BY)
  rows['loss'] = losses.cross_entropy(loss)(logits_BY, targets_BY)
  rows['confidence'] = jnp.max(confidence_BY, axis=-1)
  rows['unknown'] = jnp.zeros_like(labelled_B)
  if label.ndim == 1:
    rows['unknown'] = (label < 0) | (label >= num_classes)
  rows['num_classes'] = jnp.full_like(labelled_B, num_classes, jnp.int32)
  return rows
