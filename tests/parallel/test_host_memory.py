"""Freed memory is kept where the C library can be told to."""

import subprocess
import sys

import pytest

_PROGRAM = """
import ctypes, resource
from vit_jax import host_memory

def faults_of_ten_buffers():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  libc = ctypes.CDLL(None)
  libc.malloc.restype = ctypes.c_void_p
  libc.free.argtypes = [ctypes.c_void_p]
  for _ in range(10):
    buffer = libc.malloc(ctypes.c_size_t(64 * 2**20))
    ctypes.memset(buffer, 1, 64 * 2**20)
    libc.free(buffer)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults_of_ten_buffers(), host_memory.keep(), faults_of_ten_buffers())
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is told')
def test_a_freed_buffer_is_used_again_without_new_pages():
  out = subprocess.run(
    [sys.executable, '-c', _PROGRAM], capture_output=True, text=True, check=True
  ).stdout.split()
  if out[1] == 'False':
    pytest.skip('this C library has no mallopt')
  # The ten buffers share one set of pages; before, each had its own.
  assert int(out[2]) < 0.2 * int(out[0])
