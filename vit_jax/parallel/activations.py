"""Sharding of activations over the mesh, by the letters of their shape.

    x_BLF = constrain(x_BLF, 'BLF')

B goes over `data` and `fsdp`, N (heads) and F (the MLP's width) over `tensor`,
and so does L where none of them takes it and tokens are to be split; every
other dimension stays whole. Outside of `use`, where no mesh is known, and on a
mesh that splits the batch alone, it changes nothing.

Splitting tokens between the blocks is the sequence parallelism of Korthikanti
et al. (https://arxiv.org/abs/2205.05198, section 4.2.2): norms and residuals
are kept and computed once instead of once on every device along `tensor`.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

_BATCH_AXES = ('data', 'fsdp')
_TENSOR_DIMS = 'NF'

_current: contextvars.ContextVar[tuple[Mesh, bool] | None] = (
  contextvars.ContextVar('activation_sharding', default=None)
)


@contextlib.contextmanager
def use(mesh: Mesh, *, split_tokens: bool = False) -> Iterator[None]:
  """Makes `constrain` mean this mesh; to be entered while tracing.

  With `split_tokens` the axis `tensor` splits tokens where it splits no other
  dimension.
  """
  token = _current.set((mesh, split_tokens))
  try:
    yield
  finally:
    _current.reset(token)


def constrain(x: jax.Array, dims: str) -> jax.Array:
  """Returns `x`, sharded over the mesh by the letters of its dimensions."""
  assert len(dims) == x.ndim, (dims, x.shape)
  if _current.get() is None:
    return x
  mesh, split_tokens = _current.get()
  if mesh.shape['fsdp'] * mesh.shape['tensor'] == 1:
    return x
  last = 'L' if split_tokens else None
  of_tensor = next((dim for dim in dims if dim in _TENSOR_DIMS), last)
  left = _axes_left(mesh)
  axes = {'B': _axes(_BATCH_AXES, left), of_tensor: _axes(('tensor',), left)}
  spec = P(*(axes.get(dim) for dim in dims))
  inside = len(left) < len(mesh.shape)  # Of `jax.shard_map`, with its mesh.
  sharding = spec if inside else NamedSharding(mesh, spec)
  return jax.lax.with_sharding_constraint(x, sharding)


def platform() -> str | None:
  """Returns that of the mesh's devices, 'tpu' for instance, None if unknown."""
  return getattr(_device(), 'platform', None)


def is_on_cpu() -> bool:
  """Returns whether the devices, where unknown the default ones, are CPUs."""
  return (platform() or jax.default_backend()) == 'cpu'


def device_kind() -> str | None:
  """Returns that of the mesh's devices, as 'TPU v5 lite', None if unknown."""
  return getattr(_device(), 'device_kind', None)


def splits_batch_only(num_examples: int) -> bool:
  """Returns whether the mesh shards the examples and nothing else."""
  mesh, _ = _current.get()
  parts = math.prod(mesh.shape[axis] for axis in _axes_left(mesh))
  return mesh.shape['tensor'] == 1 and num_examples % parts == 0


def on_each_device(
  fn: Callable[..., Any],
  arrays: Sequence[jax.Array],
  whole: Sequence[jax.Array] = (),
) -> Any:
  """Returns `fn(*whole, *arrays)`, on each device for its own examples.

  For what the compiler cannot split, where `splits_batch_only`. Outside of
  `use` all is computed at once. Results are `[B, ...]`, like `arrays`; `whole`
  is what every device needs all of.
  """
  if _current.get() is None or _current.get()[0].size == 1:
    return fn(*whole, *arrays)
  mesh, _ = _current.get()
  left = _axes_left(mesh)
  spec = P(_axes(_BATCH_AXES, left))
  inside = len(left) < len(mesh.shape)  # The mesh is then known, and partly
  return jax.shard_map(  # split already.
    fn,
    mesh=None if inside else mesh,
    axis_names=set(left),
    in_specs=(P(),) * len(whole) + (spec,) * len(arrays),
    out_specs=spec,
    check_vma=False,
  )(*whole, *arrays)


def _device() -> jax.Device | None:
  return _current.get() and _current.get()[0].devices.flat[0]


def _axes_left(mesh: Mesh) -> list[str]:
  """Returns the axes over which `jax.shard_map` has not split arrays yet."""
  around = jax.sharding.get_abstract_mesh()
  done = () if around.empty else around.manual_axes
  return [axis for axis in mesh.axis_names if axis not in done]


def _axes(wanted: tuple[str, ...], left) -> tuple[str, ...] | None:
  return tuple(axis for axis in wanted if axis in left) or None
