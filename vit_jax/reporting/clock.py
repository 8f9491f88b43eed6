"""Speed, utilisation and remaining time of a run."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@dataclasses.dataclass
class Clock:
  """Measures the training speed over the time since the last report.

  Call `start` after the first step; `waiting` is around the input and `pause`
  around evaluations. A step that the device has not finished belongs to the
  report after it, so fetch the metrics of a step before a report or a pause.

  Args:
    batch_size: images per step, over all processes.
    step: the last step that is done; 0, or the restored one.
    flops_per_step: of the model for a global batch, see `flops.count`.
    peak_flops: FLOP/s of all devices together. Without both of these no
      utilisation is reported.
    now: a clock in seconds.
  """

  batch_size: int
  _: dataclasses.KW_ONLY
  step: int = 0
  flops_per_step: float | None = None
  peak_flops: float | None = None
  now: Callable[[], float] = time.monotonic

  def __post_init__(self):
    self._pauses = 0  # How many pauses are open, one within another.
    self._recent = collections.deque(maxlen=5)  # (seconds, steps) of reports
    self._trained_seconds = self._paused_seconds = 0.0  # Since the start.
    self._begin(self.step)

  def start(self, step: int) -> float:
    """Forgets the time until now, in which `step` was done; returns it.

    To be called once, after the first step: before it are set-up and
    compilation, which do not count as training.
    """
    seconds = self.now() - self._time
    self._trained_seconds = self._paused_seconds = 0.0
    self._begin(step)
    return seconds

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Leaves out the time within: evaluations, checkpoints, pictures."""
    begin = self.now()
    self._pauses += 1
    try:
      yield
    finally:
      self._pauses -= 1
      if not self._pauses:
        self._pause += self.now() - begin

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Counts the time within as waiting for the input."""
    begin = self.now()
    try:
      yield
    finally:
      self._wait += self.now() - begin

  def report(self, step: int) -> dict[str, float]:
    """Returns the speed of the steps since the last report.

    The keys are `train/images_per_second`, `train/input_stall_fraction` (of the
    time, what the loop waited for its next batch) and, where the peak is known,
    `train/mfu` in 0..1. Empty where no step was done since.
    """
    steps = step - self.step
    seconds = self.now() - self._time - self._pause
    if steps <= 0 or seconds <= 0:
      return {}
    metrics = {
      'train/images_per_second': steps * self.batch_size / seconds,
      'train/input_stall_fraction': min(1.0, self._wait / seconds),
    }
    if self.flops_per_step and self.peak_flops:
      achieved = steps * self.flops_per_step / seconds
      metrics['train/mfu'] = achieved / self.peak_flops
    self._recent.append((seconds, steps))
    self._trained_seconds += seconds
    self._paused_seconds += self._pause
    self._begin(step)
    return metrics

  def eta_seconds(self, step: int, total_steps: int) -> float | None:
    """Returns the time left after `step`; None before the first report.

    The steps will take what they took in the last reports, and pauses their
    share of the time since the start.
    """
    if not self._recent:
      return None
    seconds, steps = map(sum, zip(*self._recent, strict=True))
    share = 1 + self._paused_seconds / self._trained_seconds
    return (total_steps - step) * seconds / steps * share

  def _begin(self, step: int) -> None:
    self.step, self._time = step, self.now()
    self._pause = self._wait = 0.0


def precision_hint(mesh: Any, model: Mapping[str, Any]) -> str | None:
  """Returns advice where a model's dtype is slow on the devices of a mesh.

  Measured with gradients of a Ti/16 at 224 px on 2 cores of an AMD EPYC: 2.3 s
  for 8 images in float32, 4.1 s in bfloat16.
  """
  is_cpu = mesh.devices.flat[0].platform == 'cpu'
  if not is_cpu or model.get('dtype') != 'bfloat16':
    return None
  return (
    'bfloat16 is for accelerators: on this CPU --config.model.dtype=float32 '
    'may be twice as fast'
  )
