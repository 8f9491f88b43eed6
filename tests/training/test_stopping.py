"""Early stopping: when a run ends, what it saves, and how it continues."""

import json
import math

import pytest

from tests.training import tiny_runs
from vit_jax.checkpoints import format as checkpoint_format
from vit_jax.errors import UserError
from vit_jax.pretrained.formats import run as run_format
from vit_jax.training import stopping, train

# An evaluator whose values are given.
SCRIPT = """
VALUES = []

class Evaluator:
  lower_is_better = ('error',)

  def __init__(self, forward, mesh, *, metric='score'):
    self._metric = metric

  def run(self, weights):
    return {self._metric: VALUES.pop(0)}
"""


@pytest.fixture
def values(tmp_path, monkeypatch):
  """Returns the list of what the evaluator `scripted` finds next."""
  (tmp_path / 'scripted.py').write_text(SCRIPT)
  monkeypatch.syspath_prepend(tmp_path)
  import scripted

  scripted.VALUES.clear()
  return scripted.VALUES


def run(workdir, *, metric='score', stop_after=3, total_steps=20, **changes):
  evals = dict(
    val=dict(name='scripted', metric=metric, every_steps=2),
    last=dict(name='classification', data=tiny_runs.TEST, ops=''),
  )
  optimizer = dict(name='sgd', learning_rate=0.01, schedule='constant')
  config = dict(
    optimizer=optimizer,
    evals=evals,
    checkpoint=dict(keep_latest=1, keep_best=f'val/{metric}'),
    stop_after=stop_after,
    total_steps=total_steps,
    log_every_steps=1,
  )
  return train.train(workdir, **tiny_runs.plain(**config | changes))


def rows(workdir, name):
  """Returns the logged values of a metric by step."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {row['step']: row[name] for row in found if name in row}


def saved_steps(workdir):
  directory = checkpoint_format.absolute(workdir / 'checkpoints')
  return checkpoint_format.steps(directory)


def test_a_run_ends_where_it_no_longer_improves(values, tmp_path, capsys):
  workdir = tmp_path / 'run'
  # As good as before is no improvement.
  values += [1.0, 3.0, 2.0, 3.0, 2.5, 9.0]
  found = run(workdir)
  assert list(rows(workdir, 'val/score')) == [2, 4, 6, 8, 10]
  assert max(rows(workdir, 'train/loss')) == 10
  # As at the end of any run, everything is evaluated.
  assert list(rows(workdir, 'last/top1')) == [10]
  assert found['val/score'] == 2.5 and 'last/top1' in found
  assert not any('early' in name for name in found)
  # The best is kept though nothing asked for it to be saved.
  assert saved_steps(workdir) == [10, 4]
  assert run_format.read(workdir, step='best').source['step'] == 4
  assert 'best (3) at step 4' in ' '.join(capsys.readouterr().out.split())
  # The same command does nothing; with more patience the run goes on.
  assert run(workdir) == found
  assert values == [9.0]
  values += [1.0] * 4
  run(workdir, stop_after=4, total_steps=12)
  assert max(rows(workdir, 'val/score')) == 12


def test_a_run_that_continues_counts_on(values, tmp_path):
  workdir = tmp_path / 'run'
  values[:] = [1.0, 3.0, 2.0]
  run(workdir, total_steps=6)
  values[:] = [3.0, 2.5, 7.0]
  run(workdir)
  assert max(rows(workdir, 'val/score')) == 10 and values == [7.0]


def test_the_least_error_is_the_best(values, tmp_path):
  workdir = tmp_path / 'run'
  values += [3.0, 1.0, 2.0, math.nan, 0.5]
  run(workdir, metric='error', stop_after=2)
  assert values == [0.5]
  assert run_format.read(workdir, step='best').source['step'] == 4


def test_without_it_a_run_goes_to_its_end(values, tmp_path):
  values += [3.0, 2.0, 1.0]
  run(tmp_path / 'run', stop_after=None, total_steps=6)
  assert not values and saved_steps(tmp_path / 'run') == [6]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(stop_after=0), 'stop_after=0: expected 1 or more'),
    (dict(stop_after=1.5), 'stop_after=1.5: expected 1 or more'),
    (dict(checkpoint=None), 'needs the metric .*checkpoint.keep_best'),
  ],
)
def test_impossible_settings_are_named(values, tmp_path, changes, words):
  with pytest.raises(UserError, match=words):
    run(tmp_path / 'run', **changes)


def test_values_that_are_not_finite_are_no_improvement():
  early = stopping.Stopping(2, 'a', 'max')
  assert not early.improves(1, {'a': math.nan})
  assert not early.improves(2, {'b': 1.0}) and early.count == 1
  assert early.improves(3, {'a': -5.0}) and early.count == 0
  assert not early.improves(4, {'a': math.inf})
  again = stopping.Stopping(2, 'a', 'max', early.metrics())
  assert (again.best, again.best_step, again.count) == (-5.0, 3, 1)
  assert not again.ends and not again.improves(5, {'a': -5.0}) and again.ends
