"""The device mesh, and the sharding of the batch over it.

The axes are `data`, `fsdp` and `tensor`. The batch is sharded over `data` and
`fsdp`; parameters and optimizer state by `rules`, activations by `activations`.
"""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from vit_jax.errors import DevicesError, UserError

AXES = ('data', 'fsdp', 'tensor')


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  slices: int | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh with the axes `data`, `fsdp` and `tensor`.

  Args:
    data: copies of the state, each with its own part of the batch.
    fsdp: shards of the state, each with its part of the batch.
    tensor: shards of attention heads and MLPs.
    slices: groups of devices with a slow network between them, which only
      `data` crosses: each slice holds whole copies of the state. None is the
      slices that TPUs say they are of, and 1 for other devices. Where devices
      are of no slice, each process is one.
    devices: all devices of all processes unless given.

  One size may be -1: what the others leave of the devices. The axes are Auto,
  that is, the compiler propagates shardings.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or `data`
      does not divide over the slices.
  """
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  devices = jax.devices() if devices is None else list(devices)
  count = len(devices)
  given = ', '.join(f'{axis}={size}' for axis, size in sizes.items())
  free = [axis for axis, size in sizes.items() if size == -1]
  whole = [a for a, n in sizes.items() if isinstance(n, int) and n >= 1]
  wrong = [axis for axis in sizes if axis not in free + whole]
  if wrong or len(free) > 1:
    raise UserError(
      f'mesh {given}: a size is a whole number from 1 up, or -1 (what the '
      f'others leave) for one axis; wrong: {", ".join(wrong or free)}'
    )
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free and count % fixed == 0:
    sizes[free[0]] = count // fixed
  if math.prod(sizes.values()) != count:
    raise DevicesError(
      f'mesh {given} does not fit {count} devices: the sizes must multiply to '
      f'{count}, or with one of them -1 the others must divide {count}'
    )
  shape = tuple(sizes.values())
  if slices is None:
    slices = len({getattr(d, 'slice_index', 0) for d in devices})
    slices = slices if devices[0].platform == 'tpu' else 1
  if slices == 1:
    # Splits an axis of the torus only where nothing else fits.
    placed = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    placed = _hybrid(shape, slices, devices, given)
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _hybrid(shape, slices, devices, given: str):
  """Returns the devices `[data, fsdp, tensor]`, slice after slice."""
  by_process = len({getattr(d, 'slice_index', 0) for d in devices}) == 1
  key = 'process_index' if by_process else 'slice_index'
  groups = len({getattr(device, key) for device in devices})
  data, fsdp, tensor = shape
  if not isinstance(slices, int) or slices < 1 or groups != slices:
    raise UserError(
      f'mesh {given}: slices={slices!r}, but the devices are of {groups} '
      f'{"processes" if by_process else "slices"}'
    )
  if data % slices:
    raise UserError(
      f'mesh {given}: {slices} slices need a multiple of them for data, got '
      f'{data}: fsdp and tensor stay within a slice'
    )
  return mesh_utils.create_hybrid_device_mesh(
    (data // slices, fsdp, tensor),
    (slices, 1, 1),
    devices,
    process_is_granule=by_process,
    allow_split_physical_axes=True,
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of `[B, ...]` arrays: rows over `data` and `fsdp`."""
  return NamedSharding(mesh, P(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, P())


def padded(num_rows: int, mesh: Mesh) -> int:
  """Returns the next multiple of the devices that share a batch."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  return math.ceil(num_rows / parts) * parts


def check_batch_size(
  batch_size: int, mesh: Mesh, *, micro_batches: int = 1
) -> None:
  """Raises UserError unless the rows of a batch divide over the mesh."""
  data, fsdp = mesh.shape['data'], mesh.shape['fsdp']
  parts = data * fsdp * micro_batches
  micro = f' x micro_batches={micro_batches}' if micro_batches > 1 else ''
  if batch_size >= 1 and batch_size % parts == 0:
    return
  below = batch_size // parts * parts
  sizes = f'{below} or {below + parts}' if below > 0 else f'{parts}'
  raise UserError(
    f'batch_size={batch_size} does not divide over the {parts} parts of the '
    f'batch (mesh data={data} x fsdp={fsdp}{micro} on {mesh.size} devices): '
    f'use {sizes}, or another mesh'
  )
