"""Exit codes and messages of commands that fail."""

import subprocess
import sys

import grain
import jax
import pytest

from vit_jax.commands import _cli
from vit_jax.errors import RunError, UserError


def test_notes_about_a_hidden_stack_trace_are_left_out(capsys):
  def fail(argv):
    error = UserError('the data is broken')
    error.add_note('in the evaluator val')
    raise error

  @jax.jit
  def in_jax(x):
    fail([])

  def in_grain(argv):
    stream = grain.MapDataset.range(2).map(fail).to_iter_dataset()
    next(iter(stream))

  for broken in (fail, lambda argv: in_jax(1.0), in_grain):
    assert _cli.run(broken, []) == 2
    err = capsys.readouterr().err
    assert err == 'error: the data is broken\nin the evaluator val\n'


def test_the_exit_code_says_whether_the_user_can_fix_it(capsys):
  def fail(argv):
    raise RunError('the disk is full')

  assert _cli.run(fail, []) == 1
  assert _cli.run(lambda argv: None, []) == 0
  assert _cli.run(lambda argv: 42, []) == 42
  assert capsys.readouterr().err == 'error: the disk is full\n'


_LARGE = """
import io, warnings
from PIL import Image
from vit_jax.commands import _cli
from vit_jax.data.ops.decode import decode_image

def read(argv=()):
  file = io.BytesIO()
  Image.new('L', (2, 2)).save(file, 'PNG')
  Image.MAX_IMAGE_PIXELS = 3  # Twice as many are an error.
  with warnings.catch_warnings(record=True) as seen:
    decode_image(file.getvalue())
  print(*(w.category.__name__ for w in seen))

read()
_cli.run(read, [])
"""


def test_only_commands_ignore_pillows_warnings():
  done = subprocess.run(
    [sys.executable, '-c', _LARGE], capture_output=True, text=True
  )
  assert done.stdout == 'DecompressionBombWarning\n\n', done.stderr


def test_a_name_that_the_terminal_cannot_show_is_escaped(capsys):
  def show(argv):
    print('fl\udcfcgel')

  assert _cli.run(show, []) == 0
  assert capsys.readouterr().out == '\\udcfc'.join(['fl', 'gel\n'])


def test_a_checkpoint_is_named_by_its_number_or_by_best_or_newest():
  parser = _cli.parser('predict', 'Predicts.')
  _cli.add_weights_options(parser)

  options = _cli.weights_options(parser.parse_args(['--part=backbone']))
  assert options['part'] == 'backbone'

  def step(*argv):
    return _cli.weights_options(parser.parse_args(argv))['step']

  assert step() is None
  assert step('--step=12') == 12
  assert step('--step=best') == 'best'
  assert step('--step=newest') == 'newest'
  with pytest.raises(UserError, match="'best' or 'newest'; got last"):
    step('--step=last')


def test_a_bar_is_drawn_on_a_terminal_only(monkeypatch, capsys):
  with _cli.progress('work', 100) as advance:
    advance()
  assert capsys.readouterr().err == ''
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  monkeypatch.setenv('TERM', 'xterm')
  with _cli.progress('work', 100, done=40) as advance:
    for _ in range(60):
      advance()
  assert '100/100' in capsys.readouterr().err
