"""Options of XLA that a training step is compiled with, by its mesh."""

import jax

_V5E = 'TPU v5 lite'  # Its `device_kind`.


def for_mesh(mesh: jax.sharding.Mesh) -> dict[str, str] | None:
  """Returns what a training step should be compiled with on this mesh.

  For `jax.jit(compiler_options=)`. None for devices that are not TPUs.

  Where parameters are sharded, XLA otherwise decides for products in steps that
  send parts around a ring: 102 messages and 1.5 times the time for an S/16 on
  8 chips of v5e. v5e gathers parameters ahead of their use by default,
  the others only with the second set.
  """
  if mesh.devices.flat[0].platform != 'tpu':
    return None
  options = {}
  if mesh.shape.get('fsdp', 1) > 1:
    options |= _WHOLE_GATHERS
    if mesh.devices.flat[0].device_kind != _V5E:
      options |= _GATHERS_AHEAD
  return options


_WHOLE_GATHERS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'}
# MaxText calls them CF_FOR_ALL_GATHER.
_GATHERS_AHEAD = {
  'xla_tpu_enable_async_collective_fusion': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': 'true',
  'xla_tpu_enable_async_collective_fusion_multiple_steps': 'true',
  'xla_tpu_overlap_compute_collective_tc': 'true',
  'xla_enable_async_all_gather': 'true',
}
