"""Checks of the settings of a run against each other, before it compiles."""

from collections.abc import Sequence
from typing import Any

from vit_jax.errors import UserError
from vit_jax.reporting import profiling
from vit_jax.training import durations, run as run_lib


def check(
  run: run_lib.Run,
  jobs: Sequence[Any],
  *,
  log_every_steps: int | None,
  save_every_steps: int | None,
  keep_best: str | None = None,
  profile: str | None = None,
) -> None:
  """Raises UserError for settings that cannot be meant, all in one message.

  Args:
    run: that they are of.
    jobs: its `evaluation.Job`s.
    log_every_steps: steps between two rows of training metrics.
    save_every_steps: steps between two checkpoints; None is only the last.
    keep_best: of the checkpoints, a metric of one of the jobs.
    profile: 'START:STOP', see `profiling`.
  """
  problems = []
  for key, steps in (
    ('log_every_steps', log_every_steps),
    ('checkpoint.every_steps', save_every_steps),
  ):
    if problem := durations.cadence_problem(f'config.{key}', steps):
      problems.append(problem)
  if run.total_steps:
    problems += _batch_problems(run) + _best_problems(keep_best, jobs)
  if problem := profiling.problem(profile, run.total_steps):
    problems.append(problem)
  if problems:
    raise UserError('; '.join(problems))


def _batch_problems(run: run_lib.Run) -> list[str]:
  """Returns that a batch is more than all images, each `repeats` times."""
  images, size = run.input.num_examples, run.input.batch_size
  most = images * run.input.repeats
  if size <= most:
    return []
  fits = 2 ** (most.bit_length() - 1) if most else 0
  return [
    f'config.input.batch_size={size:,} is more than the {images:,} training '
    f'images: set --config.input.batch_size={fits} or less'
  ]


def _best_problems(keep_best: str | None, jobs: Sequence[Any]) -> list[str]:
  """Returns that no evaluation can have the metric; its name is not checked."""
  known = [prefix for job in jobs for prefix in job.prefixes]
  if not isinstance(keep_best, str):  # None; `Checkpointer` refuses others.
    return []
  if keep_best.partition('/')[0] in known:
    return []
  if not known:
    return [
      f'config.checkpoint.keep_best={keep_best!r}: config.evals has no '
      'evaluation that could measure it'
    ]
  return [
    f'config.checkpoint.keep_best={keep_best!r}: no evaluation measures it; '
    f'metrics of this config begin with {", ".join(f"{x}/" for x in known)}'
  ]
