"""Linear probe: a linear classifier of frozen features, trained on all labels.

Two protocols. `solver='lbfgs'` is CLIP's (Radford et al. 2021,
arXiv:2103.00020, appendix A.3): logistic regression to its minimum, the
strength of its penalty searched on held-out images. `solver='sgd'` is DINO's
(`eval_linear.py`): SGD with momentum, the learning rate swept.

Features are computed once, from images as they are evaluated. DINO trains its
classifier on random crops and flips instead, which cannot be precomputed: the
published numbers of its protocol are somewhat higher for it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.evaluators import _features, _logistic

# DINOv2's sweep (`eval/linear.py`): 1e-5, 2e-5, 5e-5, ..., 5e-2, 0.1.
_LEARNING_RATES = (
  *(x * 10.0**power for power in range(-5, -1) for x in (1, 2, 5)),
  0.1,
)
# CLIP's search: 8 steps a decade from 1e-6 to 1e6.
_STEPS_PER_DECADE = 8
_DECADES = 6


@dataclasses.dataclass(eq=False, kw_only=True)
class Evaluator(_features.Splits):
  """Trains linear classifiers on a split and tests them on another.

  CLIP probes the features before the projection into the common space.

  Args:
    solver: 'lbfgs' or 'sgd'.
    held_out: fraction of the training images on which l2 or the learning rate
      is chosen, default 0.1; then the classifier is trained on all of them.
    seed: of that fraction, and of SGD's first weights and order.
    l2: only for 'lbfgs': CLIP's lambda, scikit-learn's 1 / C. None searches.
    max_iterations: only for 'lbfgs'; default 1000.
    learning_rates: only for 'sgd', for a batch of 256: the step has
      learning_rate * sgd_batch_size / 256. Default the 13 of DINOv2 from 1e-5
      to 0.1. A single one needs no choice; DINO's is `(1e-3,)`.
    epochs: only for 'sgd'; default 100.
    sgd_batch_size: only for 'sgd'; default 1024.
    Others: see `_features.Splits`.
  """

  solver: str = 'lbfgs'
  held_out: float | None = None
  seed: int = 0
  l2: float | None = None
  max_iterations: int | None = None
  learning_rates: Sequence[float] | None = None
  epochs: int | None = None
  sgd_batch_size: int | None = None

  lower_is_better: ClassVar = ('loss',)

  def __post_init__(self):
    solvers = {'lbfgs': _with_lbfgs, 'sgd': _with_sgd}
    if self.solver not in solvers:
      raise UserError(
        f'linear_probe: solver={self.solver!r}; expected one of {list(solvers)}'
      )
    solver, held_out = solvers[self.solver], self.held_out
    keys = 'l2 max_iterations learning_rates epochs sgd_batch_size'.split()
    options = {key: getattr(self, key) for key in keys}
    options = {key: x for key, x in options.items() if x is not None}
    where = f'linear_probe with solver={self.solver!r}'
    lookup.check_keys(solver, options, where, num_args=1)
    problems = [
      f'{key} is positive; got {x}'
      for key, x in options.items()
      if not np.size(x) or not np.min(x) > 0
    ]
    if held_out is not None and not 0 < held_out < 1:
      problems.append(f'held_out must be between 0 and 1; got {held_out}')
    single = self.l2 or np.size(self.learning_rates or ()) == 1
    if held_out is not None and single:
      problems.append('held_out has no effect: there is nothing to choose')
    if problems:
      raise UserError(f'{where}: {"; ".join(problems)}')
    self._solve = functools.partial(solver, **options)
    self._held_out = 0.1 if held_out is None else held_out
    super().__post_init__()

  def run(self, params: Any) -> dict[str, float]:
    """Returns the test metrics of the classifier of all training images.

    `top1`, `top5`: fraction of the test images whose class is the best one, or
      among the best five (with 6 classes or more).
    `loss`: their mean cross-entropy in nats. All are NaN if SGD diverged.
    `l2`, `learning_rate`: the chosen one, if there was a choice. It has the
      best top-1 on held-out training images, and of equals the lowest loss.
      As in CLIP, l2 is tried at 1e-6, 1e-4, ... 1e6, then around the best in
      ever smaller steps down to 1/8 of a decade.

    Also returns the facts and raises the errors of `_features.Splits.extract`.

    Raises:
      UserError: too few images to hold some out.
    """
    train, test, num_classes, facts = self.extract(params)
    task = _Task(train, num_classes, self._held_out, self.seed, self.mesh)
    heads, chosen = self._solve(task)
    scores = _logistic.scores(heads, test, self.mesh)
    return {key: float(x[0]) for key, x in scores.items()} | chosen | facts


@dataclasses.dataclass(frozen=True)
class _Task:
  """The training images and options that both solvers take."""

  train: _features.Features
  num_classes: int
  held_out: float
  seed: int
  mesh: jax.sharding.Mesh

  def split(self) -> tuple[_features.Features, _features.Features]:
    """Returns the training images without and with those held out."""
    num_rows = len(self.train.x)
    num_held_out = max(1, round(self.held_out * num_rows))
    if num_held_out >= num_rows:
      raise UserError(
        f'linear_probe: {num_rows} training images are too few to hold out '
        f'{self.held_out:.0%} of them'
      )
    order = np.random.default_rng(self.seed).permutation(num_rows)
    return tuple(
      _features.Features(self.train.x[part], self.train.label[part])
      for part in np.split(order, [num_rows - num_held_out])
    )


def _with_lbfgs(
  task: _Task, *, l2: float | None = None, max_iterations: int = 1000
) -> tuple[_logistic.Heads, dict[str, float]]:
  """Returns CLIP's classifier and the chosen l2."""
  fit = functools.partial(
    _logistic.lbfgs,
    mesh=task.mesh,
    num_classes=task.num_classes,
    max_iterations=max_iterations,
  )
  if l2 is not None:
    return fit(task.train, l2=l2), {}
  part, held_out = task.split()
  l2 = _search(lambda l2: _ranks(fit(part, l2=l2), held_out, task.mesh)[0])
  return fit(task.train, l2=l2), {'l2': l2}


