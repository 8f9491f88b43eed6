"""The loop: restore, step, log, evaluate, save.

Read `train` from top to bottom; what it calls is one file each. Evaluation
alone is the same loop with `total_steps=0`.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from vit_jax import (
  checkpoint as checkpoint_lib,
  flops,
  lookup,
  preemption,
  reporting,
  run as run_lib,
  sharding as sharding_lib,
)
from vit_jax.data import pipeline
from vit_jax.errors import UserError


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
  mesh: Mapping[str, int] | None = None,
  sharding: Mapping[str, Any] | None = None,
  evals: Mapping[str, Mapping[str, Any]] | None = None,
  checkpoint: Mapping[str, Any] | None = None,
  log_every_steps: int = 50,
  pictures: Mapping[str, Mapping[str, Any]] | None = None,
  on_nonfinite: str = 'stop',
) -> dict[str, float]:
  """Runs a config to its end and returns the last evaluation's numbers.

  The keyword arguments are the top level of a config. A run that was killed
  continues from its newest good checkpoint and takes every following step with
  the same bits; a finished one says so and does nothing.

  Args:
    workdir: where checkpoints, metrics and pictures go; made if missing.
    model: name of a file in `models/` and the arguments of its `Model`.
    objective: name of a file in `objectives/` and the arguments of `Objective`.
    input: arguments of `pipeline.TrainInput` but the seed.
    optimizer: arguments of `optimizer.make`; durations also as `*_epochs`.
    total_steps: length of the run in updates; 0 only evaluates.
    total_epochs: the same in passes over the training data; give one of both.
    seed: of the weights, the order of the data and everything random in a step.
    ema: `decay` and other arguments of `train_state.ema_update`; None keeps no
      average of the weights.
    mesh: arguments of `sharding.make_mesh`; None is pure data parallelism.
    sharding: further arguments of `train_state.create`, such as rules.
    evals: for each name: `name` of a file in `evaluators/`, `every_steps` or
      `every_epochs` (the end of the run is always evaluated), `weights`
      (`'params'`, `'ema'` or both), and the evaluator's own arguments.
    checkpoint: `every_steps` or `every_epochs` and arguments of
      `checkpoint.Checkpointer`. The end of the run is always saved.
    log_every_steps: cadence of the training metrics.
    pictures: for each name: a file of `visualize/` and its arguments; drawn at
      the end of the run into `<workdir>/<name>.png`.
    on_nonfinite: `'stop'` or `'skip'`, see `train_step.make_train_step`.

  Raises:
    UserError: the config, the data or the workdir; nothing was trained.
    RunError: the loss became non-finite, or a checkpoint could not be written.
    SystemExit: preempted (42) or interrupted (130), after saving.
  """
  config = {k: v for k, v in locals().items() if k != 'workdir'}
  workdir = _make_workdir(workdir)
  run = run_lib.build(
    **{k: config[k] for k in config if k in _BUILD_KEYS},
  )
