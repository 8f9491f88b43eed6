"""Imports point down, files stay small, importing the package costs nothing."""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'vit_jax'

# A file may import from lower levels and from its own folder. The unit is a
# file or a folder of vit_jax/.
LEVELS = [
  ['printable'],
  ['errors', 'suggestions'],
  ['lookup', 'trees', 'files', 'bounded_npz', 'losses'],
  ['parallel'],
  ['reporting', 'compiler', 'optim'],
  ['models', 'data', 'checkpoints'],
  ['objectives', 'evaluators', 'pretrained'],
  ['visualize'],
  ['inference'],
  ['training'],
  ['commands'],
  ['main', '__main__', '__init__', 'configs'],
]
LEVEL = {unit: i for i, units in enumerate(LEVELS) for unit in units}
FILES = sorted(PACKAGE.rglob('*.py'))
MAX_LINES = 400


def unit_of(module: str) -> str:
  """Returns the part of `vit_jax.<unit>...` that has a level."""
  parts = module.split('.')
  return parts[1] if len(parts) > 1 else '__init__'


def imports(source: str) -> set[str]:
  """Returns every module that a file may import, anywhere in it.

  For `from vit_jax.data import pipeline` that is `vit_jax.data.pipeline`; a
  name that is no module only makes the last part too long, which is harmless.
  What only type checkers import (`if typing.TYPE_CHECKING:`) does not count.
  """
  found = set()
  for node in _executed(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      module = '.' * node.level + (node.module or '')
      found |= {f'{module}.{alias.name}' for alias in node.names}
  return found


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
  """Yields all nodes but those below `if typing.TYPE_CHECKING:`."""
  yield tree
  for node in ast.iter_child_nodes(tree):
    test = ast.unparse(node.test) if isinstance(node, ast.If) else ''
    if not test.endswith('TYPE_CHECKING'):
      yield from _executed(node)


def upward(unit: str, source: str) -> list[str]:
  """Returns the imports of a file that its level does not allow."""
  wrong = []
  for module in sorted(imports(source)):
    if module.startswith('.'):
      wrong.append(f'{module} (write the full name)')
    elif module.split('.')[0] in ('configs', 'tests'):
      wrong.append(module)
    elif module.split('.')[0] == 'vit_jax':
      target = unit_of(module)
      # What `from vit_jax import x` names may be an attribute of __init__.
      below = LEVEL.get(target, 0) < LEVEL[unit]
      if not below and target != unit:
        wrong.append(module)
  return wrong


def test_every_file_has_a_level():
  units = {unit_of(_module(file)) for file in FILES}
  assert sorted(units - set(LEVEL)) == [], 'give them a place in LEVELS'


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down(file):
  unit = unit_of(_module(file))
  assert upward(unit, file.read_text()) == []


def test_the_check_sees_every_way_to_import_upwards():
  for statement in (
    'import vit_jax.training.train',
    'import vit_jax.training.train as t',
    'from vit_jax import commands',
    'from vit_jax.training.train import train',
    'def f():\n  from vit_jax import trees, training',
    'from vit_jax.evaluators import classification',
    'from vit_jax.configs import common',
    'from . import pooling',
  ):
    assert len(upward('objectives', statement)) == 1, statement
  for statement in (
    'import jax',
    'from vit_jax import losses, __version__',
    'from vit_jax.objectives.supervised import Objective',
    'from vit_jax.models import vit',
    'if typing.TYPE_CHECKING:\n  from vit_jax.training.train import train',
  ):
    assert upward('objectives', statement) == [], statement
  # Two folders of one level do not know each other.
  assert upward('models', 'from vit_jax.data import pipeline')


def test_every_module_that_is_imported_exists():
  # Also in texts: tests run programs that are written in them.
  statement = re.compile(
    r'^[ \'"]*(?:from (vit_jax[\w.]*) import (\([^)]*\)|[^\n;({]*)'
    r'|import (vit_jax[\w.]*))',
    re.MULTILINE,
  )
  wrong = set()
  for folder in ('vit_jax', 'configs', 'scripts', 'tests'):
    for file in (ROOT / folder).rglob('*.py'):
      for module, names, plain in statement.findall(file.read_text()):
        path = ROOT / (module or plain).replace('.', '/')
        exists = path.is_dir() or path.with_suffix('.py').is_file()
        if path.is_dir():
          own = re.findall(r'\w+', (path / '__init__.py').read_text())
          names = re.sub(r'#.*|\\n.*|[()\'"]', '', names)
          for name in filter(None, map(str.strip, names.split(','))):
            target = path / (name := name.split()[0])
            is_module = target.is_dir() or target.with_suffix('.py').is_file()
            exists &= is_module or name in own
        if not exists:
          wrong.add(f'{file.relative_to(ROOT)}: {module or plain} {names}')
  assert wrong == set()


def test_configs_import_nothing_heavy():
  files = [str(file) for file in sorted((ROOT / 'configs').glob('*.py'))]
  assert len(files) > 10
  assert _heavy_after(f'[runpy.run_path(file) for file in {files}]') == '[]'


@pytest.mark.parametrize('folder', ['vit_jax', 'configs', 'tests'])
def test_no_file_has_over_400_lines(folder):
  long = {
    str(file.relative_to(ROOT)): lines
    for file in (ROOT / folder).rglob('*.py')
    if (lines := len(file.read_text().splitlines())) > MAX_LINES
  }
  assert long == {}


def test_importing_the_package_imports_nothing_heavy():
  assert _heavy_after('import vit_jax, vit_jax.errors, vit_jax.lookup') == '[]'


def _heavy_after(statement: str) -> str:
  """Returns which large libraries a new process has imported after it."""
  heavy = ['jax', 'flax', 'optax', 'torch', 'tensorflow', 'numpy']
  code = (
    f'import runpy, sys; {statement}; '
    f'print([m for m in {heavy} if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  return done.stdout.strip()


@pytest.mark.parametrize(
  'folder', ['models', 'objectives', 'evaluators', 'data']
)
def test_package_init_files_are_empty(folder):
  assert (PACKAGE / folder / '__init__.py').read_text() == ''


def _module(file: pathlib.Path) -> str:
  return '.'.join(file.relative_to(ROOT).with_suffix('').parts)
