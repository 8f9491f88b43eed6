"""Early stopping: the end of a run whose evaluations no longer improve."""

import math
from collections.abc import Mapping

_PREFIX = 'early_stopping/'


class Stopping:
  """Counts the evaluations since a metric was best.

  Args:
    evaluations: without an improvement, after which a run ends; None never
      ends it.
    metric: such as 'val/top1'.
    mode: 'max' or 'min', what is better.
    saved: metrics of the checkpoint that the run continues from, which hold
      what `metrics` returned.
  """

  def __init__(
    self,
    evaluations: int | None,
    metric: str | None,
    mode: str,
    saved: Mapping[str, float] | None = None,
  ):
    self.metric, self._most = metric, evaluations
    self._sign = 1 if mode == 'max' else -1
    saved = saved or {}
    self.best = saved.get(f'{_PREFIX}best', math.nan)
    self.best_step = int(saved.get(f'{_PREFIX}best_step', 0))
    self.count = int(saved.get(f'{_PREFIX}num_without_improvement', 0))

  @property
  def ends(self) -> bool:
    """Whether the run ends."""
    return self._most is not None and self.count >= self._most

  def improves(self, step: int, results: Mapping[str, float]) -> bool:
    """Counts an evaluation, and returns whether it is the best so far.

    One without the metric does not count. A value that is not finite is no
    improvement, nor is one equal to the best.
    """
    if self._most is None or self.metric not in results:
      return False
    value = results[self.metric]
    better = self._sign * (value - self.best) > 0 or math.isnan(self.best)
    if math.isfinite(value) and better:
      self.best, self.best_step, self.count = value, step, 0
      return True
    self.count += 1
    return False

  def metrics(self) -> dict[str, float]:
    """Returns what a checkpoint keeps for a run that continues from it."""
    if self._most is None:
      return {}
    found = dict(num_without_improvement=self.count, best_step=self.best_step)
    if math.isfinite(self.best):
      found['best'] = self.best
    return {f'{_PREFIX}{key}': float(value) for key, value in found.items()}

  @staticmethod
  def results(saved: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of a checkpoint without those of `metrics`."""
    return {k: x for k, x in saved.items() if not k.startswith(_PREFIX)}

  def __str__(self) -> str:
    return (
      f'{self.metric} has not improved in {self.count} evaluations; it was '
      f'best ({self.best:.4g}) at step {self.best_step:,}'
    )
