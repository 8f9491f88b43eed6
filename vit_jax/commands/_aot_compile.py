"""Ahead-of-time compilation of a training step for a TPU topology."""

import contextlib
import dataclasses
import math
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from vit_jax.compiler import cycles, topology as topology_lib
from vit_jax.data import dummy_input
from vit_jax.reporting import flops
from vit_jax.training import run as run_lib, train

_UNKNOWN = dict.fromkeys(
  (
    'peak_memory_bytes',
    'argument_bytes',
    'temporary_bytes',
    'step_seconds',
    'images_per_second_per_chip',
    'mfu',
  )
) | dict(
  seconds={},
  collectives=(),
  kernels=(),
  unknown_loops=0,
  products_without_time=0,
)


def compile_step(
  config: Mapping[str, Any],
  topology: topology_lib.Topology,
  *,
  schedules: str | None = None,
  image_size: tuple[int, int] | None = None,
  hlo: str | None = None,
) -> dict[str, Any]:
  """Compiles the step that `train.train(workdir, **config)` would run.

  The data of the config is not read: synthetic images replace it, of the size
  that the config's ops make them.

  Args:
    schedules: a folder into which libtpu writes schedules, see
      `topology.schedules`. It is emptied. Without it, kernels written by hand
      have no time, and neither has a step that uses them.
    image_size: of the images before the ops, where those leave it open.
    hlo: a file for the compiled program, as text.

  Returns:
    The compiler's figures. Bytes are of one jax device, `batch_size` is global.
    `peak_memory_bytes` is the most in use at once or, if that does not fit
    (`out_of_memory`), what was asked for. Times are estimates, not bounds. None
    is an unknown number: times of a step that does not fit or that has a kernel
    without a schedule.

  Raises:
    UserError: a config that cannot be run on these devices.
  """
  section = dummy_input.input_section(
    config['input'], config['model'].get('num_classes'), image_size
  )
  # They need not exist.
  devices = topology_lib.devices(topology)
  mesh = dict(config.get('mesh') or {}, devices=devices)
  run = train.build({**config, 'input': section, 'mesh': mesh})
  found = dict(
    topology=topology.name,
    num_slices=topology.num_slices,
    num_chips=topology.num_chips,
    num_params=sum(x.size for x in jax.tree.leaves(run.abstract_state.params)),
    mesh=dict(run.mesh.shape),
    batch_size=run.input.batch_size,
    images_per_chip=run.input.batch_size / topology.num_chips,
    hbm_bytes=topology.generation.hbm_bytes,
    out_of_memory=False,
    **_UNKNOWN,
  )
  for file in pathlib.Path(schedules).glob('*') if schedules else ():
    with contextlib.suppress(OSError):
      file.unlink()
  start = time.monotonic()
  traced = run.step.trace(run.abstract_state, run.batch_spec)
  lowered = traced.lower(lowering_platforms=('tpu',))
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    found |= dict(out_of_memory=True, peak_memory_bytes=_asked_for(str(e)))
    return found | dict(compile_seconds=time.monotonic() - start)
  found['compile_seconds'] = time.monotonic() - start
  text = compiled.as_text()
  if hlo is not None:
    pathlib.Path(hlo).write_text(text)
  estimate = cycles.read(
    text,
    dict(run.mesh.shape),
    grids=flops.kernel_grids(traced.jaxpr.jaxpr),
    schedules=schedules,
  )
  memory = compiled.memory_analysis()
  return found | dict(
    peak_memory_bytes=memory.peak_memory_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,  # State and batch.
    temporary_bytes=memory.temp_size_in_bytes,  # Everything else.
    **_speed(run, estimate, topology),
  )


def _speed(
  run: run_lib.Run, estimate: cycles.Estimate, topology: topology_lib.Topology
) -> dict[str, Any]:
  generation = topology.generation
  seconds = estimate.seconds(
    generation.clock_hz, generation.hbm_bytes_per_second
  )
  all_products, timed = estimate.products
  found = dict(
    seconds={k: None if math.isnan(x) else x for k, x in seconds.items()},
    collectives=[dataclasses.asdict(x) for x in estimate.collectives],
    kernels=[dataclasses.asdict(x) for x in estimate.kernels],
    unknown_loops=estimate.unknown_loops,
    products_without_time=all_products - timed,
  )
  total = sum(seconds.values())
  if math.isnan(total):
    return found
  peak = flops.peak_flops(run.mesh.devices.flat[0]) * run.mesh.size
  return found | dict(
    step_seconds=total,
    images_per_second_per_chip=run.input.batch_size
    / topology.num_chips
    / total,
    mfu=run.flops_per_step() / (total * peak),
  )


def _asked_for(message: str) -> int | None:
  """Returns the bytes that a program would have used, as the compiler says."""
  units = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
  for pattern in (
    r'Used ([\d.]+)([KMGT]?) of',
    r'\(([\d.]+)([KMGT]?)\) exceeds available HBM',
    r'([\d.]+)([KMGT])\w* .{0,40}exceed',
  ):
    match = re.search(pattern, message)
    if match:
      return round(float(match[1]) * units[match[2]])
  return None
