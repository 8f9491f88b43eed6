"""The session of a run: files, data, signals and clock of one process."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import lookup
from vit_jax.checkpoints import manager, workdir_lock
from vit_jax.data import pipeline, watchdog
from vit_jax.errors import RunError
from vit_jax.optim import chain
from vit_jax.parallel import distributed, mesh as mesh_lib, preemption
from vit_jax.pretrained import initialize as initialize_lib
from vit_jax.pretrained.formats.run import write_class_names
from vit_jax.reporting import (
  clock as clock_lib,
  flops,
  metrics as metrics_lib,
  profiling,
  progress as progress_lib,
  run_folder,
  run_loggers,
)
from vit_jax.training import plan as plan_lib, run as run_lib, train_state


@dataclasses.dataclass(frozen=True)
class Workdir:
  """The locked folder of a run and what was restored from it."""

  path: pathlib.Path
  progress: progress_lib.Progress
  checkpointer: manager.Checkpointer
  confirm_lock: Callable[[], None]
  state: train_state.TrainState | None
  meta: dict[str, Any] | None  # Of the checkpoint; None where there is none.

  @property
  def step(self) -> int | None:
    """Number of steps that the restored state has taken."""
    return self.meta['step'] if self.meta else None


@dataclasses.dataclass(frozen=True)
class Session:
  """A run in its workdir, at the step that it starts or continues from."""

  plan: plan_lib.Plan
  workdir: Workdir
  writer: metrics_lib.MetricWriter
  state: train_state.TrainState  # The first step donates it.
  first: int  # How many steps it has taken.
  batches: Iterator[dict[str, jax.Array]]
  clock: clock_lib.Clock
  trace: profiling.Trace
  exit_code: Callable[[int], int | None]  # After a step; of a signal.

  def finish_step(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Fetches, checks and logs the metrics of a step.

    Raises:
      RunError: they end the run, see `nonfinite`.
    """
    plan, run = self.plan, self.plan.run
    metrics = {
      f'train/{key}': value for key, value in jax.device_get(metrics).items()
    }
    problem = plan.finite.problem(step, metrics, self._good_step)
    if problem or plan.logs(step):
      metrics['train/epoch'] = step / run.input.steps_per_epoch
      if run.input.skipped:
        metrics['train/skipped_examples'] = run.input.skipped
      metrics |= self.clock.report(step)
      self.writer.write(step, metrics)
      eta = self.clock.eta_seconds(step, run.total_steps)
      self.workdir.progress.update(step, metrics, eta_seconds=eta)
    else:
      self.workdir.progress.update(step)
    if problem:
      raise RunError(problem)

  def save(
    self, step: int, state: train_state.TrainState, results: Mapping[str, float]
  ) -> None:
    """Saves the state in the background, with the results of its evaluation."""
    self.workdir.confirm_lock()
    # First the rows: a checkpoint must never be ahead of the metrics.
    self.writer.flush()
    self.workdir.checkpointer.save(
      step,
      state,
      config=self.plan.config,
      metrics=results,
      logged=self.writer.logged,
    )

  def _good_step(self) -> int | None:
    self.workdir.checkpointer.wait()
    return self.workdir.checkpointer.latest_good


def open_workdir(
  stack: contextlib.ExitStack, plan: plan_lib.Plan, path: pathlib.Path
) -> Workdir:
  """Locks the workdir, describes the run and restores its newest checkpoint."""
  progress = progress_lib.Progress(plan.run.total_steps)
  confirm_lock = stack.enter_context(
    workdir_lock.hold(path, on_log=progress.log)
  )
  checkpointer = lookup.call(
    manager.Checkpointer,
    plan.checkpoint,
    'config.checkpoint',
    path / 'checkpoints',
    on_log=progress.log,
  )
  stack.callback(checkpointer.close)
  stack.enter_context(watchdog.most_seconds(plan.config['max_read_seconds']))
  plan.log(progress.log)
  restored = checkpointer.restore(plan.run.abstract_state, config=plan.config)
  state, meta = restored or (None, None)
  return Workdir(path, progress, checkpointer, confirm_lock, state, meta)


