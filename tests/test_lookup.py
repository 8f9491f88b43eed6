"""Lookup of names in a config: what is found, and the message where not."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import ml_collections
import pytest

from vit_jax import lookup, suggestions
from vit_jax.errors import UserError


def _objective(model, *, loss='softmax', label_smoothing=0.0, weight):
  return model, loss, label_smoothing, weight


def test_names_lists_the_files_of_a_folder():
  folder = pathlib.Path(lookup.__file__).parent / 'objectives'
  names = lookup.names('objectives')
  assert 'supervised' in names and '__init__' not in names
  assert all((folder / f'{name}.py').is_file() for name in names)


def test_a_name_is_a_file_of_the_folder():
  from vit_jax.objectives import supervised

  found = lookup.find('objectives', 'supervised', 'Objective')
  assert found is supervised.Objective


def test_a_dotted_name_is_the_users_own_module(tmp_path, monkeypatch):
  (tmp_path / 'my_lab').mkdir()
  (tmp_path / 'my_lab' / 'cait.py').write_text('def Model(depth): return depth')
  monkeypatch.syspath_prepend(tmp_path)
  section = {'name': 'my_lab.cait', 'depth': 7}
  assert lookup.build('models', section, 'Model', trusted=True) == 7


def test_an_unknown_name_gets_the_choices_and_a_guess():
  with pytest.raises(UserError) as error:
    lookup.find('objectives', 'supervisd', 'Objective')
  text = str(error.value)
  assert "no objective named 'supervisd'" in text
  assert "did you mean 'supervised'?" in text


@pytest.mark.parametrize(
  ('folder', 'kind'),
  [
    ('commands', 'command'),
    ('visualize', 'picture'),
    ('data/sources', 'data source'),
    ('data/device_ops', 'device op'),
  ],
)
def test_an_unknown_name_is_called_by_what_it_should_be(folder, kind):
  with pytest.raises(UserError, match=f"^no {kind} named 'foo'; {folder}/ has"):
    lookup.find(folder, 'foo', 'main')


@pytest.mark.parametrize('name', ['nowhere.cait', 'json.nothing'])
def test_a_dotted_name_that_cannot_be_imported_is_an_error(name):
  with pytest.raises(UserError, match=f"no model named '{name}'.*PYTHONPATH"):
    lookup.find('models', name, 'Model', trusted=True)


def test_a_file_without_the_export_is_named():
  with pytest.raises(UserError, match=r"decoder\.py does not define 'Model'"):
    lookup.find('models', 'json.decoder', 'Model', trusted=True)


def test_an_import_error_inside_the_users_module_is_not_swallowed(
  tmp_path, monkeypatch
):
  (tmp_path / 'lab2').mkdir()
  (tmp_path / 'lab2' / 'm.py').write_text('import not_installed_anywhere')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match='not_installed_anywhere'):
    lookup.find('models', 'lab2.m', 'Model', trusted=True)


def test_build_needs_a_name():
  with pytest.raises(UserError, match='the models section needs a name'):
    lookup.build('models', {'variant': 'B/16'}, 'Model')
  with pytest.raises(UserError, match=r'config\.evals\.val .*needs a name'):
    lookup.build('evaluators', {}, 'Evaluator', where='config.evals.val')
  with pytest.raises(UserError, match='models section needs a name; got None'):
    lookup.build('models', None, 'Model')


def test_build_leaves_the_section_as_it_was(tmp_path, monkeypatch):
  (tmp_path / 'lab3').mkdir()
  (tmp_path / 'lab3' / 'm.py').write_text(
    'def Model(a, *, b, c): return a, b, c'
  )
  monkeypatch.syspath_prepend(tmp_path)
  section = {'name': 'lab3.m', 'b': 2}
  built = lookup.build('models', section, 'Model', 1, c=3, trusted=True)
  assert built == (1, 2, 3)
  assert section == {'name': 'lab3.m', 'b': 2}


def test_unknown_and_missing_keys_are_reported_at_once():
  with pytest.raises(UserError) as error:
    lookup.check_keys(
      _objective, {'los': 'sigmoid'}, 'objectives/mine', num_args=1
    )
  assert str(error.value) == (
    "objectives/mine: unknown key 'los' (did you mean 'loss'?); missing key "
    "'weight'; it takes: ['loss', 'label_smoothing', 'weight']"
  )


def test_attributes_added_by_flax_are_no_keys():
  class Model(nn.Module):
    depth: int

  with pytest.raises(UserError) as error:
    lookup.check_keys(Model, {'variant': 'B/16', 'depth': 2}, 'models/mine')
  assert str(error.value) == (
    "models/mine: unknown key 'variant'; it takes: ['depth']"
  )


def test_a_config_dict_is_a_section():
  section = ml_collections.ConfigDict(dict(name='digits', split='train'))
  assert len(lookup.build('data/sources', section, 'Source')) > 1000


def test_a_value_in_place_of_a_section_is_named():
  with pytest.raises(UserError, match=r"x is a section .*'weight'\]; got 3"):
    lookup.check_keys(_objective, 3, 'x', num_args=1)


def test_keys_that_the_caller_gives_are_not_the_configs():
  lookup.check_keys(_objective, {}, 'x', given=['weight'], num_args=1)
  with pytest.raises(UserError, match="unknown key 'weight'"):
    lookup.check_keys(
      _objective, {'weight': 1}, 'x', given=['weight'], num_args=1
    )
  with pytest.raises(UserError, match="unknown key 'model'"):
    lookup.check_keys(_objective, {'model': 1, 'weight': 1}, 'x', num_args=1)


def test_a_function_that_takes_any_key_gets_it():
  lookup.check_keys(lambda **options: options, {'anything': 1}, 'x')


def test_a_value_of_another_type_than_the_signature_says_is_named():
  def target(
    path: str,
    paths: str | Sequence[str],
    names: Sequence[str] | str | None = None,
    sources: Mapping[str, Any] | None = None,
    size: int = 3,
    rate: float | None = None,
    flag: bool = False,
    other: str | int = 3,
    anything=None,
  ):
    pass

  fine = dict(path='a', paths=['a'], names=None, sources={}, size=2, other=2)
  fine |= dict(rate=1, flag=True, anything=object())
  lookup.check_keys(target, fine, 'x')
  lookup.check_keys(target, fine | dict(path=pathlib.Path('a')), 'x')
  with pytest.raises(UserError) as error:
    bad = dict(path=None, paths=3, names=4, sources='a', size=1.5, flag=1)
    lookup.check_keys(target, bad | dict(rate=float('nan'), other=None), 'x')
  assert str(error.value) == (
    'x: path=None, expected a text; paths=3, expected a text or a list; '
    "names=4, expected a list or a text or None; sources='a', expected a dict "
    'or None; size=1.5, expected a whole number; rate=nan, expected a finite '
    'number or None; flag=1, expected True or False; other=None, expected a '
    'text or a whole number'
  )


def test_a_target_of_any_keys_still_checks_those_that_it_names():
  def target(variant: str, **others):
    pass

  lookup.check_keys(target, dict(variant='a', width=3), 'x')
  with pytest.raises(UserError, match='variant=3, expected a text'):
    lookup.check_keys(target, dict(variant=3, width=3), 'x')


@pytest.mark.parametrize('name', ['../../etc/passwd', '.', 'a..b', 3, None])
def test_impossible_names_are_refused(name):
  with pytest.raises(UserError, match='no model named'):
    lookup.find('models', name, 'Model', trusted=True)


def test_a_helper_is_neither_offered_nor_found():
  helpers = (pathlib.Path(lookup.__file__).parent / 'models').glob('_[a-z]*.py')
  helpers = [path.stem for path in helpers]
  assert helpers and not set(helpers) & set(lookup.names('models'))
  for name in (helpers[0], helpers[0].removeprefix('_')):
    with pytest.raises(
      UserError, match=f"no model named '{name}'.* has: .*vit"
    ):
      lookup.find('models', name, 'Model', trusted=True)


def test_every_nameable_file_defines_the_exports_of_its_folder():
  for folder, export in (
    ('models', 'Model'),
    ('objectives', 'Objective'),
    ('evaluators', 'Evaluator'),
    ('visualize', 'Picture'),
    ('data/sources', 'Source'),
  ):
    for name in lookup.names(folder):
      assert export in suggestions.exported(f'{folder}/{name}'), (folder, name)


def test_a_file_of_the_users_own_needs_no_folder(tmp_path, monkeypatch):
  (tmp_path / 'my_cait.py').write_text('def Model(depth): return depth')
  monkeypatch.syspath_prepend(tmp_path)
  section = {'name': 'my_cait', 'depth': 7}
  assert lookup.build('models', section, 'Model', trusted=True) == 7
  with pytest.raises(UserError, match=r"'my_cait'.*If you trust that module"):
    lookup.build('models', section, 'Model')


def test_a_file_of_the_folder_comes_before_one_of_the_users(
  tmp_path, monkeypatch
):
  from vit_jax.objectives import supervised

  (tmp_path / 'supervised.py').write_text('Objective = 3')
  monkeypatch.syspath_prepend(tmp_path)
  found = lookup.find('objectives', 'supervised', 'Objective', trusted=True)
  assert found is supervised.Objective


# Of Python, a bare folder, and a mistyped name.
@pytest.mark.parametrize('name', ['random', 'my_empty_folder', 'supervisd'])
def test_an_absent_module_is_refused_with_the_choices(
  name, tmp_path, monkeypatch
):
  (tmp_path / 'my_empty_folder').mkdir()
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match=f"named '{name}'.* has: .*supervised"):
    lookup.find('objectives', name, 'Objective', trusted=True)


def test_model_fields_other_than_a_table_are_named(tmp_path, monkeypatch):
  (tmp_path / 'flat_fields.py').write_text("FIELDS = ('width',)\n")
  monkeypatch.syspath_prepend(tmp_path)
  section = dict(name='flat_fields')
  with pytest.raises(UserError, match=r"dict of fields by kind.*'width'"):
    lookup.model_fields(section, 'cost', trusted=True)
