"""A second model is read with a file in names/ and no other change."""

import numpy as np
import pytest
import safetensors.numpy

import vit_jax.models
import vit_jax.pretrained.names
from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog

MODEL = """
import flax.linen as nn

class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(x.shape[-1], name='mlp')(x)

class Encoder(nn.Module):
  depth: int

  @nn.compact
  def __call__(self, x):
    for i in range(self.depth):
      x = Block(name=f'block_{i:02d}')(x)
    return x

class Model(nn.Module):
  width: int = 4
  depth: int = 2
  num_classes: int | None = 3

  @nn.compact
  def __call__(self, image):
    x = nn.Conv(self.width, (2, 2), 2, name='patch_embedding')(image)
    x = Encoder(self.depth, name='encoder')(x.mean((1, 2)))
    return {'logits': nn.Dense(self.num_classes, name='head')(x)}
"""
NAMES = """
import types

import jax
import jax.numpy as jnp

from vit_jax import lookup, trees
from vit_jax.pretrained import model_section
from vit_jax.pretrained.evaluation import Facts
from vit_jax.pretrained.names._dialect import Dialect

Model = lookup.find('models', 'probe', 'Model')
NEEDED = ('patch_embedding/kernel', 'head/kernel')
DIALECT = Dialect(
  name='probe', model='probe', position='', head='out', leaves={},
  position_rows='none',
  layers={'stem': 'patch_embedding', 'layers.*': 'encoder/block_*/mlp'},
)

def infer(named):
  width, classes = named['head/kernel'].shape
  depth = model_section.depth(named)
  return dict(width=width, depth=depth, num_classes=classes)

def section(fields):
  return dict(name='probe', **{k: fields[k] for k in Model.SIZES})

Model.SIZES = ('width', 'depth', 'num_classes')

def expected(named, model):
  image = jnp.zeros((1, 2, 2, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  return {k: x.shape for k, x in trees.flatten(shapes).items()}, []

torch = types.SimpleNamespace(
  detect=lambda arrays: (DIALECT, '') if 'stem.weight' in arrays else None
)

def facts(stored, dialect, theirs, unused, model):
  return Facts()

def resize_method(*known, **more):
  return 'timm'
"""


@pytest.fixture
def arrays(tmp_path, monkeypatch):
  """Returns a state dict of a model that is in the package for this test."""
  for package, text in (
    (vit_jax.models, MODEL),
    (vit_jax.pretrained.names, NAMES),
  ):
    folder = tmp_path / package.__name__
    folder.mkdir()
    (folder / 'probe.py').write_text(text)
    monkeypatch.setattr(package, '__path__', [*package.__path__, str(folder)])
  names = lookup.names
  monkeypatch.setattr(
    lookup,
    'names',
    lambda folder: (
      [*names(folder), 'probe']
      if folder in ('models', 'pretrained/names')
      else names(folder)
    ),
  )
  rng = np.random.default_rng(0)
  shapes = {
    'stem.weight': (4, 3, 2, 2),
    'out.weight': (3, 4),
    **{f'layers.{i}.weight': (4, 4) for i in range(2)},
  }
  shapes |= {k.replace('weight', 'bias'): v[:1] for k, v in shapes.items()}
  return {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}


def test_a_second_model_is_read_by_its_names(arrays, tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(arrays, path)
  weights = catalog.load(path)
  assert weights.model == dict(name='probe', width=4, depth=2, num_classes=3)
  np.testing.assert_array_equal(
    weights.params['encoder/block_01/mlp/kernel'], arrays['layers.1.weight'].T
  )
  # It goes through our own format, which checks it as well.
  catalog.save(weights, tmp_path / 'ours.safetensors')
  again = catalog.load(tmp_path / 'ours.safetensors')
  assert again.model == weights.model
  with pytest.raises(UserError, match='of timm can be written for vit of'):
    catalog.save(weights, tmp_path / 'folder', format='timm')
  del weights.params['head/bias']
  catalog.save(weights, tmp_path / 'ours.safetensors')
  with pytest.raises(UserError, match='missing: head/bias'):
    catalog.load(tmp_path / 'ours.safetensors')
  del arrays['layers.1.bias']
  safetensors.numpy.save_file(arrays, path)
  with pytest.raises(UserError, match=r'missing: layers\.1\.bias \(our enc'):
    catalog.load(path)
