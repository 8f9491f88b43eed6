"""Checkpoints: written in the background, verified before they are used."""

import contextlib
import dataclasses
import errno
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from vit_jax import trees
from vit_jax.checkpoints import (
  format as checkpoint_format,
  orbax_noise,
  reader,
  resume,
)
from vit_jax.checkpoints.format import DamagedError
from vit_jax.errors import RunError, UserError

_MIN_SLICE_BYTES = 2**22
_MOST_ERRORS_OF_A_SAVE = 10
_SECONDS_FOR_WRITERS = 300.0


class Checkpointer:
  """Saves and restores the state of one run.

  With several processes all of them call every method with the same arguments,
  and the directory is one that all of them see. One run per directory: what a
  killed run left half written is removed when the next one starts.

  Args:
    directory: where the checkpoints live; made if it does not exist.
    keep_latest: how many of the newest checkpoints to keep, at least 1.
    keep_best: a metric, such as `'val/top1'`, whose best checkpoint is kept
      too; None for none.
    keep_best_mode: `'max'` or `'min'`, what is best. In a config the default
      is `'min'` for losses and errors, see `evaluation.lower_is_better`.
    keep_every_steps: also keep the checkpoints of the multiples of this.
    on_log: is given one line of text for every damaged checkpoint and the like.

  Raises:
    UserError: arguments out of range, or a directory that cannot be written.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep_latest: int = 2,
    keep_best: str | None = None,
    keep_best_mode: str = 'max',
    keep_every_steps: int | None = None,
    on_log: Callable[[str], Any] = print,
  ):
    _check_arguments(keep_latest, keep_best_mode, keep_every_steps)
    orbax_noise.silence()
    self.directory = checkpoint_format.absolute(directory)
    _check_writable(self.directory)
    self._log = on_log
    self._pending: int | None = None  # The step that is being written.
    self._ours: set[int] = set()  # Steps that we restored or saved.
    policies = [checkpoint_managers.LatestN(keep_latest)]
    if keep_every_steps is not None:
      policies.append(checkpoint_managers.EveryNSteps(keep_every_steps))
    self._best = BestCheckpoint(keep_best, 1 if keep_best_mode == 'max' else -1)
    if keep_best is not None:
      for step in checkpoint_format.steps(self.directory):
        with contextlib.suppress(DamagedError):  # `restore` reports it.
          meta = checkpoint_format.read_meta(self.directory, step)
          self._best.note(step, meta['metrics'])
      policies.append(self._best)
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=True,
      # Reads no file of old checkpoints: a damaged one would stop us here.
      lightweight_initialize=True,
    )
    self._manager = self._open()

  @property
  def latest_good(self) -> int | None:
    """The newest step that this run restored or has written completely."""
    complete = checkpoint_format.is_complete
    done = (step for step in self._ours if complete(self.directory, step))
    return max(done, default=None)

  def save(
    self,
    step: int,
    state: Any,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    logged: Mapping[str, int] | None = None,
    wait: bool = False,
  ) -> None:
    """Copies the state off the devices and writes it in the background.

    The caller may donate the state as soon as this returns. A step that is
    saved already is left alone.

    Args:
      step: number of steps taken; also the position in the data.
      config: of the run, as JSON can hold it; `restore` compares it.
      metrics: for `keep_best` and for the reader.
      logged: `MetricWriter.logged`, by which lost rows are noticed.

    Raises:
      RunError: this checkpoint, or the one before it, which was still being
        written, could not be written.
      UserError: metrics of the evaluation of `keep_best` without that metric;
        the checkpoint is being written all the same.
    """
    if step not in self._manager.all_steps():
      self.wait()
      metrics = {key: float(value) for key, value in (metrics or {}).items()}
      self._best.note(step, metrics)
      named = trees.flatten(state)
      meta = checkpoint_format.make_meta(step, named, config, metrics, logged)
      # The caller may run under a transfer guard.
      with jax.transfer_guard('allow'), self._run_error(step):
        self._manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.PyTreeSave(trees.unflatten(named)),
            meta=ocp.args.JsonSave(meta),
          ),
          force=True,  # When to save is the caller's decision.
        )
      self._pending = step
      self._ours.add(step)
      self._best.check(step, metrics)  # What was trained is saved before.
    if wait:
      self.wait()

  def restore(
    self, abstract_state: Any, *, config: Mapping[str, Any]
  ) -> tuple[Any, dict[str, Any]] | None:
    """Returns the newest good state and its meta, or None if there is none.

    Damaged checkpoints are named through `on_log` and, once a good one is
    found, moved aside to `<step>.corrupt`, so that their steps can be saved
    again.

    Args:
      abstract_state: a tree of `jax.ShapeDtypeStruct` with the shardings that
        the state should have, on any mesh; without one a leaf comes as numpy.
      config: of this run; its model section must be that of the checkpoint.

    Raises:
      UserError: the newest readable checkpoint holds another model or
        optimizer; shows the differences. Nothing is changed on disk.
      RunError: there are checkpoints but none is good, or they cannot be read
        for lack of memory or of a permission. Nothing is changed on disk.
    """
    self.wait()
    config = checkpoint_format.as_json(config)
    wanted = trees.flatten(abstract_state)
    named, damaged = None, []
    for step in checkpoint_format.steps(self.directory):
      try:
        meta = checkpoint_format.read_meta(self.directory, step)
        # Before the arrays are read: another model is not damage.
        resume.check(meta, abstract_state, config, self.directory)
        with jax.transfer_guard('allow'):
          named = reader.read_state(self.directory, meta, wanted)
        break
      except DamagedError as e:
        self._log(f'checkpoint {self.directory / str(step)} is damaged: {e}')
        damaged.append(step)
    is_empty = checkpoint_format.is_empty
    if named is None and not all(is_empty(self.directory, s) for s in damaged):
      raise RunError(
        f'none of the checkpoints in {self.directory} is good (steps '
        f'{", ".join(map(str, damaged))}; the reasons are above). Nothing was '
        'changed. To start from step 0, move that folder away'
      )
    self._move_aside(damaged)
    if named is None:
      return None
    self._ours.add(step)
    for line in resume.differences(meta['config'], config):
      self._log(f'changed since the checkpoint of step {step}: {line}')
    state = trees.map_named(lambda name, _: named[name], abstract_state)
    return state, meta

  def wait(self) -> None:
    """Returns when everything is on the disk; raises RunError if it is not."""
    if self._pending is not None:
      step, self._pending = self._pending, None
      with self._run_error(step):
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, raises what `wait` raises, and ends the background threads."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _open(self) -> ocp.CheckpointManager:
    """Returns orbax's manager of the directory."""
    types, handlers = ocp.type_handlers, ocp.handlers
    # Orbax would cut every array that several devices hold into one slice for
    # each of them, compiling a program for each slice, and write them side by
    # side. Below this size that costs more than it saves.
    arrays = types.ArrayHandler(
      min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES
    )
    # Of this manager alone: not in the registry of the process.
    registry = types.create_type_handler_registry(
      (jax.Array, arrays), (np.ndarray, types.NumpyHandler())
    )
    items = handlers.DefaultCheckpointHandlerRegistry()
    items.add(
      'state',
      ocp.args.PyTreeSave,
      ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
    )
    return ocp.CheckpointManager(
      self.directory, options=self._options, handler_registry=items
    )

  def _move_aside(self, damaged: Iterable[int]) -> None:
    for step in damaged if jax.process_index() == 0 else ():
      target, number = self.directory / f'{step}.corrupt', 1
      while target.exists():
        number += 1
        target = self.directory / f'{step}.corrupt-{number}'
      (self.directory / str(step)).rename(target)
      self._log(f'moved the damaged checkpoint to {target}')
    if damaged and jax.process_count() > 1:
      multihost_utils.sync_global_devices('vit_jax moved damaged checkpoints')
    self._manager.reload()

  def _abandon(self, step: int) -> None:
    """Waits for all writers and removes what they left half written."""
    # The first error leaves other files of the same checkpoint being written.
    # Orbax waits for some in `close`, which raises the errors one by one.
    for _ in range(_MOST_ERRORS_OF_A_SAVE):
      try:
        self._manager.close()
        break
      except Exception as e:
        logging.debug('another error in writing step %d: %s', step, e)
    orbax_noise.join_writers(_SECONDS_FOR_WRITERS)
    if jax.process_index() == 0:
      for path in self.directory.glob(f'{step}.orbax-checkpoint-tmp*'):
        shutil.rmtree(path, ignore_errors=True)
    if jax.process_count() == 1:
      self._manager = self._open()

  @contextlib.contextmanager
  def _run_error(self, step: int) -> Iterator[None]:
    """Turns whatever goes wrong in writing `step` into one clear RunError."""
    try:
      yield
    except Exception as e:
      self._abandon(step)
      found = checkpoint_format.steps(self.directory)
      good = max((s for s in found if s != step), default=None)
      advice = 'There is no earlier one'
      if good is not None:
        advice = (
          f'The checkpoint of step {good} is untouched: make room and run the '
          'same command to continue from it'
        )
      raise RunError(
        f'the checkpoint of step {step} could not be written to '
        f'{self.directory}: {_reason(e, self.directory)}. {advice}'
      ) from e