def start(
  stack: contextlib.ExitStack,
  plan: plan_lib.Plan,
  workdir: Workdir,
  profile: str | None,
) -> Session:
  """Opens metrics, data and signals; initializes a state unless restored."""
  run, config, log = plan.run, plan.config, workdir.progress.log
  step = workdir.step
  loggers = run_loggers.Loggers(
    config['loggers'],
    workdir.path,
    config=config,
    restored_step=step,
    on_log=log,
  )
  writer = stack.enter_context(
    metrics_lib.MetricWriter(
      workdir.path,
      step,
      logged=workdir.meta.get('logged') if workdir.meta else None,
      loggers=loggers,
      on_log=log,
    )
  )
  if step is None or not plan.evaluates_only:
    run_folder.write_config(workdir.path, config, step)
    if jax.process_index() == 0:
      write_class_names(workdir.path, run.input.class_names)
  if step is not None:
    log(f'continuing from step {step}')
    state = workdir.state
  else:
    log(f'starting from {"weights" if config["init_from"] else "scratch"}')
    state = initialize(run, config, log)
    warning = chain.zero_start_warning(
      state.params, config['optimizer'], getattr(run.model, 'ROLES', None)
    )
    if warning and not plan.evaluates_only:
      log(warning)
  first = step or 0
  peak = flops.peak_flops(run.mesh.devices.flat[0])
  clock = make_clock(run, first, peak_flops=peak)
  batches = pipeline.prefetch_to_device(
    run.input.batches(first), mesh_lib.batch_sharding(run.mesh)
  )
  stack.callback(batches.close)
  stack.enter_context(workdir.progress).update(first)
  # Where nothing is trained there is nothing to save, and a signal ends it.
  watch = contextlib.nullcontext if plan.evaluates_only else preemption.watch
  exit_code = stack.enter_context(watch())
  trace = stack.enter_context(
    profiling.Trace(
      workdir.path / 'profile', profile, restored_step=first, on_log=log
    )
  )
  stack.enter_context(jax.transfer_guard('disallow'))
  stack.enter_context(distributed.exit_on_peer_failure())
  return Session(
    plan, workdir, writer, state, first, batches, clock, trace, exit_code
  )


def make_clock(
  run: run_lib.Run, step: int, *, peak_flops: float | None
) -> clock_lib.Clock:
  """Returns the clock of a run, which reports MFU where the peak is known."""
  known = peak_flops is not None
  return clock_lib.Clock(
    run.input.batch_size,
    step=step,
    flops_per_step=run.flops_per_step() if known else None,
    peak_flops=peak_flops * run.mesh.size if known else None,
  )


def initialize(
  run: run_lib.Run, config: Mapping[str, Any], log: Callable[[str], None]
) -> train_state.TrainState:
  """Returns the state of step 0: fresh, then filled by `init_from`."""
  state, init_from = run.init(), config['init_from']
  tree = initialize_lib.initialize(
    {key: getattr(state, key) for key in train_state.BRANCHES},
    init_from,
    models=run.models,
    model_name=config['model']['name'],
    on_log=log,
  )
  filled = [entry.get('into', 'params') for entry in init_from]
  for name in state.frozen:
    places = ('frozen', f'frozen/{name}')
    if not any(x in places or x.startswith(f'{places[1]}/') for x in filled):
      log(
        f'frozen/{name} keeps its random values: config.init_from has nothing'
        ' for it'
      )
  average = state.ema_params
  if average is not None and init_from:
    # A copy: the state is donated, and no buffer may be donated twice.
    average = jax.tree.map(jnp.copy, tree['params'])
  return state.replace(**tree, ema_params=average)
