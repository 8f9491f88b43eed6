"""Counts of the input benchmark."""

import pathlib
import sys
import time

import pytest

from vit_jax.data import pipeline, throughput
from vit_jax.parallel import host_memory


def measure(ops, num_batches=None, num_workers=0, **data):
  data = dict(name='synthetic_jpegs', split='train', image_size=(24, 32)) | data
  train_input = pipeline.TrainInput(
    data=data,
    ops=ops,
    batch_size=4,
    seed=0,
    num_threads=2,
    num_workers=num_workers,
  )
  return throughput.measure(
    train_input, ops, seconds=0.3, num_batches=num_batches
  )


def test_stages_add_up_to_the_cpu_time_of_an_image():
  result = measure('decode|resize(8)|flip_lr|flip_lr')
  assert list(result['stages']) == [
    'read',
    'decode',
    'resize(8)',
    'flip_lr',
    'flip_lr (4)',
    'batches',
  ]
  # 'batches' is the rest, unless the stages alone took longer by chance.
  total = sum(result['stages'].values())
  assert total >= 0.99e6 / result['images_per_cpu_second']
  assert result['busy_cores'] == pytest.approx(
    result['images_per_second'] / result['images_per_cpu_second']
  )


def test_the_time_of_worker_processes_counts(monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2])
  result = measure(
    f'decode|resize(8)|{__name__}.spin()', num_batches=50, num_workers=1
  )
  # Each image spins for 10 ms of a CPU. Some of them were ready before.
  assert 20 < result['images_per_cpu_second'] < 150


def test_memory_is_looked_at_after_a_tenth_and_at_the_end(monkeypatch):
  taken = []

  def count(*_, **__):
    def op(example, rng):
      taken.append(1)
      return example

    return op

  def peak_bytes():
    peaks.append(len(taken) * 1000)
    return peaks[-1]

  peaks = []
  monkeypatch.setattr(host_memory, 'peak_bytes', peak_bytes)
  monkeypatch.setattr(sys.modules[__name__], 'count', count, raising=False)
  result = measure(f'decode|resize(8)|{__name__}.count()', num_batches=40)
  assert result['num_batches'] == 40
  first, last = peaks
  # Three batches come before, and what is read ahead.
  assert 7 * 4 <= first / 1000 < 40 * 4 < last / 1000
  assert result['peak_memory_bytes'] == last
  assert result['peak_memory_growth_bytes'] == last - first


def wait(**_):
  def op(example, rng):
    time.sleep(0.01)
    return example

  return op


def spin(**_):
  def op(example, rng):
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
      pass
    return example

  return op


def test_an_op_that_computes_costs_and_one_that_waits_does_not():
  name = f'{__name__}.spin()'
  result = measure(f'decode|resize(8)|{name}|{__name__}.wait()')
  stages = result['stages']
  assert stages[name] == pytest.approx(10_000, rel=0.3)
  assert stages[f'{__name__}.wait()'] < 2_000
