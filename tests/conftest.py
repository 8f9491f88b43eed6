"""Strict and cheap: 8 fake devices, no silent broadcasting, fast compiles."""

import os
import pathlib
import sys
import tempfile

# Many tests, and the processes that they start, compile the same programs.
_CACHE = tempfile.TemporaryDirectory(prefix='vit_jax_tests_')
os.environ |= {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': (
    '--xla_force_host_platform_device_count=8'
    ' --xla_backend_optimization_level=1'
    ' --xla_llvm_disable_expensive_passes=true'
  ),
  'JAX_COMPILATION_CACHE_DIR': _CACHE.name,
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
# Eight devices whose LAPACK calls each start threads are 200 times slower.
os.environ['OPENBLAS_NUM_THREADS'] = '1'

import jax

jax.config.update('jax_numpy_rank_promotion', 'raise')

# Models that parity is measured with; timm's and some of transformers' need
# torchvision, where it is installed, to import.
sys.path.append(str(pathlib.Path(__file__).parents[1] / 'scripts'))

import mend_torchvision  # noqa: E402

mend_torchvision.mend()
