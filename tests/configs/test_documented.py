"""docs/recipes.md names the options and the settings that there are."""

import importlib
import pathlib
import re

import pytest

from vit_jax.configs import common_transfer

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / 'docs/recipes.md').read_text()


def takers(option):
  """Returns the recipes that take an option."""
  found = set()
  for file in (ROOT / 'configs').glob('[!_]*.py'):
    module = importlib.import_module(f'vit_jax.configs.{file.stem}')
    if hasattr(module, 'get_config'):
      with pytest.raises(ValueError, match='no_such_option') as e:
        module.get_config('no_such_option=1')
      if f' {option}=' in str(e.value):
        found.add(file.name)
  return found


def test_the_page_names_the_settings_and_tasks():
  for name in common_transfer.SETTINGS:
    assert f'`{name.removeprefix("vtab/")}`' in TEXT, name


@pytest.mark.parametrize(
  'option', ['extra_evals', 'fsdp', 'weight_decay', 'dropout', 'epochs']
)
def test_the_page_names_the_recipes_that_take_an_option(option):
  row = re.search(rf'\| [^|]*`{option}`[^|]* \| (.*?) \|', TEXT)[1]
  assert set(re.findall(r'`(\w+\.py)`', row)) == takers(option)


def test_all_recipes_of_imagenet21k_take_several_labels():
  assert takers('multi_label') == {
    f'vit_{name}.py' for name in ('i21k', 'l16_i21k', 'h14_i21k', 'g14')
  }
