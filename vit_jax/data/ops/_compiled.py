"""Optional import of the Numba kernels."""

import functools
import importlib.util
import threading
from types import ModuleType

from absl import logging

_LOCK = threading.Lock()


def kernels() -> ModuleType | None:
  """Returns the module `_kernels`, or None to use Pillow instead.

  Numba is in the extra `fast`. The pixels are the same with it and without. It
  compiles for some seconds when it is used for the first time, and keeps the
  result on disk.
  """
  # One thread at a time: otherwise each would log a failure of its own.
  with _LOCK:
    return _imported()


@functools.cache
def _imported() -> ModuleType | None:
  if importlib.util.find_spec('numba') is None:
    return None
  try:
    from vit_jax.data.ops import _kernels
  except Exception as e:  # Another NumPy, nowhere to write, a full disk.
    logging.warning(
      'images are resized by slower code, to the same pixels: Numba does not '
      'work here (%s: %s)',
      type(e).__name__,
      e,
    )
    return None
  return _kernels
