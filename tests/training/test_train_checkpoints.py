"""Files that a run saves beside its weights, read when it continues."""

import json
import shutil

import pytest

from vit_jax.checkpoints import format as checkpoint_format, manager
from vit_jax.training import session, train

CONFIG = dict(
  model=dict(name='vit', variant='mu/8', num_classes=4),
  objective=dict(name='supervised'),
  input=dict(
    data=dict(name='synthetic', split='train', image_size=8, num_classes=4),
    ops='',
    device_ops='normalize(-1, 1)',
    batch_size=8,
  ),
  optimizer=dict(name='sgd', learning_rate=0.1, schedule='constant'),
  evals=dict(
    val=dict(
      name='classification',
      data=dict(
        name='synthetic',
        split='test',
        image_size=8,
        num_classes=4,
        num_examples=8,
      ),
      ops='',
      every_steps=2,
    )
  ),
  checkpoint=dict(every_steps=3, keep_latest=9),
  total_steps=4,
  log_every_steps=1,
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  return workdir, train.train(workdir, **CONFIG)


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of a finished run."""
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  return tmp_path


def test_the_best_checkpoint_by_a_loss_is_that_of_the_lowest(tmp_path):
  checkpoint = dict(every_steps=2, keep_latest=1, keep_best='val/loss')
  train.train(tmp_path, **CONFIG | dict(checkpoint=checkpoint))
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  losses = {x['step']: x.get('val/loss') for x in map(json.loads, rows)}
  assert losses[4] < losses[2]  # Or it would say nothing about the direction.
  found = checkpoint_format.absolute(tmp_path / 'checkpoints')
  assert checkpoint_format.steps(found) == [4]
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['checkpoint']['keep_best_mode'] == 'min'


def test_a_checkpoint_has_the_metrics_of_its_own_step_only(finished):
  workdir, results = finished
  directory = checkpoint_format.absolute(workdir / 'checkpoints')
  metrics = {
    step: checkpoint_format.read_meta(directory, step)['metrics']
    for step in checkpoint_format.steps(directory)
  }
  # Evaluated were 2 and 4: keep_best must not take step 3 for that of step 2.
  assert metrics == {3: {}, 4: results}


def test_a_run_that_fails_waits_for_its_checkpoint(tmp_path, monkeypatch):
  closed, close = [], manager.Checkpointer.close

  def note(self):
    close(self)
    # Nobody else may write there before.
    closed.append((tmp_path / 'run.lock').exists())

  def fail(*_):
    raise OSError('no such device')

  monkeypatch.setattr(manager.Checkpointer, 'close', note)
  monkeypatch.setattr(session, 'initialize', fail)
  with pytest.raises(OSError, match='no such device'):
    train.train(tmp_path, **CONFIG)
  assert closed == [True]


def test_rows_lost_between_two_runs_are_named_when_it_continues(
  workdir, capsys
):
  train.train(workdir, **CONFIG | dict(total_steps=5))
  assert 'rows (steps' not in capsys.readouterr().out
  (workdir / 'metrics.jsonl').unlink()
  train.train(workdir, **CONFIG | dict(total_steps=6))
  assert (
    f'{workdir}/metrics.jsonl has 0 of the 5 rows (steps 1 to 5) that were '
    'logged until this checkpoint. The weights are not affected'
  ) in capsys.readouterr().out


def test_a_checkpoint_of_an_older_version_says_nothing_of_its_rows(
  workdir, capsys, monkeypatch
):
  make_meta = checkpoint_format.make_meta
  monkeypatch.setattr(
    checkpoint_format, 'make_meta', lambda *args: make_meta(*args[:4])
  )
  train.train(workdir, **CONFIG | dict(total_steps=5))
  (workdir / 'metrics.jsonl').unlink()
  train.train(workdir, **CONFIG | dict(total_steps=6))
  out = capsys.readouterr().out
  assert 'continuing from step 5' in out
  assert 'rows (steps' not in out
