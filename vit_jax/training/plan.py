"""The plan of a run: its config, built and checked."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.pretrained import like
from vit_jax.reporting import clock as clock_lib, profiling
from vit_jax.training import (
  durations,
  evaluation,
  inputs,
  loss_scale,
  nonfinite,
  run as run_lib,
)

_MIN_ROWS = 20  # Of metrics that a run logs, if it has as many steps.


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run before it starts; nothing is written or computed yet."""

  config: dict[str, Any]  # As it is saved, `like` replaced.
  run: run_lib.Run
  jobs: list[evaluation.Job]
  pictures: dict[str, Any]
  finite: nonfinite.Check
  checkpoint: dict[str, Any]  # Arguments of `manager.Checkpointer`.
  save_every_steps: int | None
  log_every_steps: int | None

  @property
  def evaluates_only(self) -> bool:
    return self.run.total_steps == 0

  def logs(self, step: int) -> bool:
    """Whether the metrics of a step are logged, which the config decides."""
    most = max(1, self.run.total_steps // _MIN_ROWS)
    every = self.log_every_steps
    return self._is_due(every and min(every, most), step)

  def saves(self, step: int) -> bool:
    """Whether the state is saved after a step."""
    return self._is_due(self.save_every_steps, step)

  def due(self, step: int) -> list[evaluation.Job]:
    """Returns the evaluations after a step."""
    return [job for job in self.jobs if self._is_due(job.every_steps, step)]

  def _is_due(self, every_steps: int | None, step: int) -> bool:
    is_last = step == self.run.total_steps
    return is_last or (bool(every_steps) and step % every_steps == 0)

  def log(self, log: Callable[[str], None]) -> None:
    """Logs what a user wants to see before the first step."""
    run = self.run
    log(_describe(run))
    log(inputs.describe(self.config, evaluation.num_examples(run, self.jobs)))
    if hint := clock_lib.precision_hint(run.mesh, self.config['model']):
      log(hint)
    if hint := loss_scale.hint(self.config['model'], self.config['loss_scale']):
      log(hint)
    if run.mesh.shape['fsdp'] * run.mesh.shape['tensor'] > 1:
      log(str(run.sharding_report))


def make(config: Mapping[str, Any], *, profile: str | None = None) -> Plan:
  """Returns the plan of a config with all keys of `train.train`.

  Raises:
    UserError: sections that do not fit what they name, or one another.
  """
  config = like.complete(config)
  with inputs.all_problems(config):
    run = run_lib.build(config)
    jobs = evaluation.make_jobs(run, config)
    pictures = evaluation.make_pictures(run, config)
  checkpoint = durations.in_steps(
    config['checkpoint'] or {}, run.input.steps_per_epoch, 'config.checkpoint'
  )
  best = checkpoint.get('keep_best')
  if isinstance(best, str) and 'keep_best_mode' not in checkpoint:
    if evaluation.lower_is_better(config['evals'] or {}, best):
      checkpoint['keep_best_mode'] = 'min'
      config['checkpoint'] = {**config['checkpoint'], 'keep_best_mode': 'min'}
  save_every_steps = checkpoint.pop('every_steps', None)
  plan = Plan(
    config=config,
    run=run,
    jobs=jobs,
    pictures=pictures,
    finite=nonfinite.Check(
      config['on_nonfinite'],
      input=run.input,
      total_steps=run.total_steps,
      max_consecutive_skips=config['max_consecutive_skips'],
    ),
    checkpoint=checkpoint,
    save_every_steps=save_every_steps,
    log_every_steps=config['log_every_steps'],
  )
  if found := problems(plan, profile):
    raise UserError('; '.join(found))
  return plan


def problems(plan: Plan, profile: str | None = None) -> list[str]:
  """Returns the settings of a plan that contradict each other."""
  run, found = plan.run, []
  for key, steps in (
    ('log_every_steps', plan.log_every_steps),
    ('checkpoint.every_steps', plan.save_every_steps),
  ):
    if problem := durations.cadence_problem(f'config.{key}', steps):
      found.append(problem)
  images, size = run.input.num_examples, run.input.batch_size
  most = images * run.input.repeats
  if run.total_steps and size > most:
    fits = 2 ** (most.bit_length() - 1) if most else 0
    found.append(
      f'config.input.batch_size={size:,} is more than the {images:,} training '
      f'images: set --config.input.batch_size={fits} or less'
    )
  best = plan.checkpoint.get('keep_best')
  known = [prefix for job in plan.jobs for prefix in job.weights]
  # `Checkpointer` refuses what is no text.
  known_best = not isinstance(best, str) or best.partition('/')[0] in known
  if run.total_steps and not known_best:
    begin = ', '.join(f'{prefix}/' for prefix in known)
    found.append(
      f'config.checkpoint.keep_best={best!r}: '
      + (
        f'no evaluation measures it; metrics of this config begin with {begin}'
        if known
        else 'config.evals has no evaluation that could measure it'
      )
    )
  stop_after = plan.config['stop_after']
  if stop_after is not None:
    if lookup.expected(int, stop_after) or stop_after < 1:
      found.append(f'config.stop_after={stop_after!r}: expected 1 or more')
    elif best is None:
      found.append(
        f'config.stop_after={stop_after} needs the metric that should improve: '
        'set --config.checkpoint.keep_best, such as val/top1'
      )
  if problem := profiling.problem(profile, run.total_steps):
    found.append(problem)
  return found


def _describe(run: run_lib.Run) -> str:
  device = run.mesh.devices.flat[0]
  axes = ' x '.join(f'{k}={v}' for k, v in run.mesh.shape.items() if v > 1)
  sizes = [x.size for x in jax.tree.leaves(run.abstract_state.params)]
  epochs = run.total_steps / run.input.steps_per_epoch
  return (
    f'{run.mesh.size} x {device.device_kind}{f" ({axes})" if axes else ""}, '
    f'{sum(sizes):,} parameters, {run.input.num_examples:,} training images, '
    f'{run.total_steps:,} steps of {run.input.batch_size:,} images '
    f'({epochs:.3g} epochs)'
  )
