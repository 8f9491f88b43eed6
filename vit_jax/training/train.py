"""The training loop: restore, step, log, evaluate, save.

`plan` builds and checks the config; `session` opens the workdir and the data.
Evaluation alone is the same loop with `total_steps=0`.
"""

import contextlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from vit_jax import lookup
from vit_jax.pretrained import like
from vit_jax.printable import show
from vit_jax.reporting import run_folder
from vit_jax.training import (
  evaluation,
  nonfinite,
  plan as plan_lib,
  run as run_lib,
  session as session_lib,
  stopping,
)


def train(
  workdir: str,
  *,
  model: Mapping[str, Any],
  objective: Mapping[str, Any],
  input: Mapping[str, Any],
  optimizer: Mapping[str, Any],
  total_steps: int | None = None,
  total_epochs: float | None = None,
  seed: int = 0,
  ema: Mapping[str, Any] | None = None,
  init_from: Sequence[Mapping[str, Any]] = (),
  mesh: Mapping[str, int] | None = None,
  sharding: Mapping[str, Any] | None = None,
  evals: Mapping[str, Mapping[str, Any]] | None = None,
  checkpoint: Mapping[str, Any] | None = None,
  stop_after: int | None = None,
  log_every_steps: int | None = 50,
  pictures: Mapping[str, Mapping[str, Any]] | None = None,
  loggers: str | Sequence[Any] | Mapping[str, Any] | None = None,
  on_nonfinite: str = 'stop',
  max_consecutive_skips: int = nonfinite.MAX_CONSECUTIVE_SKIPS,
  micro_batches: int = 1,
  loss_scale: float | str | Mapping[str, Any] | None = None,
  max_read_seconds: float | None = 1800.0,
  profile: str | None = None,
) -> dict[str, float]:
  """Runs a config to its end and returns the last evaluation's numbers.

  The keyword arguments are the top level of a config, and its sections are
  dicts or ConfigDicts. A run that was killed
  continues from its newest good checkpoint and takes every following step with
  the same bits; a finished one says so and does nothing.

  Args:
    workdir: where checkpoints, metrics and pictures go; made if missing.
    model: name of a file in `models/` and the arguments of its `Model`; or
      `like`, weights whose model it is, see `pretrained.like`.
    objective: name of a file in `objectives/` and the arguments of `Objective`.
    input: arguments of `pipeline.TrainInput` but the seed.
    optimizer: arguments of `optim.chain.make`; durations also as `*_epochs`.
    total_steps: length of the run in updates; 0 only evaluates.
    total_epochs: the same in passes over the training data; give one of both.
    seed: of the weights, the order of the data and everything random in a step.
    ema: `decay` and other arguments of `train_state.ema_decay`; None keeps no
      average of the weights.
    init_from: weights to start from, see `pretrained.initialize`; a run that
      continues from a checkpoint does not read them again.
    mesh: arguments of `mesh.make_mesh`; None is pure data parallelism.
    sharding: rules and limits, see `parallel.limits.Options`.
    evals: for each name: `name` of a file in `evaluators/`, `every_steps` or
      `every_epochs` (the end of the run is always evaluated), `weights`, and
      the evaluator's own arguments; None switches an evaluation off. `weights`
      is `'params'`, `'ema'` or a list of both: the first is logged as
      `val/...`, another as `val_ema/...`.
    checkpoint: `every_steps` or `every_epochs` and arguments of
      `checkpoints.manager.Checkpointer`. The end of the run is always saved.
    stop_after: the run ends after so many evaluations in a row without an
      improvement of `checkpoint.keep_best`, as at its last step; the learning
      rate is where its schedule then is. Each best state so far is saved, also
      between the steps of `checkpoint`. None goes to the end.
    log_every_steps: cadence of the training metrics, but at least every 20th
      of `total_steps`, so that a short run has a curve; the last step is always
      logged. None logs the last step alone.
    pictures: for each name: a file of `visualize/` and its arguments; drawn at
      the end of the run into `<workdir>/<name>.png`.
    loggers: trackers that get the metrics too: names of files of
      `reporting/loggers/`, or sections by name, see `run_loggers.sections`.
    on_nonfinite: `'stop'` or `'skip'`, see `train_step.make_train_step`.
    max_consecutive_skips: with `'skip'`: the run fails after so many skipped
      updates in a row, and where no update of the whole run was applied.
    micro_batches: parts of a batch that are worked through one after the other
      before the update, see `gradients`.
    loss_scale: of a model in float16: `'dynamic'`, arguments of
      `loss_scale.Dynamic`, or a number; None scales nothing.
    max_read_seconds: for one record, in training and evaluation; then the
      process ends with code 1, see `watchdog.most_seconds`.
    profile: 'START:STOP', steps to trace, see `profiling`. No part of what is
      saved as the config.

  Raises:
    UserError: the config, the data or the workdir; nothing was trained.
    RunError: the loss became non-finite (see `on_nonfinite`), or a checkpoint
      could not be written.
    SystemExit: preempted (42) or interrupted (130), after saving.
  """
  config = {
    k: _plain(v) for k, v in locals().items() if k not in ('workdir', 'profile')
  }
  path = run_folder.local_folder(workdir)
  plan = plan_lib.make(config, profile=profile)
  run, total_steps = plan.run, plan.run.total_steps
  results = {}

  with contextlib.ExitStack() as stack:
    opened = session_lib.open_workdir(stack, plan, path)
    progress = opened.progress
    if not plan.evaluates_only and (opened.step or 0) >= total_steps:
      progress.log(
        f'this run is finished: step {opened.step} of {total_steps} is saved '
        f'in {path}. To go on, raise total_steps or total_epochs; to evaluate '
        'it, set total_steps to 0'
      )
      return stopping.Stopping.results(opened.meta['metrics'])
    early = stopping.Stopping(
      plan.config['stop_after'],
      plan.checkpoint.get('keep_best'),
      plan.checkpoint.get('keep_best_mode', 'max'),
      opened.meta['metrics'] if opened.meta else None,
    )
    if early.ends and not plan.evaluates_only:
      progress.log(f'this run is finished: {early}. To go on, raise stop_after')
      return stopping.Stopping.results(opened.meta['metrics'])
    session = session_lib.start(stack, plan, opened, profile)
    clock, writer, state = session.clock, session.writer, session.state

    step, pending = session.first, None
    for step in range(session.first + 1, total_steps + 1):
      with clock.waiting():
        batch = next(session.batches)
      session.trace.before(step, state)
      if step == session.first + 1:
        progress.log('compiling the training step')
        with progress.status('compiling'):
          state, metrics = run.step(state, batch)
          jax.block_until_ready(metrics)
        seconds = clock.start(step)
        progress.log(f'compiled and took the first step in {seconds:.1f} s')
      else:
        state, metrics = run.step(state, batch)
      # Step t - 1 is fetched while the devices work on step t.
      if pending is not None:
        session.finish_step(*pending)
      pending = (step, metrics)

      is_last = step == total_steps
      exit_code = session.exit_code(step)
      due, saves = plan.due(step), bool(exit_code) or plan.saves(step)
      if not (due or saves):
        continue
      session.finish_step(*pending)
      pending = None
      with clock.pause():
        if due:
          results = evaluation.evaluate(due, run, state, step, progress)
          saves |= early.improves(step, results)
          if early.ends and not is_last:
            progress.log(f'stopping early: {early}')
            is_last = saves = True
            rest = [job for job in plan.jobs if job not in due]
            results |= evaluation.evaluate(rest, run, state, step, progress)
          writer.write(step, results)
          progress.update(step, results)
          progress.log(evaluation.one_line(step, results))
        if saves:
          session.save(step, state, (results if due else {}) | early.metrics())
        if is_last:
          # Now that all is saved: a picture that fails costs no training.
          evaluation.draw(plan.pictures, run, state, step, path, writer)
      if exit_code and not is_last:
        opened.checkpointer.wait()
        progress.log(
          f'saved step {step} and stopped; the same command continues'
        )
        raise SystemExit(exit_code)
      if is_last:
        break

    if plan.evaluates_only:
      results = evaluation.evaluate(plan.jobs, run, state, step, progress)
      writer.write(step, results)
      writer.flush()
      evaluation.draw(plan.pictures, run, state, step, path, writer)
    if skipped := plan.finite.skipped_updates:
      progress.log(
        f'{skipped} of {step} updates were skipped: a loss or a gradient was '
        'not finite'
      )
    opened.checkpointer.wait()
  if jax.process_index() == 0:
    evaluation.print_results(results, f'step {step:,}')
    for name in run.input.skipped_names:
      show(f'skipped {name}')
    show(f'results, curves and checkpoints: {path}')
  return results


def build(config: Mapping[str, Any], **options) -> run_lib.Run:
  """Returns the parts of the run that `train(workdir, **config)` would be."""
  keys = inspect.signature(train).parameters
  defaults = {key: parameter.default for key, parameter in keys.items()}
  return run_lib.build(defaults | like.complete(_plain(config)), **options)


def _plain(value: Any) -> Any:
  """Returns a part of a config with dicts in place of (Frozen)ConfigDicts."""
  if isinstance(value, lookup.SECTION):
    keys = list(value)
    if isinstance(value, ml_collections.ConfigDict):
      # It iterates over sorted keys, but of evaluations the first one counts.
      as_set = json.loads(value.to_json_best_effort(sort_keys=False))
      keys.sort(key=[*as_set].index)
    return {key: _plain(value[key]) for key in keys}
  if type(value) in (list, tuple):
    return type(value)(map(_plain, value))
  return value
