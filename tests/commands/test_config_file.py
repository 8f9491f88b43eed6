"""Recipes are found, read and changed from the command line."""

import argparse

import pytest

from vit_jax.commands import _config_file
from vit_jax.errors import UserError

_RECIPE = """
import ml_collections

def get_config(arg='B/16'):
  if arg == 'bad':
    raise ValueError("variant 'bad': choose B/16 or S/16")
  config = ml_collections.ConfigDict()
  config.total_steps = 10
  config.model = dict(name='vit', variant=arg, num_classes=None)
  config.optimizer = dict(learning_rate=0.1, rules=[('.*', 1.0)])
  return config
"""
_WITH_DURATIONS = """
def get_config():
  return dict(
    total_epochs=90.0,
    optimizer=dict(warmup_epochs=5.0),
    evals=dict(val=dict(every_steps=50)),
    checkpoint=dict(every_epochs=30.0),
  )
"""


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / 'recipe.py'
  path.write_text(_RECIPE)
  return str(path)


def _parse(*argv):
  return _config_file.parse(argparse.ArgumentParser(), list(argv))[0]


def test_the_text_after_the_colon_is_the_argument_of_get_config(recipe):
  assert _parse(f'--config={recipe}').model.variant == 'B/16'
  assert _parse(f'--config={recipe}:S/16').model.variant == 'S/16'


def test_the_sections_keep_the_order_of_the_recipe(recipe):
  config = _parse(f'--config={recipe}', '--config.ema.decay=0.9')
  sections = _config_file.sections(config)
  assert sections == config.to_dict()  # Equal whatever the order.
  assert list(sections) == ['total_steps', 'model', 'optimizer', 'ema']
  assert list(sections['model']) == ['name', 'variant', 'num_classes']
  assert sections['optimizer']['rules'] == [('.*', 1.0)]


@pytest.mark.parametrize(
  ('change', 'section', 'key', 'expected'),
  [
    ('total_steps=20', None, 'total_steps', 20),
    ('total_steps=None', None, 'total_steps', None),
    ('model.num_classes=10', 'model', 'num_classes', 10),
    ('optimizer.learning_rate=1', 'optimizer', 'learning_rate', 1.0),
    ('optimizer.learning_rate=3e-4', 'optimizer', 'learning_rate', 3e-4),
    ("optimizer.rules=[('a', 0.)]", 'optimizer', 'rules', [('a', 0.0)]),
    ('model.scan=true', 'model', 'scan', True),
    ('model.path=/data/x', 'model', 'path', '/data/x'),
    ('ema.decay=0.9', 'ema', 'decay', 0.9),
  ],
)
def test_a_change_reaches_its_place(recipe, change, section, key, expected):
  config = _parse(f'--config={recipe}', f'--config.{change}').to_dict()
  value = (config[section] if section else config)[key]
  assert value == expected
  assert type(value) is type(expected)


@pytest.mark.parametrize(
  ('changes', 'section', 'expected'),
  [
    (['total_steps=0'], '', (0, None)),
    (['total_steps=5', 'total_epochs=2.0'], '', (5, 2.0)),
    (['total_epochs=2.0', 'total_steps=5'], '', (5, 2.0)),
    (['total_steps=None'], '', (None, 90.0)),
    (['optimizer.warmup_steps=3'], 'optimizer.warmup', (3, None)),
    (['evals.val.every_epochs=3'], 'evals.val.every', (None, 3)),
    (['checkpoint.every_steps=3'], 'checkpoint.every', (3, None)),
    (['checkpoint.every_steps=3'], 'evals.val.every', (50, None)),
  ],
)
def test_a_duration_replaces_its_other_form(recipe, changes, section, expected):
  with open(recipe, 'a') as file:
    file.write(_WITH_DURATIONS)
  config = _parse(f'--config={recipe}', *(f'--config.{c}' for c in changes))
  *folders, name = (section or 'total').split('.')
  for folder in folders:
    config = config[folder]
  assert (config.get(f'{name}_steps'), config.get(f'{name}_epochs')) == expected


def test_a_value_may_be_the_next_word(recipe):
  config = _parse('--config', recipe, '--config.total_steps', '7')
  assert config.total_steps == 7


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--config.total_steps=abc'], "a whole number such as 10, got 'abc'"),
    (['--config.total_steps=1.5'], 'a whole number such as 10, got 1.5'),
    (
      ['--config.optimizer.learning_rate=fast'],
      "learning_rate=fast: expected a finite number such as 0.1, got 'fast'",
    ),
    (['--config.model.name=3'], "expected a text such as 'vit', got 3"),
    (['--config.model=3'], 'it is a section with the keys'),
    (['--config.total_steps.x=1'], 'config.total_steps is 10, not a section'),
    (['--config.seed'], 'needs a value'),
  ],
)
def test_a_change_that_does_not_fit_says_why(recipe, argv, message):
  with pytest.raises(UserError, match=message):
    _parse(f'--config={recipe}', *argv)


def test_a_missing_file_lists_its_neighbours(recipe):
  with pytest.raises(UserError, match=r'no config file .*has: recipe\.py'):
    _parse(f'--config={recipe.replace("recipe.py", "recipes.py")}')


def test_only_recipes_are_listed(recipe, tmp_path):
  (tmp_path / 'common.py').write_text('def helper(): pass')
  with pytest.raises(UserError, match=r'has: recipe\.py$'):
    _parse(f'--config={tmp_path}/vit.py')


@pytest.mark.parametrize('path', ['configs/first', 'first.py', 'first'])
def test_a_missing_file_suggests_a_similar_recipe(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/first.py').write_text(_RECIPE)
  with pytest.raises(UserError, match=r'did you mean configs/first\.py\?'):
    _parse(f'--config={path}')


@pytest.mark.parametrize('path', ['quikstart.py', 'configs/quickstart'])
def test_a_mistyped_name_suggests_a_recipe_of_the_package(
  tmp_path, monkeypatch, path
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=r'did you mean quickstart\.py\?'):
    _parse(f'--config={path}')


@pytest.mark.parametrize('path', ['quickstart.py', 'configs/quickstart.py'])
def test_a_recipe_of_the_package_is_found_from_any_folder(
  tmp_path, monkeypatch, path
):
  monkeypatch.chdir(tmp_path)
  assert 'objective' in _parse(f'--config={path}')
  # A file of the user's own comes first.
  (tmp_path / path).parent.mkdir(exist_ok=True)
  (tmp_path / path).write_text(_RECIPE)
  assert 'objective' not in _parse(f'--config={path}')
  with pytest.raises(UserError, match=r'did you mean vit_i21k\.py\?'):
    _parse('--config=vit_i21k')


def test_an_error_of_a_recipe_is_reported(recipe):
  with pytest.raises(UserError, match='choose B/16 or S/16'):
    _parse(f'--config={recipe}:bad')


def test_a_file_without_get_config_is_reported(tmp_path):
  (tmp_path / 'a.py').write_text('')
  with pytest.raises(UserError, match='does not define get_config'):
    _parse(f'--config={tmp_path}/a.py')
