"""Precision, recall, specificity, F1, ROC-AUC and confidence intervals.

For the data sets whose classes are rare or cost differently, where accuracy
says little. One of three kinds of data: two classes, several, or several labels
for each image.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.evaluators import _rows, _statistics, classification

_RATES = ('precision', 'recall', 'specificity', 'f1')


@dataclasses.dataclass(eq=False)
class Evaluator:
  """Scores answers class by class.

  Args:
    predict: `(params, batch) -> {'logits': [B, Y], ...}`, jittable.
    mesh: the devices.
    data: the source, as in the input section of a config.
    ops: the host ops, as in the input section of a config.
    batch_size: of the forward pass; it does not change the result.
    positive: with two classes, the one that is looked for (disease, fraud).
    threshold: with several labels, the sigmoid from which a class is answered.
    per_class: adds the numbers of every class, without intervals.
    resamples: of the bootstrap over examples; 0 is no intervals.
    confidence: of the intervals.
    seed: of the resamples.
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
  positive: int = 1
  threshold: float = 0.5
  per_class: bool = False
  resamples: int = 1000
  confidence: float = 0.95
  seed: int = 0
  on_error: str = 'stop'
  num_threads: int | None = None

  outputs: ClassVar = ('logits',)
  lower_is_better: ClassVar = ()

  def __post_init__(self):
    if (
      lookup.expected(int, self.resamples)
      or self.resamples < 0
      or not 0 < self.confidence < 1
      or not 0 < self.threshold < 1
      or self.positive not in (0, 1)
    ):
      raise UserError(
        f'classification_report: resamples={self.resamples!r} is 0 or more, '
        f'confidence={self.confidence!r} and threshold={self.threshold!r} are '
        f'between 0 and 1, positive={self.positive!r} is 0 or 1'
      )
    self._split = _rows.Rows(
      self.mesh,
      data=self.data,
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

    `top1`: fraction of the examples whose best logit is that of the label; not
      with several labels.
    `precision`, `recall`, `specificity`, `f1`: with two classes, of the class
      `positive`. Otherwise `..._macro`, the plain mean over the classes that
      occur as a label or as an answer, and with several labels `..._micro`, of
      all decisions together. (With one label of several, micro precision,
      recall and F1 are `top1`.) They are those of scikit-learn; specificity is
      the recall of all examples without the class.
    `roc_auc`, `average_precision`: with two classes of the class `positive`, by
      the difference of the logits; with several labels `..._macro`, over the
      classes that some examples have and some have not.
    `<metric>_low`, `<metric>_high`: the bootstrap interval.
    `<metric>/<class>` (with per_class): for each class that occurs.
    `num_examples`; `num_skipped` (with on_error='skip').

    Raises:
      UserError: labels that do not fit the model, or no example.
    """
    examples = self._examples(params)
    found, classes = examples.numbers(np.ones(len(examples)))
    drawn = collections.defaultdict(list)
    for weight_N in _statistics.resamples(
      len(examples), self.resamples, self.seed
    ):
      for name, value in examples.numbers(weight_N)[0].items():
        drawn[name].append(value)
    result = {}
    for name, value in found.items():
      result[name] = value
      if name in drawn:
        low, high = _statistics.interval(np.array(drawn[name]), self.confidence)
        result |= {f'{name}_low': low, f'{name}_high': high}
    result['num_examples'] = len(examples)
    if self._split.num_skipped is not None:
      result['num_skipped'] = self._split.num_skipped
    if self.per_class:
      names = classification.class_keys(
        self._split.input.class_names, examples.num_classes
      )
      for metric, values in classes.items():
        for i in examples.occurring:
          result[f'{metric}/{names[i]}'] = values[i]
    # Of what is not defined, such as the AUC without a positive, nothing.
    return {k: float(x) for k, x in result.items() if np.isfinite(x)}

  def confusion_matrix(self, params: Any) -> np.ndarray:
    """Returns counts `[Y, Y]`: rows are labels, columns answers.

    Raises:
      UserError: as `run`, and for several labels an image.
    """
    examples = self._examples(params)
    if isinstance(examples, _SeveralLabels):
      raise UserError(
        f'{dict(self.data)} has several labels for each image, and a confusion '
        'matrix one; use the evaluator classification_report with per_class'
      )
    y = examples.num_classes
    cells = np.bincount(examples.label * y + examples.answer, minlength=y * y)
    return cells.reshape(y, y)

  def _examples(self, params: Any) -> Any:
    """Returns the labels and answers of the split."""
    found = list(self._split.map(_score, params, predict=self.predict))
    rows = {k: np.concatenate([x[k] for x in found]) for k in found[0]}
    label, num_classes = rows['label'], int(rows['num_classes'][0])
    if label.ndim == 1 and 0 <= label.min() <= label.max() < num_classes:
      return _OneLabel(rows, num_classes, self.positive)
    if label.ndim == 1 or label.shape[1] != num_classes:
      raise UserError(
        f'{dict(self.data)} has labels that are not classes of the model, '
        f'which has {num_classes}: set model.num_classes or choose another '
        'dataset'
      )
    if not np.isin(label, (0, 1)).all():
      raise UserError(
        f'{dict(self.data)} has labels between 0 and 1; '
        'classification_report expects each class to be 0 or 1'
      )
    return _SeveralLabels(label.astype(bool), rows['logits'], self.threshold)


class _OneLabel:
  """Examples with one label each."""

  def __init__(self, rows, num_classes: int, positive: int):
    self.label, self.answer = rows['label'], rows['answer']
    self.num_classes = num_classes
    self._hit = self.label == self.answer
    self.occurring = np.union1d(self.label, self.answer)
    self._ranking = self._positive = None
    if self.num_classes == 2:
      self._positive = positive
      score_N = rows['margin'] if positive else -rows['margin']
      self._ranking = _statistics.Ranking(score_N, self.label == positive)

  def __len__(self) -> int:
    return len(self.label)

  def numbers(self, weight_N: np.ndarray) -> tuple[dict, dict]:
    """Returns the metrics, and those of each class, `[Y]`."""
    hits, answers, labels = (
      np.bincount(classes, weight_N * counts, self.num_classes)
      for classes, counts in (
        (self.label, self._hit),
        (self.answer, 1.0),
        (self.label, 1.0),
      )
    )
    classes = _statistics.rates(hits, answers, labels, weight_N.sum())
    found = {'top1': hits.sum() / weight_N.sum()}
    if self._ranking is not None:
      found |= {name: classes[name][self._positive] for name in _RATES}
      return found | self._ranking.areas(weight_N), classes
    for name in _RATES:
      found[f'{name}_macro'] = classes[name][self.occurring].mean()
    return found, classes


class _SeveralLabels:
  """Examples with any number of labels each."""

  def __init__(self, label_NY, logits_NY, threshold: float):
    answer_NY = logits_NY >= np.log(threshold / (1 - threshold))
    self.num_classes = label_NY.shape[1]
    counted = (label_NY & answer_NY, answer_NY, label_NY)
    self._counted = [x.astype(np.float64) for x in counted]
    self.occurring = np.flatnonzero((label_NY | answer_NY).any(axis=0))
    self._rankings = [
      _statistics.Ranking(*columns)
      for columns in zip(logits_NY.T, label_NY.T, strict=True)
    ]

  def __len__(self) -> int:
    return len(self._counted[0])

  def numbers(self, weight_N: np.ndarray) -> tuple[dict, dict]:
    """Returns the metrics, and those of each class, `[Y]`."""
    counts_Y = [weight_N @ x for x in self._counted]
    total = weight_N.sum()
    classes = _statistics.rates(*counts_Y, total)
    sums = [x.sum() for x in counts_Y]
    micro = _statistics.rates(*sums, total * self.num_classes)
    found = {f'{x}_macro': classes[x][self.occurring].mean() for x in _RATES}
    found |= {f'{name}_micro': value for name, value in micro.items()}
    areas = [ranking.areas(weight_N) for ranking in self._rankings]
    for name in areas[0]:
      classes[name] = np.array([x[name] for x in areas])
      defined = classes[name][np.isfinite(classes[name])]
      found[f'{name}_macro'] = defined.mean() if defined.size else np.nan
    return found, classes


def _score(params, batch, *, predict):
  """Returns of each row what the metrics need."""
  logits_BY = _rows.logits_of(predict(params, batch))
  label, num_classes = batch['label'], logits_BY.shape[-1]
  rows = dict(label=label)
  rows['num_classes'] = jnp.full(len(label), num_classes, jnp.int32)
  if label.ndim == 2:
    return rows | dict(logits=logits_BY)
  if num_classes == 2:
    rows['margin'] = logits_BY[:, 1] - logits_BY[:, 0]
  return rows | dict(answer=jnp.argmax(logits_BY, axis=-1))
