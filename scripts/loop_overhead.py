"""Measure the overhead of the training loop: everything but the step.

    python scripts/loop_overhead.py

The step is replaced by one that does nothing and the input by a batch that is
there already; checking for signals, the transfer of the batch, fetching and
checking metrics, the progress line and the log stay. Prints microseconds.
"""

import dataclasses
import sys
import tempfile
import time
from unittest import mock

import jax
import machine
import numpy as np

from vit_jax.training import run as run_lib, train


def main() -> int:
  print(machine.describe())
  for log_every_steps in (50, 1):
    times = _times(log_every_steps)
    steps = np.diff(times)[20:] * 1e6
    print(
      f'log_every_steps={log_every_steps}: {steps.mean():.0f} us a step on '
      f'average, median {np.median(steps):.0f}, '
      f'{steps.mean() / 1e5:.2%} of a step of 100 ms'
    )
  return 0


def _times(log_every_steps: int) -> list[float]:
  """Returns when each step was called."""
  times = []
  build = run_lib.build

  def build_idle(config):
    run = build(config)
    real = next(run.input.batches())

    def batches(start_step=0):
      del start_step
      while True:
        yield real

    run.input.batches = batches
    names = ('loss', 'top1', 'grad_norm', 'learning_rate')
    metrics = {name: jax.device_put(np.float32(1)) for name in names}

    def step(state, batch):
      del batch
      times.append(time.perf_counter())
      return state, metrics

    return dataclasses.replace(run, step=step)

  with tempfile.TemporaryDirectory() as workdir:
    with mock.patch.object(run_lib, 'build', build_idle):
      train.train(workdir, **_config(log_every_steps))
  return times


def _config(log_every_steps: int) -> dict:
  return dict(
    model=dict(name='vit', variant='mu/16', num_classes=8),
    objective=dict(name='supervised'),
    input=dict(
      data=dict(name='synthetic', split='train', image_size=32, num_classes=8),
      ops='',
      device_ops='normalize(-1, 1)',
      batch_size=16,
    ),
    optimizer=dict(name='sgd', learning_rate=0.1),
    total_steps=3000,
    log_every_steps=log_every_steps,
  )


if __name__ == '__main__':
  sys.exit(main())
