"""Scores of every task of the objective multi_task, in one pass over the data.

Sums are taken on the host in float64 over the labels that are known, so the
result does not depend on the batch size or on the number of devices.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import losses
from vit_jax.data import fields
from vit_jax.errors import UserError
from vit_jax.evaluators import _rows, _statistics
from vit_jax.models import _tasks

# See tests/evaluators/test_conformance.py.
TINY = dict(
  options=dict(
    tasks=dict(pattern=dict(label='label', num_classes=7)),
    output_names=dict(pattern='logits'),
  )
)


@dataclasses.dataclass(eq=False)
class Evaluator:
  """Scores the outputs of tasks against their labels.

  Args:
    predict: `(params, batch) -> {'logits/<task>': ..., ...}`, jittable.
    mesh: the devices.
    tasks: those of the objective, or some of them.
    output_names: of the model by task; by default as the objective names them,
      'logits/<task>' and 'value/<task>'. 'logits' is a model of one task.
    data: the source, as in the input section of a config.
    ops: the host ops, as in the input section of a config.
    batch_size: of the forward pass; it does not change the result.
    on_error: 'stop' or 'skip' where an image cannot be read.
    num_threads: see `pipeline.TrainInput`.

  Raises:
    UserError: an option or the data.
  """

  predict: Callable[..., Mapping[str, jax.Array]]
  mesh: jax.sharding.Mesh
  _: dataclasses.KW_ONLY
  tasks: Mapping[str, Any]
  data: Mapping[str, Any]
  ops: str
  batch_size: int
  output_names: Mapping[str, str] | None = None
  on_error: str = 'stop'
  num_threads: int | None = None

  def __post_init__(self):
    self._tasks = _tasks.parse(self.tasks, 'tasks')
    given = dict(self.output_names or {})
    if unknown := sorted(set(given) - set(self._tasks)):
      raise UserError(
        f'output_names={given}: no task {", ".join(unknown)}; tasks are '
        f'{", ".join(self._tasks)}'
      )
    self._scored = tuple(
      (name, task, given.get(name, _tasks.output_name(name, task)))
      for name, task in self._tasks.items()
    )
    self.outputs = tuple(key for *_, key in self._scored)
    self._split = _rows.Rows(
      self.mesh,
      data=self.data,
      ops=self.ops,
      batch_size=self.batch_size,
      on_error=self.on_error,
      num_threads=self.num_threads,
    )
    self.inputs = {'data': self._split.input}
    fields.check_present(
      f'the data {dict(self.data)}',
      [x for task in self._tasks.values() for x in task.fields],
      sorted(self._split.input.element_spec()),
      noun='field',
    )

  def run(self, params: Any) -> dict[str, float]:
    """Returns what the model achieves on the whole split.

    `<task>_top1` and `<task>_loss` of 'softmax', without label smoothing.
    `<task>_accuracy`, `<task>_loss` of 'sigmoid': mean over all decisions; and
    `<task>_map`, the mean over the labels that some examples have and some have
    not of the average precision, as in scikit-learn.
    `<task>_mae`, `<task>_rmse` of numbers, in the units of the label.
    `num_examples`; `num_<task>`: labels that are known; `num_skipped` (with
    on_error='skip').

    Raises:
      UserError: a model without one of the tasks, a label outside its classes,
        or a task without any label.
    """
    found = collections.defaultdict(list)
    for rows in self._split.map(
      _outputs, params, predict=self.predict, outputs=self._scored
    ):
      for key, value in rows.items():
        found[key].append(value)
    result = {}
    for name, task in self._tasks.items():
      arrays = [
        np.concatenate(found[f'{name}/{x}'])
        for x in ('known', 'output', 'target')
      ]
      if not arrays[0].any():
        raise UserError(
          f'no example of {dict(self.data)} has a label of the task {name!r}'
        )
      if task.is_number:
        score = _score_numbers(*arrays)
      else:
        loss = np.concatenate(found[f'{name}/loss'])
        score = _score_classes(task, *arrays, loss)
      result |= {f'{name}_{key}': float(x) for key, x in score.items()}
      result[f'num_{name}'] = float(arrays[0].sum())
      result['num_examples'] = float(len(arrays[0]))
    if self._split.num_skipped is not None:
      result['num_skipped'] = float(self._split.num_skipped)
    return result


def _outputs(params, batch, *, predict, outputs):
  """Returns outputs, targets and losses of each task, row by row.

  Of 'softmax' the output is whether the answer is right.
  """
  found, rows = predict(params, batch), {}
  for name, task, key in outputs:
    if key not in found:
      raise UserError(
        f'the outputs {sorted(found)} have no {key!r}: the tasks of the '
        'evaluation are those of config.objective.tasks'
      )
    task = dataclasses.replace(task, label_smoothing=0.0)
    output_BY = found[key]
    if output_BY.ndim == 1:
      output_BY = output_BY[:, None]
    target_BY, known = task.target(batch)
    if not task.is_number:
      rows[f'{name}/loss'] = task.losses_of(output_BY, target_BY)
    if task.loss == 'softmax':
      output_BY = losses.topk_correct(output_BY, target_BY)[0][:, None]
    rows[f'{name}/output'] = output_BY
    rows[f'{name}/target'] = target_BY
    rows[f'{name}/known'] = known
  return rows


def _score_numbers(known_BY, output_BY, target_BY):
  error = (output_BY.astype(np.float64) - target_BY)[known_BY]
  return {'mae': np.mean(np.abs(error)), 'rmse': np.sqrt(np.mean(error**2))}


def _score_classes(task, known_BY, output_BY, target_BY, loss_BY):
  loss = np.mean(loss_BY[known_BY], dtype=np.float64)
  if not np.isfinite(target_BY).all():
    raise UserError(
      f'{" and ".join(task.fields)} has labels outside the '
      f'{task.num_classes} classes of the task'
    )
  if task.loss == 'softmax':
    return {'top1': np.mean(output_BY[known_BY]), 'loss': loss}
  right_BY = (output_BY > 0) == (target_BY > 0.5)
  result = {'accuracy': np.mean(right_BY[known_BY]), 'loss': loss}
  precisions = []
  for output_B, target_B, known_B in zip(
    output_BY.T, target_BY.T, known_BY.T, strict=True
  ):
    if known_B.any():
      ranking = _statistics.Ranking(output_B[known_B], target_B[known_B] > 0.5)
      areas = ranking.areas(np.ones(known_B.sum()))
      precisions.append(areas['average_precision'])
  if not np.isnan(precisions).all():
    result['map'] = np.nanmean(precisions)
  return result
