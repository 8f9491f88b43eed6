"""`--help` of every command: an example, all options, the other commands."""

import argparse
import re

import pytest

from vit_jax import __main__ as main, lookup
from vit_jax.suggestions import exported

_COMMANDS = lookup.names('commands')


def _help(name, capsys):
  with pytest.raises(SystemExit) as end:
    main.main([name, '--help'])
  assert end.value.code == 0
  return capsys.readouterr().out


def test_every_file_of_the_folder_is_a_command():
  assert {'train', 'predict', 'prepare'} <= set(_COMMANDS)
  assert not any('main' not in exported(f'commands/{c}') for c in _COMMANDS)


def test_help_without_a_command_lists_all(capsys):
  assert main.main(['--help']) == 0
  text = capsys.readouterr().out
  assert re.findall(r'^  ([a-z_]+) +\w', text, re.MULTILINE) == _COMMANDS
  assert main.main([]) == 2
  assert capsys.readouterr().out == text


def test_a_mistyped_command_suggests_a_similar_one(capsys):
  assert main.main(['predit', 'cat.jpg']) == 2
  assert "did you mean 'predict'?" in capsys.readouterr().err


def test_a_command_of_the_user_s_own_has_a_dotted_name(tmp_path, monkeypatch):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/count.py').write_text('def main(argv): return len(argv)')
  monkeypatch.syspath_prepend(tmp_path)
  assert main.main(['mine.count', 'a', 'b', 'c']) == 3


@pytest.mark.parametrize('name', _COMMANDS)
def test_help_has_an_example_exit_codes_and_the_other_commands(name, capsys):
  text = _help(name, capsys)
  assert f'python -m vit_jax {name} ' in text.partition('example')[2]
  for code in (0, 1, 2, 130):
    assert re.search(rf'^  {code} +\w', text, re.MULTILINE)
  others = text.partition('Other commands')[2]
  assert re.findall(r'^  ([\w.]+) ', others, re.MULTILINE) == [
    other for other in _COMMANDS if other != name
  ]
  # In the language of the documentation of other libraries.
  assert not re.search(r'\b(mend|tells?|found out|lie|worked)\b', text)
  assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize('name', _COMMANDS)
def test_every_option_has_help(name, monkeypatch, capsys):
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