def _search(score: Callable[[float], Any]) -> float:
  """Returns the power of ten with the best score that CLIP's search meets."""
  scores: dict[int, Any] = {}
  limit = _DECADES * _STEPS_PER_DECADE

  step = 2 * _STEPS_PER_DECADE
  exponents = range(-limit, limit + 1, step)
  while step:
    for exponent in exponents:
      if exponent not in scores and abs(exponent) <= limit:
        scores[exponent] = score(10 ** (exponent / _STEPS_PER_DECADE))
    best = max(scores, key=scores.get)
    step //= 2
    exponents = (best - step, best + step)
  return 10 ** (best / _STEPS_PER_DECADE)


def _with_sgd(
  task: _Task,
  *,
  learning_rates: Sequence[float] = _LEARNING_RATES,
  epochs: int = 100,
  sgd_batch_size: int = 1024,
) -> tuple[_logistic.Heads, dict[str, float]]:
  """Returns DINO's classifier and the chosen learning rate."""
  fit = functools.partial(
    _logistic.sgd,
    mesh=task.mesh,
    num_classes=task.num_classes,
    seed=task.seed,
    epochs=epochs,
    batch_size=sgd_batch_size,
  )
  rates = sorted(learning_rates)
  if len(rates) == 1:
    return fit(task.train, learning_rates=rates), {}
  part, held_out = task.split()
  ranks = _ranks(fit(part, learning_rates=rates), held_out, task.mesh)
  rate = float(rates[ranks.index(max(ranks))])
  return fit(task.train, learning_rates=[rate]), {'learning_rate': rate}


def _ranks(
  heads: _logistic.Heads, held_out: _features.Features, mesh
) -> list[tuple[float, float]]:
  """Returns the rank of each head; one that diverged comes last."""
  scores = _logistic.scores(heads, held_out, mesh)
  pairs = zip(scores['top1'], -scores['loss'], strict=True)
  return [(-1.0, 0.0) if np.isnan(pair).any() else pair for pair in pairs]
