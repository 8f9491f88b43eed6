"""Throughput of an input pipeline, in total and by stage.

Counted in images per CPU-second (of all threads): what an accelerator needs is
then a number of cores. Elapsed time alone would depend on this machine.
"""

import itertools
import math
import multiprocessing
import os
import pathlib
import time
from typing import Any

import numpy as np

from vit_jax.data import ops_language, pipeline
from vit_jax.parallel import host_memory


def measure(
  train_input: pipeline.TrainInput,
  ops: str,
  *,
  seconds: float = 10.0,
  num_batches: int | None = None,
) -> dict[str, Any]:
  """Returns the speed of an input, from opened source to whole batches.

  The host ops are timed one by one. Each of the two measurements takes
  `seconds`, or `num_batches` that are measured whole.

  `images_per_second` and `images_per_cpu_second` are of the batches that a run
  would get, threads, hand-over and batch assembly included, over about
  `seconds` after the first batches. `stages` is the CPU time of an image in
  microseconds: 'read' and each op in one thread by themselves, and 'batches',
  what the whole costs besides them. `peak_memory_bytes` is the most that the
  process has held, `peak_memory_growth_bytes` by how much that rose after the
  first tenth of the batches.
  """
  batches = train_input.batches()
  try:
    for _ in range(3):  # Threads start and buffers fill.
      next(batches)
    num, early_peak = 0, None
    cpu, start = cpu_seconds(), time.monotonic()
    for taken in itertools.count(1):
      num += len(next(batches)['index'])
      elapsed = time.monotonic() - start
      done = taken / num_batches if num_batches else elapsed / seconds
      if early_peak is None and done >= 0.1:
        early_peak = host_memory.peak_bytes()
      if done >= 1:
        break
    cpu = cpu_seconds() - cpu
    peak = host_memory.peak_bytes()
  finally:
    batches.close()
  stages = _stages(train_input.source, ops, seconds)
  stages['batches'] = max(0.0, 1e6 * cpu / num - sum(stages.values()))
  return dict(
    num_batches=taken,
    images_per_second=num / elapsed,
    images_per_cpu_second=num / cpu,
    busy_cores=cpu / elapsed,
    peak_memory_bytes=peak,
    peak_memory_growth_bytes=peak - early_peak,
    stages=stages,
  )


def _stages(source: Any, ops: str, seconds: float) -> dict[str, float]:
  """Returns microseconds of CPU time for an image by stage, in one thread."""
  names = [segment.text for segment in ops_language.segments(ops)]
  apply = [ops_language.parse(text, trusted=True) for text in names]
  names = [  # An op that occurs again gets its position.
    name if name not in names[:i] else f'{name} ({i + 1})'
    for i, name in enumerate(names)
  ]
  spent = np.zeros(1 + len(apply))
  end = time.monotonic() + seconds
  for num in itertools.count():
    if num >= 8 and time.monotonic() > end:
      break
    rng = np.random.default_rng(num)
    times = [time.thread_time()]
    example = source[num % len(source)]
    times.append(time.thread_time())
    for op in apply:
      example = op(example, rng)
      times.append(time.thread_time())
    spent += np.diff(times)
  means = (1e6 * spent / num).tolist()
  return dict(zip(['read', *names], means, strict=True))


def cpu_seconds() -> float:
  """Returns the CPU time of this process and its workers.

  NaN if there are workers and the system is not Linux.
  """
  total = time.process_time()
  for child in multiprocessing.active_children():
    try:
      stat = pathlib.Path(f'/proc/{child.pid}/stat').read_text()
    except OSError:
      return math.nan
    # Fields 14 and 15; the second is a name in brackets, of any characters.
    user, system = stat.rpartition(')')[2].split()[11:13]
    total += (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')
  return total
