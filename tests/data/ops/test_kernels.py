"""The Numba kernels where Numba is absent or broken."""

import subprocess
import sys
import textwrap


def _in_a_fresh_process(program: str) -> subprocess.CompletedProcess:
  """Runs `program`; the threads of other tests may be resizing in this one."""
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program)],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )


def test_without_numba_there_are_no_kernels_in_any_thread():
  done = _in_a_fresh_process("""
    import sys
    from concurrent import futures
    from vit_jax.data.ops import resize
    sys.modules['numba'] = None
    with futures.ThreadPoolExecutor(16) as pool:
      print(set(pool.map(lambda _: resize.kernels(), range(16))))
  """)
  assert done.stdout == '{None}\n'
  assert not done.stderr


def test_a_numba_that_does_not_work_is_reported_once_and_left_out():
  done = _in_a_fresh_process("""
    import importlib.machinery, sys, threading, types
    from concurrent import futures
    from vit_jax.data.ops import resize

    together = threading.Barrier(16)

    class Numba(types.ModuleType):
      def __getattr__(self, name):
        threading.Event().wait(0.1)  # The other threads wait for the import.
        raise AttributeError(f'no {name} for this NumPy')

    def kernels(_):
      together.wait()
      return resize.kernels()

    sys.modules['numba'] = numba = Numba('numba')
    numba.__spec__ = importlib.machinery.ModuleSpec('numba', None)
    with futures.ThreadPoolExecutor(16) as pool:
      print(set(pool.map(kernels, range(16))))
  """)
  assert done.stdout == '{None}\n'
  assert done.stderr.count('Numba does not work here') == 1
  assert 'for this NumPy' in done.stderr
