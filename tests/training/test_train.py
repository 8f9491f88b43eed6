"""The loop as a user runs it: it ends, it continues, it says what is wrong."""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import PIL.Image
import pytest

import vit_jax
from tests.training import tiny_runs
from vit_jax import errors, trees
from vit_jax.evaluators import classification
from vit_jax.reporting import progress
from vit_jax.training import train

_ROOT = pathlib.Path(__file__).parents[2]


def _write_recipe(folder, config):
  path = folder / 'recipe.py'
  path.write_text(
    'import ml_collections\n'
    f'def get_config():\n  return ml_collections.ConfigDict({config})\n'
  )
  return path


def _write_source(folder, name, text):
  (folder / 'mine').mkdir()
  (folder / 'mine' / f'{name}.py').write_text(text)


def _command(recipe, workdir, *, devices=8):
  flags = os.environ['XLA_FLAGS'].replace(
    'device_count=8', f'device_count={devices}'
  )
  path = f'{_ROOT}{os.pathsep}{recipe.parent}'
  return subprocess.Popen(
    [sys.executable, '-m', 'vit_jax.main']
    + [f'--config={recipe}', f'--workdir={workdir}'],
    env=dict(os.environ, PYTHONPATH=path, XLA_FLAGS=flags),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _state(workdir):
  """Returns every leaf of the newest checkpoint as a numpy array."""
  manager = ocp.CheckpointManager(workdir / 'checkpoints')
  step = manager.latest_step()
  state = manager.restore(
    step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
  )['state']
  manager.close()
  return step, {k: np.asarray(x) for k, x in trees.flatten(state).items()}


def _assert_same_run(one, other):
  assert tiny_runs.rows(one, timing=False) == tiny_runs.rows(
    other, timing=False
  )
  (step, ours), (other_step, theirs) = _state(one), _state(other)
  assert step == other_step == 12
  assert ours.keys() == theirs.keys()
  for name, leaf in ours.items():
    assert leaf.tobytes() == theirs[name].tobytes(), name


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Returns the folder of a finished run, and its results."""
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  return workdir, train.train(workdir, **tiny_runs.eventful())


@pytest.fixture
def again(finished, tmp_path):
  """Returns a copy of the finished run, and its results."""
  workdir, results = finished
  return shutil.copytree(workdir, tmp_path / 'run'), results


def test_every_step_has_one_row_with_its_own_numbers(
  tmp_path, capsys, monkeypatch
):
  shown, status = [], progress.Progress.status

  def spy(self, text):
    shown.append(text)
    return status(self, text)

  monkeypatch.setattr(progress.Progress, 'status', spy)
  results = train.train(tmp_path, **tiny_runs.eventful())
  lines = capsys.readouterr().out.splitlines()
  assert 'compiling the training step' in lines
  assert shown[:3] == ['compiling', 'evaluating val', 'evaluating val_ema']
  # The last line of the progress has the last evaluation, as the table below.
  last = next(line for line in reversed(lines) if 'step 12/12' in line)
  assert f'val/top1 {results["val/top1"]:.4g}  ETA' in last
  rows = tiny_runs.rows(tmp_path)
  assert [row['step'] for row in rows] == list(range(1, 13))
  assert [row['step'] for row in rows if 'val/top1' in row] == [4, 8, 12]
  assert rows[-1]['val/top1'] == results['val/top1']
  assert rows[-1]['val_ema/top1'] == results['val_ema/top1']
  assert results['val/num_examples'] == 21
  # The warm-up of 2 steps: half the rate, then all of it, then the cosine.
  rates = [row['train/learning_rate'] for row in rows]
  cosine = 0.5 * (1 + np.cos(np.pi * 1 / 10))
  np.testing.assert_allclose(
    rates[:3], [1.5e-3, 3e-3, 3e-3 * cosine], rtol=1e-5
  )
  assert rates[-1] == 0


_KILLER = '''
"""The synthetic images, until as many were read as KILL_AFTER says."""
import itertools, os, signal
from vit_jax.data.sources import synthetic

_reads = itertools.count(1)

class Source(synthetic.Source):
  def __getitem__(self, index):
    if next(_reads) == int(os.environ.get('KILL_AFTER', -1)):
      os.kill(os.getpid(), int(os.environ['KILL_WITH']))
    return super().__getitem__(index)
'''


@pytest.mark.parametrize('devices', [1, 8])
def test_a_killed_run_continues_with_the_same_bits(
  tmp_path, monkeypatch, devices, request
):
  _write_source(tmp_path, 'killer', _KILLER)
  config = tiny_runs.eventful('mine.killer')
  recipe = _write_recipe(tmp_path, config)
  # Step 8 of 12 or so: after the checkpoint of step 6, amid the next steps.
  monkeypatch.setenv('KILL_AFTER', '150')
  monkeypatch.setenv('KILL_WITH', str(int(signal.SIGKILL)))
  killed = _command(recipe, tmp_path / 'killed', devices=devices)
  output = killed.communicate(timeout=120)[0]
  assert killed.returncode == -signal.SIGKILL, output
  assert 0 < len(tiny_runs.rows(tmp_path / 'killed')) < 12

  monkeypatch.delenv('KILL_AFTER')

  def finish(workdir):
    run = _command(recipe, tmp_path / workdir, devices=devices)
    output = run.communicate(timeout=120)[0]
    assert run.returncode == 0, output
    return output

  assert 'continuing from step' in finish('killed')
  if devices == 8:  # As many as here.
    whole, _ = request.getfixturevalue('finished')
  else:
    finish('whole')
    whole = tmp_path / 'whole'
  _assert_same_run(tmp_path / 'killed', whole)


def test_sigterm_saves_and_exits_with_42(tmp_path, monkeypatch):
  _write_source(tmp_path, 'killer', _KILLER)
  config = tiny_runs.eventful('mine.killer', checkpoint={})
  recipe = _write_recipe(tmp_path, config)
  monkeypatch.setenv('KILL_AFTER', '120')
  monkeypatch.setenv('KILL_WITH', str(int(signal.SIGTERM)))
  stopped = _command(recipe, tmp_path / 'run')
  output = stopped.communicate(timeout=120)[0]
  assert stopped.returncode == 42, output
  step, state = _state(tmp_path / 'run')
  assert 0 < step < 12
  assert state['step'] == step
  assert [row['step'] for row in tiny_runs.rows(tmp_path / 'run')] == list(
    range(1, step + 1)
  )


@pytest.mark.parametrize('total_steps', [0, 1])
def test_a_signal_ends_an_evaluation_at_once_where_nothing_is_to_be_saved(
  tmp_path, monkeypatch, total_steps
):
  handlers = []
  evaluate = classification.Evaluator.run

  def run(self, params):
    handlers.append(signal.getsignal(signal.SIGTERM))
    return evaluate(self, params)

  monkeypatch.setattr(classification.Evaluator, 'run', run)
  before = signal.getsignal(signal.SIGTERM)
  optimizer = dict(name='adamw', learning_rate=0.1)
  train.train(
    tmp_path, **tiny_runs.eventful(total_steps=total_steps, optimizer=optimizer)
  )
  assert {handler == before for handler in handlers} == {total_steps == 0}


def test_a_finished_run_says_so_and_evaluates_nothing_twice(
  again, capsys, monkeypatch
):
  workdir, results = again
  before = tiny_runs.rows(workdir)
  monkeypatch.setattr(
    train.evaluation, 'evaluate', lambda *_: pytest.fail('evaluated again')
  )
  assert train.train(workdir, **tiny_runs.eventful()) == pytest.approx(results)
  output = capsys.readouterr().out
  assert 'this run is finished: step 12 of 12' in output
  assert 'raise total_steps or total_epochs' in output
  assert tiny_runs.rows(workdir) == before


def test_a_slow_first_step_is_shown_once_and_with_its_metrics(
  tmp_path, capsys, monkeypatch
):
  # As where compiling takes longer than the time between two lines.
  always = functools.partial(progress.Progress, every_seconds=0)
  monkeypatch.setattr(progress, 'Progress', always)
  train.train(tmp_path, **tiny_runs.eventful(evals=None))
  output = capsys.readouterr().out
  assert 'starting from scratch' in output
  lines = [x for x in output.splitlines() if re.match(r'step [1-9]', x)]
  assert [int(x.split('/')[0].split()[1]) for x in lines] == list(range(1, 13))
  assert all('loss' in line for line in lines)


def test_zero_steps_evaluate_the_initial_weights(tmp_path, again):
  fresh = train.train(tmp_path / 'fresh', **tiny_runs.eventful(total_steps=0))
  assert tiny_runs.rows(tmp_path / 'fresh') == [{'step': 0, **fresh}]
  workdir, results = again
  rows = tiny_runs.rows(workdir)
  config = (workdir / 'config.json').read_bytes()
  found = train.train(workdir, **tiny_runs.eventful(total_steps=0))
  assert (workdir / 'config.json').read_bytes() == config  # What trained it.
  assert found == pytest.approx(results, abs=1e-6)
  assert [row['step'] for row in tiny_runs.rows(workdir)] == list(range(1, 13))
  assert tiny_runs.rows(workdir)[-1]['train/loss'] == rows[-1]['train/loss']


def test_a_longer_run_goes_on_where_the_shorter_one_ended(tmp_path):
  constant = dict(name='sgd', learning_rate=0.1, schedule='constant')
  short = tiny_runs.eventful(total_steps=6, optimizer=constant)
  train.train(tmp_path / 'run', **short)
  train.train(tmp_path / 'run', **tiny_runs.eventful(optimizer=constant))
  train.train(tmp_path / 'whole', **tiny_runs.eventful(optimizer=constant))
  keep = [
    [{k: r[k] for k in ('step', 'train/loss', 'train/top1')} for r in rows]
    for rows in (
      tiny_runs.rows(tmp_path / 'run'),
      tiny_runs.rows(tmp_path / 'whole'),
    )
  ]
  assert keep[0] == keep[1]


def test_a_short_run_logs_each_twentieth_of_its_steps(tmp_path):
  constant = dict(name='sgd', learning_rate=0.1, schedule='constant')
  short = tiny_runs.eventful(optimizer=constant, evals={}, log_every_steps=50)
  train.train(tmp_path, **short | dict(total_steps=46))
  assert [row['step'] for row in tiny_runs.rows(tmp_path)] == list(
    range(2, 47, 2)
  )
  # A longer one has its own cadence, from where the shorter one ended.
  train.train(tmp_path, **short | dict(total_steps=60))
  assert [row['step'] for row in tiny_runs.rows(tmp_path)] == [
    *range(2, 47, 2),
    *range(48, 61, 3),
  ]


def test_another_model_in_the_same_workdir_is_refused(tmp_path):
  train.train(tmp_path, **tiny_runs.eventful(total_steps=3))
  config = tiny_runs.eventful()
  config['model']['variant'] = 'mu/4'
  with pytest.raises(errors.UserError, match="'mu/8' in the checkpoint"):
    train.train(tmp_path, **config)


def test_broken_images_can_be_skipped_and_are_reported(tmp_path, capsys):
  for split in ('train', 'test'):
    for label, name in enumerate(('cat', 'dog')):
      folder = tmp_path / 'data' / split / name
      folder.mkdir(parents=True)
      for i in range(12):
        image = np.full((16, 16, 3), 40 * i % 255 + label, np.uint8)
        PIL.Image.fromarray(image).save(folder / f'{i}.png')
  (tmp_path / 'data/train/cat/3.png').write_bytes(b'not a picture')
  config = tiny_runs.eventful(evals={}, total_steps=3)
  config['model']['num_classes'] = 2
  config['input'] |= dict(
    data=dict(
      name='image_folder', data_dir=str(tmp_path / 'data'), split='train'
    ),
    ops='decode|resize(16)',
  )
  with pytest.raises(errors.UserError, match=r'cat/3\.png'):
    train.train(tmp_path / 'stops', **config)
  config['input']['on_error'] = 'skip'
  train.train(tmp_path / 'skips', **config)
  assert 'cat/3.png' in capsys.readouterr().out
  assert tiny_runs.rows(tmp_path / 'skips')[-1]['train/skipped_examples'] == 1


def test_a_head_of_zeros_under_lamb_is_a_warning_at_the_start(tmp_path, capsys):
  config = tiny_runs.plain(
    optimizer=dict(name='lamb', learning_rate=1e-3, weight_decay=0.05)
  )
  train.train(tmp_path / 'zero', **config)
  output = capsys.readouterr().out
  assert output.count('WARNING: head/kernel: all zeros at the start') == 1
  train.train(tmp_path / 'zero', **config | dict(total_steps=3))
  assert 'all zeros' not in capsys.readouterr().out
  config['model'] = config['model'] | dict(weight_init='torch')
  train.train(tmp_path / 'random', **config)
  assert 'all zeros' not in capsys.readouterr().out


def test_a_continued_run_does_not_trace_steps_that_it_took_before(
  tmp_path, capsys
):
  train.train(tmp_path / 'run', **tiny_runs.plain())
  train.train(tmp_path / 'run', **tiny_runs.plain(total_steps=3), profile='2:3')
  assert 'no trace, since this run continues after step 2' in (
    ' '.join(capsys.readouterr().out.split())
  )
  assert not (tmp_path / 'run' / 'profile').exists()


@pytest.mark.parametrize(
  'kind', [ml_collections.ConfigDict, ml_collections.FrozenConfigDict]
)
def test_a_run_of_config_dicts_can_be_loaded(tmp_path, kind):
  config = tiny_runs.plain(checkpoint=dict(keep_latest=1))
  sections = {
    k: kind(x) if isinstance(x, dict) else x for k, x in config.items()
  }
  train.train(tmp_path / 'run', **sections)
  saved = json.loads((tmp_path / 'run/config.json').read_text())
  assert {k: saved[k] for k in config} == config
  if kind is ml_collections.ConfigDict:  # A frozen one sorts its keys.
    assert list(saved['input']) == list(config['input'])
  model = vit_jax.load(tmp_path / 'run', ops='decode|resize(16)', on_log=str)
  assert model(np.zeros((16, 16, 3), np.uint8))['logits'].shape == (4,)
  # The entries of a list are sections too.
  entry = kind(dict(weights=str(tmp_path / 'run')))
  train.train(tmp_path / 'next', **sections, init_from=[entry])
  saved = json.loads((tmp_path / 'next/config.json').read_text())
  assert saved['init_from'] == [dict(weights=str(tmp_path / 'run'))]
