"""The loop: restore, step, log, evaluate, save.

Read `train` from top to bottom; what it calls is one file each. Evaluation
alone is the same loop with `total_steps=0`.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.checkpoints import manager as checkpoint_lib, workdir_lock
from vit_jax.data import pipeline, watchdog
from vit_jax.errors import RunError
from vit_jax.parallel import distributed, mesh as mesh_lib, preemption
from vit_jax.pretrained import initialize as initialize_lib, like, run_weights
from vit_jax.printable import show
from vit_jax.reporting import (
  clock as clock_lib,
  flops,
  metrics as metrics_lib,
  profiling,
  progress as progress_lib,
)
from vit_jax.training import (
  evaluation,
  inputs,
  nonfinite,
  run as run_lib,
  settings,
  train_state,
)

_MIN_ROWS = 20  # Of metrics that a run logs, if it has as many steps.


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
  log_every_steps: int | None = 50,
  pictures: Mapping[str, Mapping[str, Any]] | None = None,
  on_nonfinite: str = 'stop',
  max_consecutive_skips: int = nonfinite.MAX_CONSECUTIVE_SKIPS,
  micro_batches: int = 1,
  max_read_seconds: float | None = 1800.0,
  profile: str | None = None,
) -> dict[str, float]:
  """Runs a config to its end and returns the last evaluation's numbers.

  The keyword arguments are the top level of a config. A run that was killed
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
    log_every_steps: cadence of the training metrics, but at least every 20th
      of `total_steps`, so that a short run has a curve; the last step is always
      logged. None logs the last step alone.
    pictures: for each name: a file of `visualize/` and its arguments; drawn at
      the end of the run into `<workdir>/<name>.png`.
    on_nonfinite: `'stop'` or `'skip'`, see `train_step.make_train_step`.
    max_consecutive_skips: with `'skip'`: the run fails after so many skipped
      updates in a row, and where no update of the whole run was applied.
    micro_batches: parts of a batch that are worked through one after the other
      before the update, see `gradients`.
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
    k: v for k, v in locals().items() if k not in ('workdir', 'profile')
  }
  workdir = metrics_lib.local_folder(workdir)
  config = like.complete(config)
  model = config['model']
  with inputs.all_problems(config):
    run = build(config)
    jobs = evaluation.make_jobs(
      evals or {}, run, model=model, has_ema=ema is not None
    )
    drawings = evaluation.make_pictures(pictures or {}, run)
  per_epoch = run.input.steps_per_epoch
  checkpoint = run_lib.in_steps(
    checkpoint or {}, per_epoch, 'config.checkpoint'
  )
  save_every_steps = checkpoint.pop('every_steps', None)
  finite = nonfinite.Check(
    on_nonfinite,
    input=run.input,
    total_steps=run.total_steps,
    max_consecutive_skips=max_consecutive_skips,
  )
  settings.check(
    run,
    jobs,
    log_every_steps=log_every_steps,
    save_every_steps=save_every_steps,
    keep_best=checkpoint.get('keep_best'),
    profile=profile,
  )
  log_every_steps = _log_cadence(log_every_steps, run.total_steps)
  evaluates_only = run.total_steps == 0

  with contextlib.ExitStack() as stack:
    progress = progress_lib.Progress(run.total_steps)
    confirm_lock = stack.enter_context(
      workdir_lock.hold(workdir, on_log=progress.log)
    )
    checkpointer = run_lib.call(
      checkpoint_lib.Checkpointer,
      checkpoint,
      'config.checkpoint',
      workdir / 'checkpoints',
      on_log=progress.log,
    )
    stack.callback(checkpointer.close)
    stack.enter_context(watchdog.most_seconds(max_read_seconds))
    progress.log(_describe(run))
    progress.log(inputs.describe(config, evaluation.num_examples(run, jobs)))
    if hint := clock_lib.precision_hint(run.mesh, model):
      progress.log(hint)
    if run.mesh.shape['fsdp'] * run.mesh.shape['tensor'] > 1:
      progress.log(str(run.sharding_report))
    restored = checkpointer.restore(run.abstract_state, config=config)
    state, first = (restored[0], restored[1]['step']) if restored else (None, 0)
    if restored and not evaluates_only and first >= run.total_steps:
      progress.log(
        f'this run is finished: step {first} of {run.total_steps} is saved in '
        f'{workdir}. To go on, raise total_steps or total_epochs; to evaluate '
        'it, set total_steps to 0'
      )
      return restored[1]['metrics']
    restored_step = first if restored else None
    writer = stack.enter_context(
      metrics_lib.MetricWriter(
        workdir,
        restored_step,
        logged=restored[1].get('logged') if restored else None,
        on_log=progress.log,
      )
    )
    if not (restored and evaluates_only):
      metrics_lib.write_config(workdir, config, restored_step)
      if jax.process_index() == 0:
        run_weights.write_class_names(workdir, run.input.class_names)
    progress.log(_start(first if restored else None, init_from))
    if state is None:
      state = _initialize(run, model['name'], init_from, progress.log)
    clock = _make_clock(run, first)
    batches = pipeline.prefetch_to_device(
      run.input.batches(first), mesh_lib.batch_sharding(run.mesh)
    )
    stack.callback(batches.close)
    stack.enter_context(progress).update(first)
    # Where nothing is trained there is nothing to save, and a signal ends it.
    watch = contextlib.nullcontext if evaluates_only else preemption.watch
    asked_to_stop = stack.enter_context(watch())
    trace = stack.enter_context(
      profiling.Trace(
        workdir / 'profile',
        profile,
        restored_step=first,
        on_log=progress.log,
      )
    )
    stack.enter_context(jax.transfer_guard('disallow'))
    stack.enter_context(distributed.exit_on_peer_failure())

    def good_step() -> int | None:
      checkpointer.wait()
      return checkpointer.latest_good

    def finish_step(step: int, metrics: dict[str, jax.Array]) -> None:
      """Fetches, checks and logs the metrics of a step."""
      metrics = {
        f'train/{key}': value for key, value in jax.device_get(metrics).items()
      }
      problem = finite.problem(step, metrics, good_step)
      is_last = step == run.total_steps
      if problem or is_last or _divides(log_every_steps, step):
        metrics['train/epoch'] = step / per_epoch
        if run.input.skipped:
          metrics['train/skipped_examples'] = run.input.skipped
        metrics |= clock.report(step)
        writer.write(step, metrics)
        eta = clock.eta_seconds(step, run.total_steps)
        progress.update(step, metrics, eta_seconds=eta)
      else:
        progress.update(step)
      if problem:
        raise RunError(problem)

    step, pending, results = first, None, {}
    for step in range(first + 1, run.total_steps + 1):
      with clock.waiting():
        batch = next(batches)
      trace.before(step, state)
      if step == first + 1:
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
        finish_step(*pending)
      pending = (step, metrics)

      is_last = step == run.total_steps
      exit_code = asked_to_stop(step)
      due = [job for job in jobs if is_last or job.is_due(step)]
      saves = bool(exit_code or is_last) or _divides(save_every_steps, step)
      if not (due or saves):
        continue
      finish_step(*pending)
      pending = None
      with clock.pause():
        if due:
          results = evaluation.evaluate(due, run, state, step, progress)
          writer.write(step, results)
          progress.update(step, results)
          progress.log(evaluation.one_line(step, results))
        if saves:
          confirm_lock()
          # First the rows: a checkpoint must never be ahead of the metrics.
          writer.flush()
          checkpointer.save(
            step,
            state,
            config=config,
            metrics=results if due else {},
            logged=writer.logged,
          )
        if is_last:
          # Now that all is saved: a picture that fails costs no training.
          evaluation.draw(drawings, run, state, step, workdir, writer)
      if exit_code and not is_last:
        checkpointer.wait()
        progress.log(
          f'saved step {step} and stopped; the same command continues'
        )
        raise SystemExit(exit_code)

    if evaluates_only:
      results = evaluation.evaluate(jobs, run, state, step, progress)
      writer.write(step, results)
      writer.flush()
      evaluation.draw(drawings, run, state, step, workdir, writer)
    if finite.skipped_updates:
      progress.log(
        f'{finite.skipped_updates} of {step} updates were skipped: a loss or a '
        'gradient was not finite'
      )
    checkpointer.wait()
  if jax.process_index() == 0:
    evaluation.print_results(results, f'step {step:,}')
    for name in run.input.skipped_names:
      show(f'skipped {name}')
    show(f'results, curves and checkpoints: {workdir}')
  return results


