"""Ahead-of-time compilation of a training step for a TPU topology."""

import contextlib
import dataclasses
import glob
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vit_jax.compiler import cycles, topology as topology_lib
from vit_jax.data import dummy_input
from vit_jax.reporting import flops
from vit_jax.training import run as run_lib, train


@dataclasses.dataclass(frozen=True)
class Result:
  """The compiler's figures for a training step. Bytes are of one jax device."""

  num_params: int
  mesh: dict[str, int]
  batch_size: int  # Global.
  images_per_chip: float
  compile_seconds: float
  hbm_bytes: int  # That the device has.
  # The most in use at once; if that does not fit, the bytes asked for, None if
  # the compiler does not say how many.
  peak_memory_bytes: int | None
  argument_bytes: int | None = None  # State and batch.
  temporary_bytes: int | None = None  # Everything else.
  out_of_memory: bool = False  # The compiler refused.
  # Estimates, not bounds, by phase and in all; none if it does not fit.
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  images_per_second_per_chip: float | None = None
  mfu: float | None = None
  estimate: cycles.Estimate | None = None

  @property
  def step_seconds(self) -> float | None:
    return sum(self.seconds.values()) if self.seconds else None


def compile_step(
  config: Mapping[str, Any],
  topology: topology_lib.Topology,
  devices: Sequence[jax.Device],
  *,
  schedules: str | None = None,
  image_size: tuple[int, int] | None = None,
  hlo: str | None = None,
) -> Result:
  """Compiles the step that `train.train(workdir, **config)` would run.

  The data of the config is not read: synthetic images replace it, of the size
  that the config's ops make them.

  Args:
    schedules: a folder into which libtpu writes schedules, see
      `topology.schedules`. It is emptied. Without it, kernels written by hand
      have no time, and neither has a step that uses them.
    image_size: of the images before the ops, where those leave it open.

  Raises:
    UserError: a config that cannot be run on these devices.
  """
  run = _build(config, devices, image_size)
  params = jax.tree.leaves(run.abstract_state.params)
  common = dict(
    num_params=sum(math.prod(x.shape) for x in params),
    mesh=dict(run.mesh.shape),
    batch_size=run.input.batch_size,
    images_per_chip=run.input.batch_size / topology.num_chips,
    hbm_bytes=topology.generation.hbm_bytes,
  )
  if schedules is not None:
    _empty(schedules)
  start = time.monotonic()
  traced = run.step.trace(run.abstract_state, run.batch_spec)
  lowered = traced.lower(lowering_platforms=('tpu',))
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    return Result(
      **common,
      compile_seconds=time.monotonic() - start,
      peak_memory_bytes=_asked_for(str(e)),
      out_of_memory=True,
    )
  common['compile_seconds'] = time.monotonic() - start
  text = compiled.as_text()
  if hlo is not None:
    with open(hlo, 'w') as f:
      f.write(text)
  memory = compiled.memory_analysis()
  estimate = cycles.read(
    text,
    dict(run.mesh.shape),
    grids=flops.kernel_grids(traced.jaxpr.jaxpr),
    schedules=schedules,
  )
  return Result(
    **common,
    peak_memory_bytes=memory.peak_memory_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    estimate=estimate,
    **_speed(run, estimate, topology),
  )


def _speed(
  run: run_lib.Run, estimate: cycles.Estimate, topology: topology_lib.Topology
) -> dict[str, Any]:
  """Returns the fields of `Result` about the speed of a step."""
  generation, devices = topology.generation, run.mesh.devices.flat
  seconds = estimate.seconds(
    generation.clock_hz, generation.hbm_bytes_per_second
  )
  total = sum(seconds.values())
  peak = flops.peak_flops(devices[0]) * run.mesh.size
  return dict(
    seconds=seconds,
    images_per_second_per_chip=run.input.batch_size
    / topology.num_chips
    / total,
    mfu=run.flops_per_step() / (total * peak),
  )


def _build(config, devices, image_size) -> run_lib.Run:
  """Returns the run of a config on devices that need not exist."""
  section = dummy_input.input_section(
    config['input'], config['model'].get('num_classes'), image_size
  )
  mesh = dict(config.get('mesh') or {}, devices=devices)
  return train.build({**config, 'input': section, 'mesh': mesh})


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


def _empty(directory: str) -> None:
  for file in glob.glob(os.path.join(glob.escape(directory), '*')):
    with contextlib.suppress(OSError):
      os.remove(file)