@dataclasses.dataclass
class BestCheckpoint:
  """Policy of orbax that keeps the best finite value of a metric.

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


def _check_arguments(keep_latest, keep_best_mode, keep_every_steps) -> None:
  problems = []
  if keep_latest < 1:
    problems.append(f'keep_latest={keep_latest}: expected 1 or more')
  if keep_every_steps is not None and keep_every_steps < 1:
    problems.append(f'keep_every_steps={keep_every_steps}: expected 1 or more')
  if keep_best_mode not in ('max', 'min'):
    problems.append(f"keep_best_mode={keep_best_mode!r}: expected 'max', 'min'")
  if problems:
    raise UserError('checkpoint: ' + '; '.join(problems))


def _check_writable(directory: epath.Path) -> None:
  probe = directory / f'.writable-{jax.process_index()}'
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe.write_text('')
    probe.unlink()
  except OSError as e:
    raise UserError(
      f'cannot write checkpoints to {directory}: {e.strerror or e}; give a '
      'workdir on a disk that you may write to'
    ) from e


def _reason(error: Exception, directory: epath.Path) -> str:
  for number, text in (
    (errno.ENOSPC, 'the disk is full'),
    (errno.EDQUOT, 'the quota is used up'),
  ):
    # An OSError has the text as well; tensorstore has nothing else.
    if os.strerror(number) in str(error):
      with contextlib.suppress(OSError):  # No such number for gs://.
        free = shutil.disk_usage(directory).free
        text += f' ({free / 2**20:.0f} MiB free)'
      return text
  return checkpoint_format.shorten(error)
