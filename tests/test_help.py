"""`--help` of every command: an example, all options, the other commands."""

import argparse
import importlib
import pathlib
import re

import pytest

import vit_jax
from vit_jax import command

_PACKAGE = pathlib.Path(vit_jax.__file__).parent


def _help(name, capsys):
  module = importlib.import_module(f'vit_jax.{name}')
  with pytest.raises(SystemExit) as end:
    module.main(['--help'])
  assert end.value.code == 0
  return capsys.readouterr().out


def test_the_list_of_commands_is_complete():
  found = {
    '.'.join(file.relative_to(_PACKAGE).with_suffix('').parts)
    for file in _PACKAGE.rglob('*.py')
    if 'command.parser(' in file.read_text()
  }
  assert found == set(command.COMMANDS)


@pytest.mark.parametrize('name', command.COMMANDS)
def test_help_has_an_example_exit_codes_and_the_other_commands(name, capsys):
  text = _help(name, capsys)
  assert f'python -m vit_jax.{name} ' in text.partition('example')[2]
  for code in (0, 1, 2, 130):
    assert re.search(rf'^  {code} +\w', text, re.MULTILINE)
  others = text.partition('Other commands')[2]
  assert re.findall(r'^  ([\w.]+) ', others, re.MULTILINE) == [
    other for other in command.COMMANDS if other != name
  ]
  # In the language of the documentation of other libraries.
  assert not re.search(r'\b(mend|tells?|found out|lie|worked)\b', text)
  assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize('name', command.COMMANDS)
def test_every_option_says_what_it_does(name, monkeypatch, capsys):
  parsers = []
  add_argument = argparse._ActionsContainer.add_argument

  def noting(self, *args, **options):
    parsers.append(add_argument(self, *args, **options))
    return parsers[-1]

  monkeypatch.setattr(argparse._ActionsContainer, 'add_argument', noting)
  _help(name, capsys)
  silent = [action.dest for action in parsers if not action.help]
  assert silent in ([], ['format'])  # Its choices say it.


def test_sweep_lists_its_values(capsys):
  options = _help('sweep', capsys).partition('options:')[2]
  assert '--sweep.KEY V1,V2' in options


def test_summary_names_the_option_for_weights(capsys):
  text = _help('summary', capsys)
  options = text.partition('options:')[2]
  assert '--weights' in options and '--config' in options
