"""Mistakes at the command line: one message, no stack trace."""

import importlib
import json
import pathlib
import subprocess
import sys

import pytest

from vit_jax import main as main_lib


def _error(capsys, recipe, *changes, workdir):
  argv = [f'--config={recipe}', f'--workdir={workdir}']
  code = main_lib.main(argv + [f'--config.{c}' for c in changes])
  error = capsys.readouterr().err
  assert 'Traceback' not in error
  return code, error


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ('totl_steps=3', ['unknown key', 'totl_steps', "'total_steps'"]),
    ('model=None', ['model=None', 'a dict']),
    ('optimizer=None', ['optimizer=None', 'a dict']),
    ('model.dropout=0.1', ['dropout', 'dropout_rate']),
    ('model.name=vitt', ["'vitt'", 'vit', 'models/ has']),
    ('model.variant=Q/16', ["'Q", 'So400m']),
    ('model.variant=mu/7', ['16', '7', 'divi']),
    ('model.num_classes=10', ['num_classes=10', '4 classes', 'set --config']),
    ('input.batch_size=12', ['12', '8', 'device']),
    ('input.ops=flop_lr', ["'flop_lr'", 'flip_lr']),
    ('input.data.name=image_folder', ['image_folder', 'missing key']),
    ('optimizer.learning_rat=1', ['learning_rat', "'learning_rate'"]),
    ('optimizer.warmup_steps=2', ['warmup', '2']),
    ('optimizer.momentum=0.9', ['momentum', 'adamw']),
    ('evals.val.name=clasification', ["'clasification'", 'classification']),
    ('evals.val.every_step=1', ['every_step', 'config.evals.val']),
    ('mesh.data=3', ['3', '8', 'device']),
    ('on_nonfinite=ignore', ["'ignore'", "'stop'", "'skip'"]),
    ('max_read_seconds=0', ['max_read_seconds', 'None']),
    ('objective.loss=hinge', ["'hinge'", 'softmax', 'sigmoid']),
  ],
)
def test_a_mistake_in_the_config_ends_with_one_message(
  capsys, recipe, tmp_path, change, words
):
  code, error = _error(capsys, recipe, change, workdir=tmp_path / 'run')
  assert code == 2
  assert error.startswith('error: ')
  for word in words:
    assert word in error


def test_a_missing_data_directory_is_named(capsys, recipe, tmp_path):
  data = (
    f"{{'name': 'image_folder', 'data_dir': '{tmp_path}/no', 'split': 'train'}}"
  )
  code, error = _error(
    capsys, recipe, f'input.data={data}', workdir=tmp_path / 'run'
  )
  assert code == 2
  assert f'{tmp_path}/no' in error


def test_a_duration_in_both_forms_is_refused(capsys, recipe, tmp_path):
  changes = 'total_steps=2', 'total_epochs=1'
  code, error = _error(capsys, recipe, *changes, workdir=tmp_path / 'run')
  assert code == 2
  for word in ('exactly one', 'total_steps', 'total_epochs'):
    assert word in error


def test_a_recipe_with_epochs_is_evaluated_with_zero_steps(tmp_path, recipe):
  text = pathlib.Path(recipe).read_text()
  text = text.replace('total_steps = 2', 'total_epochs = 1.0')
  text = text.replace('warmup_steps=1', 'warmup_epochs=0.5')
  pathlib.Path(recipe).write_text(text)
  workdir = tmp_path / 'run'
  argv = [f'--config={recipe}', f'--workdir={workdir}']
  assert main_lib.main(argv) == 0
  rows = (workdir / 'metrics.jsonl').read_text().splitlines()
  trained = json.loads(rows[-1])
  # The first of several evaluations may count: written as in the recipe.
  config = json.loads((workdir / 'config.json').read_text())
  assert list(config['input']) == ['data', 'ops', 'device_ops', 'batch_size']
  assert main_lib.main([*argv, '--config.total_steps=0']) == 0
  rows = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(rows[-1])['val/loss'] == pytest.approx(trained['val/loss'])


@pytest.mark.parametrize('module', ['train', 'sweep'])
@pytest.mark.parametrize('below', ['', '/run'])
def test_a_file_as_workdir_is_refused_before_jax_is_imported(
  recipe, tmp_path, module, below
):
  (tmp_path / 'file').write_text('')
  program = f"""
import sys
from vit_jax.commands import {module}
code = {module}.main()
assert 'jax' not in sys.modules
sys.exit(code)
"""
  argv = [f'--config={recipe}', f'--workdir={tmp_path}/file{below}']
  argv += ['--sweep.seed=1'] if module == 'sweep' else []
  done = subprocess.run(
    [sys.executable, '-c', program, *argv],
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 2, done.stderr
  assert f"'{tmp_path}/file' is a file, not a folder" in done.stderr


def test_an_unwritable_workdir_is_named(capsys, recipe, tmp_path):
  (tmp_path / 'file').write_text('')
  code, error = _error(capsys, recipe, workdir=tmp_path / 'file' / 'run')
  assert code == 2
  assert str(tmp_path / 'file') in error


def test_the_traceback_is_there_for_who_asks(recipe, tmp_path):
  with pytest.raises(ValueError, match='totl_steps'):
    main_lib.main(
      [
        f'--config={recipe}',
        f'--workdir={tmp_path}',
        '--config.totl_steps=3',
        '--traceback',
      ]
    )


def test_the_command_works_from_elsewhere_with_a_relative_workdir(
  capsys, recipe, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert main_lib.main([f'--config={recipe}', '--workdir=runs/here']) == 0
  assert (tmp_path / 'runs/here/metrics.jsonl').exists()
  assert 'Traceback' not in capsys.readouterr().err


@pytest.mark.parametrize('module', ['train', 'sweep'])
def test_a_bucket_is_refused_as_workdir(
  module, capsys, recipe, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  argv = [f'--config={recipe}', '--workdir=gs://bucket/run']
  if module == 'sweep':
    argv.append('--sweep.optimizer.learning_rate=1e-3,1e-4')
  assert importlib.import_module(f'vit_jax.commands.{module}').main(argv) == 2
  assert "'gs://bucket/run'" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ['recipe.py']


def test_a_read_that_never_ends_ends_the_run(recipe, tmp_path):
  program = """
import os, sys
from vit_jax import main
from vit_jax.data.sources import synthetic
pipe, _ = os.pipe()
read = synthetic.Source.__getitem__
def getitem(self, index):
  return os.read(pipe, 1) if index == 13 else read(self, index)
synthetic.Source.__getitem__ = getitem
sys.exit(main.main())
"""
  done = subprocess.run(
    [sys.executable, '-c', program, f'--config={recipe}']
    + [f'--workdir={tmp_path / "run"}', '--config.max_read_seconds=2'],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 1
  (error,) = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
  assert "record 13 of 'train'" in error
  assert 'the same command continues' in error
