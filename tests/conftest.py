"""Strict and cheap: 8 fake devices, no silent broadcasting, fast compiles."""

import os
import pathlib
import signal
import sys
import tempfile

# Many tests, and the processes that they start, compile the same programs; so
# do the workers of pytest-xdist, which inherit this from the one that starts
# them.
if 'VIT_JAX_TEST_CACHE' not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix='vit_jax_tests_')
  os.environ['VIT_JAX_TEST_CACHE'] = _CACHE.name
os.environ |= {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': (
    '--xla_force_host_platform_device_count=8'
    ' --xla_backend_optimization_level=1'
    ' --xla_llvm_disable_expensive_passes=true'
  ),
  'JAX_COMPILATION_CACHE_DIR': os.environ['VIT_JAX_TEST_CACHE'],
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
# Eight devices whose LAPACK calls each start threads are 200 times slower.
os.environ['OPENBLAS_NUM_THREADS'] = '1'

import jax
import numpy as np
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

# Tests that were started in the background or with nohup ignore these signals,
# and so would the processes that they start and send them to.
for _number in (signal.SIGINT, signal.SIGHUP):
  if signal.getsignal(_number) is signal.SIG_IGN:
    signal.signal(_number, lambda number, frame: None)

# What is drawn depends on them, and some terminals and CI systems set them.
os.environ['TERM'] = 'xterm'
for _name in ('COLUMNS', 'LINES', 'FORCE_COLOR', 'NO_COLOR'):
  os.environ.pop(_name, None)

# Models that parity is measured with; timm's and some of transformers' need
# torchvision, where it is installed, to import.
sys.path.append(str(pathlib.Path(__file__).parents[1] / 'scripts'))

import fix_torchvision  # noqa: E402

fix_torchvision.fix()


_RECIPE = """
import ml_collections

def get_config(arg=''):
  data = dict(name='synthetic', split='train', image_size=16, num_examples=32,
              num_classes=4)
  config = ml_collections.ConfigDict()
  config.total_steps = 2
  config.model = dict(name='vit', variant='mu/8', num_classes=4)
  config.objective = dict(name='supervised')
  config.input = dict(data=data, ops='', device_ops='normalize(-1, 1)',
                      batch_size=16)
  config.optimizer = dict(name='adamw', learning_rate=1e-3, warmup_steps=1)
  config.evals = dict(val=dict(name='classification', data=data, ops=''))
  return config
"""


@pytest.fixture(autouse=True)
def forget_modules_of_users():
  """Unloads the package `mine`, which tests write into folders of their own."""
  yield
  for name in [x for x in sys.modules if x.partition('.')[0] == 'mine']:
    del sys.modules[name]


@pytest.fixture
def recipe(tmp_path):
  """The path of a recipe: two steps of a tiny ViT on made-up images."""
  path = tmp_path / 'recipe.py'
  path.write_text(_RECIPE)
  return str(path)


@pytest.fixture
def tiny_weights():
  """Returns `make(num_classes=5, **section) -> Weights` for 16x16 images.

  A ViT with random parameters, so that answers differ between images.
  """
  from vit_jax import lookup
  from vit_jax.pretrained.weights import Weights

  def make(num_classes=5, channels=3, **section):
    section = (
      dict(name='vit', variant='mu/8', num_classes=num_classes) | section
    )
    model = lookup.build('models', section, 'Model')
    image = jax.ShapeDtypeStruct((1, 16, 16, channels), 'float32')
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
    )
    preprocess = dict(
      image_size=(16, 16),
      ops='decode|resize(16)',
      device_ops='normalize(-1, 1)',
    )
    names = ['ant', 'bee', 'cat', 'dog', 'eel'][:num_classes]
    return Weights(params, section, preprocess, names)

  return make
