"""TPU topologies for the compiler: chips, memory, clocks, options.

Nothing here needs a TPU. `devices('v5e-256')` are the chips of a slice that can
be compiled for but not computed on; that takes libtpu, TPU's compiler, which is
the extra `aot`.
"""

import atexit
import dataclasses
import functools
import importlib.util
import math
import os
import re
import tempfile

import jax

from vit_jax.errors import UserError

# Keeps libtpu from searching for a TPU, from complaining that it finds none and
# from refusing to be loaded by two processes at once.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Generation:
  """A kind of TPU; sizes and speeds are those of one jax device.

  A jax device is a chip (v4, v5e, v5p, v6e) or one of a chip's two cores.

  Attributes:
    platform: libtpu's name.
    kind: `device_kind` of a jax device.
    cores_per_name: what the number in a topology's name counts per chip: the
      512 of v5p-512 are cores, the 256 of v5e-256 are chips.
    dims: of the network, 2 or 3.
    devices_per_chip: jax devices of a chip.
    hbm_bytes: memory.
    hbm_bytes_per_second: speed of the memory.
    clock_hz: cycles per second, `peak_flops` over the operations of a cycle.
  """

  platform: str
  kind: str
  cores_per_name: int
  dims: int
  devices_per_chip: int
  hbm_bytes: int
  hbm_bytes_per_second: float
  clock_hz: float


_GIB = 2**30
# Memory and its speed: docs.cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,
# tpu7x}, half of a chip's where a device is half a chip. Clocks follow from the
# peak (see `flops`) and 128 x 128 multiply-adds in each of 2 (v3), 4 (v4, v5)
# matrix units a core, 256 x 256 in each of 4 (v6e, tpu7x).
GENERATIONS = {
  'v3': Generation('v3', 'TPU v3', 2, 2, 2, 16 * _GIB, 450e9, 0.94e9),
  'v4': Generation('v4', 'TPU v4', 2, 3, 1, 32 * _GIB, 1.2e12, 1.05e9),
  'v5e': Generation('v5e', 'TPU v5 lite', 1, 2, 1, 16 * _GIB, 819e9, 1.5e9),
  'v5p': Generation('v5', 'TPU v5', 2, 3, 1, 95 * _GIB, 2.765e12, 1.75e9),
  'v6e': Generation('v6e', 'TPU v6 lite', 1, 2, 1, 32 * _GIB, 1.64e12, 1.75e9),
  'tpu7x': Generation('tpu7x', 'TPU7x', 2, 3, 2, 96 * _GIB, 3.69e12, 2.2e9),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of a generation: its chips' grid, and how many slices."""

  name: str
  generation: Generation
  grid: tuple[int, ...]
  num_slices: int = 1

  @property
  def num_chips(self) -> int:
    return math.prod(self.grid) * self.num_slices


def topology(name: str, num_slices: int = 1) -> Topology:
  """Returns the topology of a name such as 'v5e-256', 'v5p-512', 'v4:2x2x4'.

  The number is the one in the names of Cloud TPU: chips for v5e and v6e, cores,
  two to a chip, for the others. A colon is followed by the grid of chips.

  Raises:
    UserError: no such generation or size.
  """
  match = re.fullmatch(r'(\w+?)(?:-(\d+)|:(\d+(?:x\d+)+))', name)
  found = GENERATIONS.get(match[1]) if match else None
  if found is None or num_slices < 1:
    raise UserError(
      f'topology {name!r} x {num_slices}: expected <generation>-<size> as in '
      "'v5e-256' or <generation>:<grid> as in 'v5e:16x16', one or more of "
      f'them; the generations are {", ".join(GENERATIONS)}'
    )
  if match[3]:
    grid = tuple(map(int, match[3].split('x')))
    grid += (1,) * (found.dims - len(grid))
  else:
    grid = _grid(int(match[2]) / found.cores_per_name, found.dims)
  if grid is None or len(grid) != found.dims:
    raise UserError(
      f'topology {name!r}: a slice of {match[1]} has a power of two of chips '
      f'in {found.dims} dimensions; give the grid for others, as in '
      f"'{match[1]}:{'x'.join(['4'] * found.dims)}'"
    )
  return Topology(name, found, grid, num_slices)


def devices(slices: Topology) -> list[jax.Device]:
  """Returns devices that programs can be compiled for.

  Raises:
    UserError: libtpu is not installed, or knows no such topology.
  """
  if 'TPU_LIBRARY_PATH' not in os.environ:
    if importlib.util.find_spec('libtpu') is None:
      raise UserError(
        'compiling for a TPU needs libtpu, but no TPU: '
        "pip install 'vit_jax[aot]' (Linux on x86)"
      )
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  from jax.experimental import topologies

  generation, grid = slices.generation, slices.grid
  # On v4 and v5p the two cores of a chip are one device.
  megacore = generation.devices_per_chip == 1 and generation.dims == 3
  shape = 'x'.join(map(str, grid))
  try:
    description = topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{generation.platform}:{shape}',
      num_slices=slices.num_slices,
      chip_config_name='megacore' if megacore else 'default',
      chips_per_host_bounds=tuple(min(2, side) for side in grid[:2]) + (1,),
      wrap=_wrap(generation, grid),
    )
  except Exception as e:
    raise UserError(
      f'libtpu knows no {slices.name} ({shape} chips): {e}'
    ) from e
  return list(description.devices)


@functools.cache
def schedules() -> str:
  """Returns a folder into which libtpu writes its schedules of kernels.

  To be called before the first `devices`: libtpu reads once where to write. The
  folder is deleted when the process ends.
  """
  directory = tempfile.TemporaryDirectory(prefix='vit_jax_schedules_')
  atexit.register(directory.cleanup)
  os.environ['LIBTPU_INIT_ARGS'] = (
    f'{os.environ.get("LIBTPU_INIT_ARGS", "")} '
    f'--xla_jf_dump_to={directory.name} --xla_jf_dump_llo_text=true '
    '--xla_jf_dump_llo_pass_label_regex=final_bundles'
  ).strip()
  return directory.name


def _grid(num_chips: float, dims: int) -> tuple[int, ...] | None:
  """Returns the grid of Cloud TPU: powers of two, as equal as can be."""
  exponent = math.log2(num_chips) if num_chips > 0 else 0.5
  if exponent != int(exponent):
    return None
  if num_chips == 4:  # One host.
    return (2, 2) + (1,) * (dims - 2)
  sides = [(int(exponent) + i) // dims for i in range(dims)]
  return tuple(2**side for side in sides)


def _wrap(generation: Generation, grid: tuple[int, ...]) -> tuple[bool, ...]:
  """Returns for each of three dimensions whether it is a ring."""
  if generation.dims == 3:
    return (all(side % 4 == 0 for side in grid),) * 3
  return *(side == 16 for side in grid), False
