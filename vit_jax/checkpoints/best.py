"""Policy of orbax that keeps the checkpoint with the best value of a metric."""

import dataclasses
import math
from collections.abc import Mapping

from vit_jax.errors import UserError


@dataclasses.dataclass
class BestCheckpoint:
  """Preserves the checkpoint with the best finite value of a metric.

  In place of orbax's BestN, which ranks by a file in each checkpoint whose
  damage would stop the manager, and places a NaN anywhere.
  """

  metric: str | None
  sign: int
  values: dict[int, float] = dataclasses.field(default_factory=dict)

  def note(self, step: int, metrics: Mapping[str, float]) -> None:
    value = metrics.get(self.metric, math.nan)
    if math.isfinite(value):
      self.values[step] = value

  def check(self, step: int, metrics: Mapping[str, float]) -> None:
    """Raises UserError where its evaluation ran and has no such metric."""
    if self.metric is None or self.metric in metrics:
      return
    prefix = self.metric.partition('/')[0] + '/'
    found = [name for name in metrics if name.startswith(prefix)]
    if found:
      raise UserError(
        f'checkpoint.keep_best={self.metric!r}: the evaluation gives '
        f'{", ".join(found[:10])}. Step {step} is saved: correct '
        '--config.checkpoint.keep_best, and the same command continues'
      )

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    steps = [info.step for info in checkpoints]
    known = [step for step in steps if step in self.values]
    # The newest of equals.
    best = max(
      known, key=lambda s: (self.sign * self.values[s], s), default=None
    )
    return [step == best for step in steps]
