"""Schedules: learning rates and other numbers as functions of the update."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import lookup
from vit_jax.errors import UserError

NAMES = ('cosine', 'linear', 'rsqrt', 'constant', 'deit')

_TIMESCALE_STEPS = 10_000  # big_vision's.
_DEIT_START = 1e-6  # Of the warm-up of DeiT and DeiT-III.


@dataclasses.dataclass(frozen=True)
class Rate:
  """The learning rate: `rate(k)`, float32, for update k = 1 .. total_steps.

  With W = warmup_steps, T = total_steps, p = clip((k - W) / (T - W), 0, 1),
  base = learning_rate and end = end_learning_rate:

    cosine:   end + (base - end) * (1 + cos(pi p)) / 2
    linear:   end + (base - end) * (1 - p)
    rsqrt:    base / sqrt(1 + max(k - W, 0) / timescale_steps)
    constant: base

  The warm-up multiplies by min(1, k / W): the first update has base / W. The
  cool-down then draws the rate linearly to `end` over the last updates, by the
  factor min(1, (T - k) / cooldown_steps): update T has `end` itself. These are
  the formulae of google-research's vision_transformer and big_vision, except
  that both apply rate(k - 1) to update k (their first update does nothing).

  'deit' is how DeiT and DeiT-III stepped timm 0.3.2's cosine: once an epoch of
  S = stair_steps updates, one epoch late. In epoch e = floor((k - 1) / S), with
  t = S max(e - 1, 0), the rate is 1e-6 + (base - 1e-6) t / W while t < W, then
  end + (base - end) * (1 + cos(pi t / T)) / 2, which no warm-up shifts.

  Args:
    schedule: one of `NAMES`.
    learning_rate: the peak, > 0.
    total_steps: updates of the run; 0 (evaluation alone) checks no durations.
    warmup_steps: less than total_steps.
    cooldown_steps: not into the warm-up.
    end_learning_rate: where cosine and linear (default 0) and every cool-down
      (default 0) end, in [0, learning_rate].
    timescale_steps: of rsqrt, default 10,000.
    stair_steps: of 'deit', and needed there: updates that have one rate.

  Raises:
    UserError: a value out of range, or one that has no effect; all of them in
      one message.
  """

  schedule: str
  _: dataclasses.KW_ONLY
  learning_rate: float
  total_steps: int
  warmup_steps: int = 0
  cooldown_steps: int = 0
  end_learning_rate: float | None = None
  timescale_steps: int | None = None
  stair_steps: int | None = None

  def __post_init__(self):
    if problems := [*self._problems(), *self._stair_problems()]:
      raise UserError('optimizer: ' + '; '.join(problems))

  def __call__(self, k: jax.Array | int) -> jax.Array:
    k = jnp.asarray(k, jnp.float32)
    base, end = self.learning_rate, self.end_learning_rate or 0.0
    warmup, total = self.warmup_steps, self.total_steps
    if self.schedule == 'deit':
      epoch = jnp.maximum(jnp.floor((k - 1) / self.stair_steps) - 1, 0)
      return _deit(self.stair_steps * epoch, base, end, warmup, max(total, 1))
    progress = jnp.clip((k - warmup) / max(total - warmup, 1), 0.0, 1.0)
    if self.schedule == 'cosine':
      value = end + (base - end) * 0.5 * (1 + jnp.cos(math.pi * progress))
    elif self.schedule == 'linear':
      value = end + (base - end) * (1 - progress)
    elif self.schedule == 'rsqrt':
      timescale = self.timescale_steps or _TIMESCALE_STEPS
      decayed = jnp.maximum(k - warmup, 0) / timescale
      value = base / jnp.sqrt(1 + decayed)
    else:
      value = jnp.full_like(k, base)
    if warmup:
      value = value * jnp.minimum(1.0, k / warmup)
    if self.cooldown_steps:
      left = jnp.clip((total - k) / self.cooldown_steps, 0.0, 1.0)
      value = end + (value - end) * left
    return value

  def _problems(self) -> list[str]:
    schedule, learning_rate = self.schedule, self.learning_rate
    total_steps, warmup_steps = self.total_steps, self.warmup_steps
    cooldown_steps, timescale_steps = self.cooldown_steps, self.timescale_steps
    problems = []
    if schedule not in NAMES:
      problems.append(f'schedule={schedule!r}; expected one of {list(NAMES)}')
    for key in ('total_steps', 'warmup_steps', 'cooldown_steps'):
      steps = getattr(self, key)
      if not is_number(steps) or steps < 0 or steps != int(steps):
        problems.append(f'{key}={steps!r} must be a whole number >= 0')
    if not is_number(learning_rate) or learning_rate <= 0:
      problems.append(f'learning_rate={learning_rate!r} must be a number > 0')
    if problems:
      return problems  # What follows compares these numbers.
    if 0 < total_steps <= warmup_steps:
      problems.append(
        f'warmup_steps={warmup_steps} must be less than the {total_steps} '
        'steps of the run, or the rate never reaches its peak; lower it'
      )
    elif schedule == 'deit' and cooldown_steps:
      problems.append("cooldown_steps has no effect with schedule='deit'")
    elif 0 < total_steps < warmup_steps + cooldown_steps:
      problems.append(
        f'warmup_steps={warmup_steps} and cooldown_steps={cooldown_steps} '
        f'overlap in a run of {total_steps} steps'
      )
    if (end := self.end_learning_rate) is not None:
      if not is_number(end) or not 0 <= end <= learning_rate:
        problems.append(
          f'end_learning_rate={end!r} must lie between 0 and '
          f'learning_rate={learning_rate!r}'
        )
      if schedule in ('rsqrt', 'constant') and not cooldown_steps:
        problems.append(
          f'end_learning_rate has no effect with schedule={schedule!r} and no '
          'cooldown_steps: remove it or add a cool-down'
        )
    if timescale_steps is not None:
      if schedule != 'rsqrt':
        problems.append(
          f'timescale_steps has no effect with schedule={schedule!r}: remove it'
        )
      elif not is_number(timescale_steps) or timescale_steps <= 0:
        problems.append(f'timescale_steps={timescale_steps!r} must be positive')
    return problems

  def _stair_problems(self) -> list[str]:
    if self.schedule != 'deit':
      if self.stair_steps is None:
        return []
      return [
        f'stair_steps has no effect with schedule={self.schedule!r}: remove it'
      ]
    problems, steps = [], self.stair_steps
    if not isinstance(steps, int) or steps < 1:
      problems.append(
        "schedule='deit' needs stair_steps or stair_epochs, the updates that "
        f'have one rate; got stair_steps={steps!r}'
      )
    if is_number(self.learning_rate) and self.learning_rate <= _DEIT_START:
      problems.append(f"schedule='deit' rises from {_DEIT_START} to its peak")
    return problems


def between(
  value: float | Mapping[str, Any],
  *,
  total_steps: int,
  where: str,
  most: float = math.inf,
) -> Callable[[jax.Array], jax.Array]:
  """Returns a number, or the schedule of one, as a function of the update.

  A schedule is `dict(name='cosine', start=0.996, end=1.0)`, or 'linear', with
  `over_steps` if it should reach its end before the run does. Update k = 1, 2,
  ... has, with p = min((k - 1) / over_steps, 1):

    cosine: end + (start - end) * (1 + cos(pi p)) / 2
    linear: start + (end - start) * p

  as the teacher momentum and the weight decay of DINO (arXiv:2104.14294) and
  the decay of BYOL (arXiv:2006.07733). The first update has `start`.

  Args:
    value: of the config.
    total_steps: the default of `over_steps`; 0 for evaluation alone.
    where: its place in the config, for messages.
    most: the largest value; the smallest is 0.

  Raises:
    UserError: a value out of range, or keys that no schedule has.
  """
  if not isinstance(value, lookup.SECTION):
    _check_range(value, where, most)
    return lambda k: jnp.float32(value)
  lookup.check_keys(_between, value, where, num_args=1)
  for key in ('start', 'end'):
    _check_range(value[key], f'{where}.{key}', most)
  over_steps = value.get('over_steps')
  if over_steps is not None and over_steps < 1:
    raise UserError(f'{where}.over_steps={over_steps}: expected 1 or more')
  if value['name'] not in ('cosine', 'linear'):
    raise UserError(
      f"{where}.name={value['name']!r}: expected 'cosine' or 'linear'"
    )
  over_steps = over_steps or max(total_steps, 1)
  return functools.partial(_between, **{**value, 'over_steps': over_steps})


def _between(
  k, *, name: str, start: float, end: float, over_steps: int | None = None
) -> jax.Array:
  p = jnp.minimum((jnp.asarray(k, jnp.float32) - 1) / over_steps, 1.0)
  if name == 'cosine':
    p = 0.5 * (1 - jnp.cos(math.pi * p))
  # Exact at both ends, which 1 - (1 - start) is not.
  return start * (1 - p) + end * p


def _check_range(value: Any, where: str, most: float) -> None:
  if not in_range(value, ge=0, le=most):
    limit = 'from 0 up' if most == math.inf else f'from 0 to {most}'
    raise UserError(
      f'{where}={value!r}: expected a number {limit}, or a schedule such as '
      "dict(name='cosine', start=..., end=...)"
    )


def _deit(t, base, end, warmup_steps: int, total_steps: int) -> jax.Array:
  value = end + (base - end) * 0.5 * (1 + jnp.cos(math.pi * t / total_steps))
  if not warmup_steps:
    return value
  rising = _DEIT_START + (base - _DEIT_START) * t / warmup_steps
  return jnp.where(t < warmup_steps, rising, value)


def is_number(value: Any) -> bool:
  """Returns whether a value of a config is a finite real number, not a bool."""
  return lookup.expected(float, value) is None


def in_range(value: Any, *, gt=None, ge=None, lt=None, le=None) -> bool:
  """Returns whether a value of a config is a finite number in a range."""
  return (
    is_number(value)
    and (gt is None or value > gt)
    and (ge is None or value >= ge)
    and (lt is None or value < lt)
    and (le is None or value <= le)
  )
