"""Every cell of every notebook runs, offline, in the order of the notebook."""

import ast
import importlib.util
import io
import json
import linecache
import pathlib
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import PIL.Image
import pytest
from matplotlib import pyplot as plt

from vit_jax.pretrained.formats import vit_jax as ours

COLABS = pathlib.Path(__file__).parents[1] / 'colabs'
NOTEBOOKS = sorted(COLABS.glob('*.ipynb'))


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Returns a function that runs a notebook with some of its parameters set.

  It returns what the notebook defined. What cells show is drawn to the last
  pixel, into memory.
  """
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(plt, 'show', _draw_figures)

  def run(path, **parameters):
    namespace = {'__name__': '__main__'}
    with matplotlib.rc_context({'backend': 'agg'}):
      try:
        for number, cell in enumerate(_cells(path)):
          if cell['cell_type'] == 'code':
            _run_cell(f'{path.name}, cell {number}', cell, namespace)
          if 'parameters' in cell['metadata'].get('tags', ()):
            unknown = set(parameters) - set(namespace)
            assert not unknown, f'{path.name} has no parameters {unknown}'
            namespace |= parameters
      finally:
        plt.close('all')
    return namespace

  return run


def _cells(path: pathlib.Path) -> list[dict[str, Any]]:
  return json.loads(path.read_text())['cells']


def _source(cell: Mapping[str, Any]) -> str:
  return ''.join(cell['source'])


def _run_cell(name: str, cell: Mapping[str, Any], namespace: dict) -> None:
  """Runs a cell; as in Jupyter, the value of its last expression is shown."""
  source, last = _source(cell), None
  # So that a traceback shows the line.
  lines = source.splitlines(keepends=True)
  linecache.cache[name] = (len(source), None, lines, name)
  try:
    tree = ast.parse(source, name)
    if tree.body and isinstance(tree.body[-1], ast.Expr):
      last = ast.Expression(tree.body.pop().value)
    exec(compile(tree, name, 'exec'), namespace)
    if last is not None:
      _show(eval(compile(last, name, 'eval'), namespace))
    assert not plt.get_fignums(), 'a figure is not shown; call plt.show()'
  except Exception as e:
    e.add_note(f'in {name}')
    raise


def _show(value: Any) -> None:
  png = getattr(value, '_repr_png_', None)
  repr(value) if png is None else png()


def _draw_figures() -> None:
  assert plt.get_fignums(), 'there is no figure to show'
  for number in plt.get_fignums():
    plt.figure(number).savefig(io.BytesIO())
  plt.close('all')


def test_finetune_runs_unchanged(run):
  found = run(
    COLABS / 'finetune.ipynb',
    PRETRAIN_STEPS=8,
    STEPS=4,
    WORKDIR='run',
  )
  # Digits five to nine, ten of each, learned from a model of zero to four.
  assert found['names'] == ['eight', 'five', 'nine', 'seven', 'six']
  assert found['inputs'].num_examples == 50
  assert found['weights'].class_names == ['four', 'one', 'three', 'two', 'zero']
  assert found['weights'].source['step'] == 8
  assert found['model'].weights.source['step'] == 4
  assert list(found['results']) == ['fine-tuned', 'from scratch']
  for metrics in found['results'].values():
    assert metrics['val/num_examples'] == 180
  # Few-shot is of the weights before: it tells them from random ones.
  assert found['shots']['pre-trained'] != found['shots']['not trained']
  assert set(found['shots']['pre-trained']) >= {'few/1shot', 'few/10shot_std'}
  assert set(found['exported']) == {
    'vit_jax',
    'google_npz',
    'timm',
    'huggingface',
  }
  assert max(found['exported'].values()) < 1e-5
  pictures = {p.name for p in pathlib.Path('run').rglob('*.png')}
  assert pictures >= {'curves.png', 'predictions.png'}


def test_finetune_takes_weights_and_a_folder_of_ones_own(run, tiny_weights):
  ours.write(tiny_weights(pooling='mean', num_classes=None), 'w.safetensors')
  rng = np.random.default_rng(0)
  for i in range(20):
    path = pathlib.Path(f'photos/train/{("cat", "dog")[i % 2]}/{i}.jpg')
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
  found = run(
    COLABS / 'finetune.ipynb',
    WEIGHTS='w.safetensors',
    DATASET='folder:photos',
    TRAIN='train[:80%]',
    TEST='train[80%:]',
    RESOLUTION=32,
    PHOTOS=True,
    OPTIMIZER='sgd',
    STEPS=2,
    BATCH_SIZE=16,
    COMPARE=False,
  )
  assert found['names'] == ['cat', 'dog']
  assert found['inputs'].num_examples == 16
  assert 'flip_lr' in found['config'].input.ops
  params = found['model'].weights.params
  assert params['position_embedding'].shape[:2] == (4, 4)
  assert list(found['results']) == ['fine-tuned']
  assert 'run' not in {p.name for p in pathlib.Path().iterdir()}


def test_explore_runs_unchanged(run):
  found = run(COLABS / 'explore.ipynb', STEPS=2, WORKDIR='run')
  assert found['model'].weights.source['step'] == 2
  assert found['outputs']['logits'].shape == (4, 10)
  assert found['picture'].width > 500
  pictures = {p.name for p in pathlib.Path('run').rglob('*.png')}
  assert pictures == {'positions.png', 'filters.png'}


@pytest.mark.parametrize('num_classes', [5, None])
def test_explore_takes_any_weights_and_images(run, tiny_weights, num_classes):
  weights = tiny_weights(num_classes=num_classes, position='sincos2d')
  ours.write(weights, 'w.safetensors')
  given = dict(WEIGHTS='w.safetensors')
  if num_classes is None:
    PIL.Image.new('RGB', (50, 40), 'red').save('red.png')
    given['IMAGES'] = ['red.png']
  found = run(COLABS / 'explore.ipynb', **given)
  assert ('logits' in found['outputs']) == (num_classes is not None)
  # Two photographs unless others are given.
  assert len(found['outputs']['tokens']) == (2 if num_classes else 1)
  assert 'nothing of it is learned' in found['picture']


def test_a_cell_that_fails_fails_the_test_and_is_named(run, tmp_path):
  def write(*sources):
    cells = [
      dict(cell_type='code', metadata={}, source=[source]) for source in sources
    ]
    cells[0]['metadata']['tags'] = ['parameters']
    path = tmp_path / 'x.ipynb'
    path.write_text(json.dumps(dict(cells=cells)))
    return path

  with pytest.raises(ZeroDivisionError) as error:
    run(write('x = 0', 'y = 1', '1 / x'))
  assert error.value.__notes__ == ['in x.ipynb, cell 2']
  run(write('x = 0', 'y = 1', '1 / x'), x=1)
  with pytest.raises(SyntaxError):
    run(write('x = 0', '%pip install y'))
  with pytest.raises(AssertionError, match=r"no parameters \{'y'\}"):
    run(write('x = 0'), y=1)
  # What is shown must be there.
  picture = 'from PIL import Image\nImage.open("x.png")'
  pathlib.Path('x.png').write_bytes(b'no picture')
  with pytest.raises(PIL.UnidentifiedImageError):
    run(write('x = 0', picture))
  with pytest.raises(AssertionError, match='not shown'):
    run(write('import matplotlib.pyplot as plt; figure = plt.figure()'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_show_the_outputs_of_one_run_in_order(path):
  notebook = json.loads(path.read_text())
  assert (notebook['nbformat'], notebook['nbformat_minor']) >= (4, 5)
  assert set(notebook['metadata']) == {'kernelspec', 'language_info'}
  cells = notebook['cells']
  assert _source(cells[0]).startswith('# ')
  assert len({cell['id'] for cell in cells}) == len(cells)
  code = [cell for cell in cells if cell['cell_type'] == 'code']
  tags = [cell['metadata'].get('tags') for cell in code]
  assert tags == [None, ['parameters']] + [None] * (len(code) - 2)
  counts = [cell['execution_count'] for cell in code]
  assert counts == list(range(1, len(code) + 1))
  outputs = [output for cell in code for output in cell['outputs']]
  assert all(output['output_type'] != 'error' for output in outputs)
  assert sum('image/png' in o.get('data', ()) for o in outputs) >= 3
  # Run in a folder as Colab has it: no path of somebody's machine.
  text = json.dumps(outputs)
  assert not re.search(r'/(tmp|home|root|Users)/', text)
  assert path.stat().st_size < 2**20


def _install_cell(path: pathlib.Path) -> str:
  return next(_source(c) for c in _cells(path) if c['cell_type'] == 'code')


def test_all_notebooks_install_the_same_way():
  assert len(NOTEBOOKS) >= 2
  assert len({_install_cell(path) for path in NOTEBOOKS}) == 1


@pytest.fixture
def install(monkeypatch, tmp_path):
  """Returns a function that runs the first cell; it returns what pip is given.

  Args of that function: whether vit_jax is installed, the GPU's driver.
  """
  monkeypatch.chdir(tmp_path)

  def install(is_installed=False, driver=None):
    commands = []

    def run(command, **_):
      commands.append(command)
      return types.SimpleNamespace(stdout=f'{driver}\n')

    origin = '__init__.py' if is_installed else None
    spec = types.SimpleNamespace(origin=origin)
    with monkeypatch.context() as patch:
      patch.setattr(importlib.util, 'find_spec', lambda _: spec)
      patch.setattr(shutil, 'which', lambda _: driver)
      patch.setattr(subprocess, 'run', run)
      patch.delitem(sys.modules, 'vit_jax')
      exec(_install_cell(NOTEBOOKS[0]), {})
    return commands[-1][-2:] if commands else None

  return install


def test_the_first_cell_installs_missing_packages_only(install, tmp_path):
  assert install(is_installed=True, driver='550.1') is None
  (tmp_path / 'vit_jax-0.1.0-py3-none-any.whl').touch()
  wheel = 'vit_jax-0.1.0-py3-none-any.whl'
  assert install() == [wheel, 'jax']
  assert install(driver='570.86.15') == [wheel, 'jax[cuda12]']
  assert install(driver='580.65.06') == [wheel, 'jax[cuda13]']
  # A cloned checkout, which Python takes for a package without a file.
  (tmp_path / 'vit_jax' / 'vit_jax').mkdir(parents=True)
  (tmp_path / 'vit_jax' / 'vit_jax' / '__init__.py').touch()
  assert install() == ['vit_jax', 'jax']


def test_the_first_cell_says_what_to_do_without_a_checkout(install):
  with pytest.raises(FileNotFoundError, match=r'git clone .* or set SOURCE'):
    install()
