"""Freed memory is kept where a run is on the CPU and the C library can."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import ctypes, resource
from vit_jax.parallel import host_memory

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

before = faults_of_ten_buffers()
print(before, host_memory.keep_freed_memory(), faults_of_ten_buffers())
"""


def _run(platforms):
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM],
    capture_output=True,
    text=True,
    check=True,
    env=dict(os.environ, JAX_PLATFORMS=platforms),
  )
  before, did, after = done.stdout.split()
  return int(before), did == 'True', int(after)


@pytest.mark.skipif(sys.platform != 'linux', reason='a setting of glibc')
def test_a_freed_buffer_is_used_again_without_new_pages():
  before, did, after = _run('cpu')
  if not did:
    pytest.skip('this C library has no mallopt')
  # The ten buffers share one set of pages; before, each had its own.
  assert after < 0.2 * before


def test_memory_is_left_alone_where_the_run_is_on_an_accelerator():
  before, did, after = _run('cuda,cpu')
  assert not did and after > 0.8 * before
