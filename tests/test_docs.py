"""The programs in the docs run as they are printed."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data import device_ops_language, ops_language
from vit_jax.models import vit
from vit_jax.objectives import _forward
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.pretrained import catalog
from vit_jax.pretrained.weights import Weights

DOCS = pathlib.Path(__file__).parents[1] / 'docs'


def _programs(file, folder, names, marker=''):
  """Returns the programs of a document with a marker as modules."""
  text = (DOCS / file).read_text()
  programs = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  programs = [program for program in programs if marker in program]
  for name, program in zip(names, programs, strict=True):
    (folder / f'{name}.py').write_text(program)
  return [importlib.import_module(name) for name in names]


def test_the_ops_run(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  _programs('augmentations.md', tmp_path, ['docs_host', 'docs_device'])
  op = ops_language.parse('docs_host.invert(1.0)', trusted=True)
  pixel = np.full((1, 1, 1), 5, np.uint8)
  assert op({'image': pixel}, np.random.default_rng(0))['image'].item() == 250
  op = device_ops_language.parse('docs_device.brightness(0.5)', trusted=True)
  batch = {'image': jnp.zeros((4, 2, 2, 1))}
  assert op(batch, None, train=False) is batch
  moved = op(batch, jax.random.key(0), train=True)['image']
  assert 0 < abs(moved).max() < 0.5 and len(np.unique(moved)) == 4


def test_the_evaluator_and_the_picture_run(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  names = 'docs_recall', 'docs_attention'
  recall, attention = _programs('evaluators.md', tmp_path, names)
  mesh = mesh_lib.make_mesh()
  model = vit.Model('mu/8', num_classes=4)
  image = jnp.zeros((1, 16, 16, 3))
  params = jax.jit(model.init)(jax.random.key(0), image)['params']
  params = jax.device_put(params, mesh_lib.replicated(mesh))
  ops = device_ops_language.parse('normalize(-1, 1)')
  forward = _forward.Forward(
    lambda params, batch: model.apply({'params': params}, batch['image']),
    lambda batch: ops(batch, None, train=False),
  )
  data = dict(name='synthetic', image_size=16, num_classes=4, num_examples=16)
  data |= dict(split='test')
  metrics = recall.Evaluator(
    forward, mesh, data=data, ops='', batch_size=8
  ).run(params)
  # A head of zeros answers the first class.
  assert metrics.pop('recall') == pytest.approx(1 / 4)
  assert metrics == {f'recall/{y}': float(y == 0) for y in range(4)}
  path = tmp_path / 'picture.png'
  picture = attention.Picture(forward, mesh, data=data, ops='', block=0)
  picture.draw(params, path)
  assert path.read_bytes().startswith(b'\x89PNG')


def test_the_format_keeps_all(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  _programs('models.md', tmp_path, ['docs_format'], marker='def write(')
  kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
  section = dict(name='vit', variant='mu/8')
  ours = Weights({'a': {'kernel': kernel}}, section, class_names=['x'])
  catalog.save(ours, tmp_path / 'weights', format='docs_format')
  found = catalog.load(tmp_path / 'weights', format='docs_format')
  np.testing.assert_array_equal(found.params['a/kernel'], kernel)
  assert (found.model, found.class_names) == (section, ['x'])
