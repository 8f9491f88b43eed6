"""Every format of the folder, and one of a user's own."""

import dataclasses
import inspect

import numpy as np
import pytest

import vit_jax
from vit_jax import lookup, suggestions, trees
from vit_jax.commands import convert
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog, initialize

WRITTEN = [
  name
  for name in lookup.names('pretrained/formats')
  if 'write' in suggestions.exported(f'pretrained/formats/{name}')
]
# A format in a user's module: a folder with a file per array.
PLAIN = """
import json
import pathlib

import numpy as np

from vit_jax.pretrained.weights import Weights


def read(path):
  path = pathlib.Path(path)
  text = json.loads((path / 'model.json').read_text())
  files = sorted(path.glob('*.npy'))
  named = {f.stem.replace('.', '/'): np.load(f) for f in files}
  return Weights(params=named, **text)


def write(weights, path):
  path = pathlib.Path(path)
  path.mkdir()
  text = dict(model=weights.model, preprocess=weights.preprocess)
  (path / 'model.json').write_text(json.dumps(text))
  for name, array in weights.params.items():
    np.save(path / f'{name.replace("/", ".")}.npy', array)
"""


def assert_same(found, expected):
  found, expected = map(trees.flatten, (found, expected))
  assert set(found) == set(expected)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize('name', WRITTEN)
def test_files_of_a_format_are_recognised_and_read(
  name, make_weights, tmp_path
):
  weights = make_weights(pooling='token', activation='gelu_tanh')
  write = lookup.find('pretrained/formats', name, 'write')
  suffix = getattr(inspect.getmodule(write), 'SUFFIXES', ('',))[0]
  path = tmp_path / f'x{suffix}'
  catalog.save(weights, path, format=name)
  reads = [
    reader
    for reader in lookup.names('pretrained/formats')
    if 'matches' in suggestions.exported(f'pretrained/formats/{reader}')
    and lookup.find('pretrained/formats', reader, 'matches')(path)
  ]
  assert len(reads) == 1  # No path is read by whichever comes first.
  found = catalog.load(path)
  assert_same(found.params, weights.params)
  dialects = dict(google_npz='pre_linen', big_vision_npz='big_vision')
  if name in dialects:
    assert found.source['dialect'] == dialects[name]
  elif name in ('timm', 'huggingface'):
    assert found.source['format'] == name
  for key in ('activation', 'pooling', 'num_heads'):
    assert found.model[key] == weights.model[key]


@pytest.fixture(params=['own_formats.plain', 'plain_format'])
def plain(request, tmp_path, monkeypatch):
  """Returns the name of a user's format."""
  package = tmp_path / 'project' / 'own_formats'
  package.mkdir(parents=True)
  (package / 'plain.py').write_text(PLAIN)
  (package.parent / 'plain_format.py').write_text(PLAIN)
  monkeypatch.syspath_prepend(package.parent)
  return request.param


def test_a_format_of_the_users_is_written_and_read(
  plain, tiny_weights, tmp_path, capsys
):
  weights = tiny_weights()
  source, path = tmp_path / 'x.safetensors', tmp_path / 'folder'
  catalog.save(weights, source)
  assert convert.main([str(source), str(path), f'--format={plain}']) == 0
  assert 'have the same bits' in capsys.readouterr().out
  assert_same(vit_jax.load(path, format=plain).weights.params, weights.params)
  back = [str(path), str(tmp_path / 'y.npz'), f'--source_format={plain}']
  assert convert.main([*back, '--allow_note_only']) == 0
  zeros = {
    k: np.zeros_like(x) for k, x in trees.flatten(weights.params).items()
  }
  tree = initialize.initialize(
    dict(params=trees.unflatten(zeros)),
    [dict(weights=str(path), format=plain)],
    on_log=str,
  )
  assert_same(tree['params'], weights.params)


def test_an_unknown_format_is_named(tiny_weights, tmp_path):
  path = tmp_path / 'x.safetensors'
  catalog.save(tiny_weights(), path)
  with pytest.raises(UserError, match=r'own_formats\.absent'):
    catalog.load(path, format='own_formats.absent')
  with pytest.raises(UserError, match=r"format named 'tim'.*state_dict"):
    catalog.load(path, format='tim')
  with pytest.raises(UserError, match=r'own_formats\.absent'):
    catalog.save(tiny_weights(), path, format='own_formats.absent')
  weights = dataclasses.replace(tiny_weights(), source={})
  with pytest.raises(UserError, match='leave it out'):
    catalog.save(weights, path, allow_note_only=True)
