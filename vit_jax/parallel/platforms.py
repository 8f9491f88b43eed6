"""The platforms that jax will find on this machine, before it is imported.

Where libtpu is installed and no TPU is attached, jax loads it all the same: it
prints five lines that look like errors, and on some machines searches for a
metadata server for seconds.
"""

import glob
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import sys
from collections.abc import Mapping, MutableMapping

_GOOGLE = '0x1ae0'  # PCI vendor, of TPUs and of network cards of Google Cloud.
_NETWORK_CLASS = '0x02'
# jax sets them where libtpu is installed and no TPU found; children inherit
# them.
_NO_SIGN = {'TPU_SKIP_MDS_QUERY', 'TPU_LIBRARY_PATH'}
_CUDA_DEVICES = ('dev/nvidia0', 'dev/nvidiactl', 'dev/dxg')


def skip_absent_tpu(
  environ: MutableMapping[str, str] = os.environ, *, root: str = '/'
) -> bool:
  """Sets JAX_PLATFORMS so that jax leaves libtpu out; returns whether it did.

  Nothing is changed where jax is imported already, where JAX_PLATFORMS is set
  (also to nothing, by which jax tries all), where there is a sign of a TPU or
  no libtpu, and where a plugin other than CUDA's might have devices of its own.
  """
  is_late = environ is os.environ and 'jax' in sys.modules
  if is_late or 'JAX_PLATFORMS' in environ:
    return False
  if importlib.util.find_spec('libtpu') is None:
    return False
  found = _find(environ, pathlib.Path(root))
  if found is not None:
    environ['JAX_PLATFORMS'] = found
  return found is not None


def runs_on_cpu(
  environ: Mapping[str, str] = os.environ, *, root: str = '/'
) -> bool:
  """Returns whether jax will compute on the CPU; False if that is unknown.

  JAX_PLATFORMS decides where it is set; else the devices of this machine do.
  """
  chosen = environ.get('JAX_PLATFORMS') or _find(environ, pathlib.Path(root))
  return chosen is not None and chosen.split(',')[0].strip() == 'cpu'


def _find(environ: Mapping[str, str], root: pathlib.Path) -> str | None:
  """Returns 'cpu' or 'cuda,cpu'; None where jax may find something else."""
  plugins = _plugins()
  is_cuda = all(name.startswith('xla_cuda') for name in plugins)
  if not is_cuda or _has_sign_of_tpu(environ, root):
    return None
  has_gpu = any((root / path).exists() for path in _CUDA_DEVICES)
  return 'cuda,cpu' if plugins and has_gpu else 'cpu'


def _has_sign_of_tpu(environ, root: pathlib.Path) -> bool:
  """Whether a device or a variable of the environment suggests a TPU."""
  named = [key for key in environ if key.startswith('TPU_')]
  if 'JAX_FORCE_TPU_INIT' in environ or set(named) - _NO_SIGN:
    return True
  if glob.glob(f'{root}/dev/accel*') or glob.glob(f'{root}/dev/vfio/[0-9]*'):
    return True
  for vendor in root.glob('sys/bus/pci/devices/*/vendor'):
    try:
      is_google = vendor.read_text().strip() == _GOOGLE
      kind = (vendor.parent / 'class').read_text() if is_google else ''
    except OSError:
      return True  # Not readable: jax may find out.
    if is_google and not kind.startswith(_NETWORK_CLASS):
      return True
  return False


def _plugins() -> set[str]:
  """Returns the names of the plugins that jax would load, as jax finds them."""
  found = {
    point.value.rpartition('.')[2]
    for point in importlib.metadata.entry_points(group='jax_plugins')
  }
  spec = importlib.util.find_spec('jax_plugins')
  if spec is not None and spec.submodule_search_locations is not None:
    folders = list(spec.submodule_search_locations)
    found |= {module.name for module in pkgutil.iter_modules(folders)}
  if os.environ.get('PJRT_NAMES_AND_LIBRARY_PATHS'):
    found.add('of PJRT_NAMES_AND_LIBRARY_PATHS')
  return found