def build(config: Mapping[str, Any]) -> run_lib.Run:
  """Returns the parts of the run that `train(workdir, **config)` would be."""
  config = like.complete(config)
  defaults = inspect.signature(train).parameters
  keys = inspect.signature(run_lib.build).parameters
  return run_lib.build(
    **{key: config.get(key, defaults[key].default) for key in keys}
  )


def _start(
  restored_step: int | None, init_from: Sequence[Mapping[str, Any]]
) -> str:
  if restored_step is not None:
    return f'continuing from step {restored_step}'
  return f'starting from {"weights" if init_from else "scratch"}'


def _initialize(
  run: run_lib.Run,
  model_name: str,
  init_from: Sequence[Mapping[str, Any]],
  log: Callable[[str], None],
) -> train_state.TrainState:
  """Returns the state of step 0."""
  state = run.init()
  if not init_from:
    return state
  tree = initialize_lib.initialize(
    {key: getattr(state, key) for key in train_state.BRANCHES},
    init_from,
    models=run.models,
    model_name=model_name,
    on_log=log,
  )
  average = state.ema_params
  if average is not None:
    # A copy: the state is donated, and no buffer may be donated twice.
    average = jax.tree.map(jnp.copy, tree['params'])
  return state.replace(**tree, ema_params=average)


def _make_clock(run: run_lib.Run, step: int) -> clock_lib.Clock:
  flops_per_step, peak = None, flops.peak_flops(run.mesh.devices.flat[0])
  if peak is not None:
    flops_per_step = run.flops_per_step()
    peak *= run.mesh.size
  return clock_lib.Clock(
    run.input.batch_size,
    step=step,
    flops_per_step=flops_per_step,
    peak_flops=peak,
  )


def _describe(run: run_lib.Run) -> str:
  """Returns what a user wants to see before the first step."""
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


def _log_cadence(log_every_steps: int | None, total_steps: int) -> int | None:
  """Returns the cadence that gives a short run `_MIN_ROWS` rows as well.

  It depends on the config alone, so a run that continues logs the same steps.
  """
  if log_every_steps is None:
    return None
  return min(log_every_steps, max(1, total_steps // _MIN_ROWS))


def _divides(every_steps: int | None, step: int) -> bool:
  return bool(every_steps) and step % every_steps == 0
