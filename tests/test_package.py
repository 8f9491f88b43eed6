"""Public names of the package, its commands and its metadata."""

import ast
import dataclasses
import inspect
import os
import pathlib
import pydoc
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax.inference import model as inference_model
from vit_jax.inference.model import Model
from vit_jax.pretrained import catalog
from vit_jax.pretrained.published import DEFAULT_TAGS, PUBLISHED
from vit_jax.training import evaluate

MODELS_MD = pathlib.Path(__file__).parents[1] / 'docs' / 'models.md'


def test_the_package_offers_load_and_no_unknown_names():
  assert vit_jax.__all__ == ['evaluate', 'list_models', 'load']
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    _ = vit_jax.lod
  # What `help(vit_jax)` prints.
  text = pydoc.plain(pydoc.render_doc(vit_jax))
  assert "vit_jax.load('augreg-B/16-i1k-384')" in text
  assert 'load(source: ' in text and 'list_models(pattern: ' in text
  assert '__getattr__' not in text


@pytest.mark.parametrize(
  'ours, theirs',
  [
    (vit_jax.load, inference_model.load),
    (vit_jax.evaluate, evaluate.evaluate),
  ],
)
def test_the_package_s_functions_have_the_options_of_those_behind_them(
  ours, theirs
):
  taken, behind = (inspect.signature(x).parameters for x in (ours, theirs))
  assert behind.keys() <= taken.keys()
  behind = {**inspect.signature(catalog.load).parameters, **behind}
  # Those of a run's reader, which are None there, are no parameters of `load`.
  assert taken.keys() - behind.keys() <= {'step', 'ema'}
  for name, parameter in taken.items():
    if name in behind:
      assert parameter.default == behind[name].default, name
    assert re.search(rf'\b{name}\b[\w, *]*: ', ours.__doc__), name


def test_names_of_published_weights_are_listed():
  assert 'augreg-B/16' in vit_jax.list_models()
  found = vit_jax.list_models('dino*-S/1[46]')
  assert found == ['dino-S/16', 'dinov2-S/14', 'dinov2reg-S/14']
  assert vit_jax.list_models('nothing*') == []


def test_an_installed_package_has_its_recipes_and_no_other_name(tmp_path):
  root = MODELS_MD.parents[1]
  # What pip puts into a wheel; egg_info is told not to write into the tree.
  subprocess.run(
    [sys.executable, 'setup.py', '-q', 'egg_info', f'--egg-base={tmp_path}']
    + ['build', f'--build-base={tmp_path}/base', f'--build-lib={tmp_path}/lib'],
    cwd=root,
    check=True,
    capture_output=True,
  )
  assert [f.name for f in (tmp_path / 'lib').iterdir()] == ['vit_jax']
  done = subprocess.run(
    [sys.executable, '-m', 'vit_jax', 'summary', '--config=quickstart.py'],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': f'{tmp_path}/lib'},
    check=True,
    capture_output=True,
    text=True,
  )
  assert 'parameters' in done.stdout


def test_no_repr_prints_arrays(tiny_weights):
  weights = tiny_weights()
  weights = dataclasses.replace(weights, source=dict(path='x/y.npz'))
  assert repr(weights) == (
    'Weights(mu/8, 19,269 parameters, 5 classes, from x/y.npz)'
  )
  assert repr(Model(weights)) == 'Model(mu/8, 19,269 parameters, 5 classes)'


def test_the_loop_of_the_docs_runs_as_it_is_written(
  tiny_weights, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  Model(tiny_weights()).save('pets.safetensors')
  rng = np.random.default_rng(0)
  for name in ('cat', 'dog'):
    pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(f'{name}.jpg')
  blocks = re.findall(r'```python\n(.*?)```', MODELS_MD.read_text(), re.DOTALL)
  (loop,) = (block for block in blocks if 'optax' in block)
  names = {}
  exec(loop, names)
  assert np.isfinite(names['value'])
  assert names['loss'](names['params']) < names['loss'](names['model'].params)


def test_the_docs_list_every_name():
  rows = []
  for name, entry in PUBLISHED.items():
    classes = entry.model['num_classes']
    ops = entry.preprocess.get('ops', 'resize(224)')  # big_vision's own.
    pixels = re.findall(r'(?:central_crop|resize)\((\d+)', ops)[-1]
    mirrors = [
      f'`{remote.url.split("/")[3]}`'
      for remote in entry.remotes
      if remote.url.startswith('hf://timm/')
    ]
    classes = f'{classes:,}' if classes else 'none'
    rows.append(f'| `{name}` | {classes} | {pixels} | {"".join(mirrors)} |')
  for name, tag in DEFAULT_TAGS.items():
    rows.append(f'| `{name}` | `{tag}` |')
  # Short names in the rest of the page are examples.
  listed = [
    line
    for line in MODELS_MD.read_text().partition('## Short names')[2].split('\n')
    if line.startswith('| `')
  ]
  assert listed == rows


def test_every_data_file_is_installed_with_the_package():
  root = pathlib.Path(vit_jax.__file__).parent
  setup = (root.parent / 'setup.py').read_text()
  named = re.search(r'package_data=({.*?})', setup, re.DOTALL)[1]
  named = ast.literal_eval(named)
  found = {
    str(path.relative_to(root))
    for path in root.rglob('*')
    if path.is_file() and path.suffix not in ('.py', '.pyc', '.nbi', '.nbc')
  }
  assert found == set(named['vit_jax'])
  assert (root / 'py.typed').read_bytes() == b''  # PEP 561.
