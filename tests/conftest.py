"""Strict and cheap: 8 fake devices, no silent broadcasting, fast compiles."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  '--xla_force_host_platform_device_count=8'
  ' --xla_backend_optimization_level=1'
  ' --xla_llvm_disable_expensive_passes=true'
)

import jax

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_threefry_partitionable', True)
