"""Loggers: what a run hands to trackers, and that they never end it."""

import json
import sys

import numpy as np
import pytest

from tests.training import tiny_runs
from vit_jax.errors import UserError
from vit_jax.reporting import metrics as metrics_lib, run_loggers
from vit_jax.training import train

MODULE = '''
"""A tracker that writes lines of JSON."""
import json, pathlib

class Logger:
  def __init__(self, *, workdir, config, run_id, folder, fails=''):
    if fails == 'init':
      raise RuntimeError('no server')
    self.fails = fails
    self.run_id = run_id or f'run-{len(list(pathlib.Path(folder).iterdir()))}'
    self.file = pathlib.Path(folder, self.run_id)
    self._line(begin=config['model']['variant'], workdir=str(workdir))

  def _line(self, **row):
    with self.file.open('a') as f:
      f.write(json.dumps(row) + chr(10))

  def write(self, step, metrics):
    if self.fails == 'write':
      raise ConnectionError('the server\\x1b[31m is gone')
    self._line(step=step, **metrics)

  def write_image(self, step, name, path):
    self._line(step=step, image=name, bytes=path.stat().st_size)

  def close(self, failed):
    self._line(failed=failed)
'''


@pytest.fixture
def tracked(tmp_path, monkeypatch):
  """Returns the section of a tracker of the user's and the folder it fills."""
  (tmp_path / 'my_tracker.py').write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  sys.modules.pop('my_tracker', None)
  folder = tmp_path / 'server'
  folder.mkdir()
  return dict(name='my_tracker', folder=str(folder)), folder


def lines(folder, name='run-0'):
  return [json.loads(x) for x in (folder / name).read_text().splitlines()]


def test_a_run_and_its_continuation_are_one_run_of_the_tracker(
  tracked, tmp_path
):
  section, folder = tracked
  config = tiny_runs.plain(
    loggers=[section],
    log_every_steps=1,
    pictures=dict(curves=dict(name='curves')),
  )
  train.train(tmp_path / 'run', **config)
  rows = tiny_runs.rows(tmp_path / 'run', timing=False)
  begin, *logged, end = lines(folder)
  assert begin == dict(begin='mu/8', workdir=str(tmp_path / 'run'))
  assert [row['step'] for row in logged if 'train/loss' in row] == [1, 2]
  losses = [row['train/loss'] for row in logged if 'train/loss' in row]
  assert losses == [row['train/loss'] for row in rows]
  (image,) = (row for row in logged if 'image' in row)
  assert image['image'] == 'curves' and image['bytes'] > 1000
  assert end == dict(failed=False)
  train.train(tmp_path / 'run', **config | dict(total_steps=3))
  assert [x.name for x in folder.iterdir()] == ['run-0']
  assert lines(folder)[len(logged) + 3]['step'] == 3
  train.train(tmp_path / 'other', **config)
  assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize('fails', ['init', 'write'])
def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(
  tracked, tmp_path, fails
):
  section, folder = tracked
  setting = dict(bad=section | dict(fails=fails), good=section)
  said = []
  loggers = run_loggers.Loggers(
    setting,
    tmp_path / 'run',
    config=tiny_runs.plain(),
    on_log=said.append,
  )
  with metrics_lib.MetricWriter(tmp_path / 'run', loggers=loggers) as writer:
    for step in (1, 2):
      writer.write(step, {'train/loss': np.float32(step)})
  (text,) = said
  assert text.startswith('the logger bad failed') and '\x1b' not in text
  good = lines(
    folder, json.loads((tmp_path / 'run/loggers.json').read_text())['good']
  )
  assert {'step': 2, 'train/loss': 2.0} in good
  assert len(tiny_runs.rows(tmp_path / 'run')) == 2


def test_an_error_of_the_run_is_told_to_the_tracker(tracked, tmp_path):
  section, folder = tracked
  loggers = run_loggers.Loggers([section], tmp_path, config=tiny_runs.plain())
  with pytest.raises(ZeroDivisionError):
    with metrics_lib.MetricWriter(tmp_path, loggers=loggers):
      _ = 1 / 0
  assert lines(folder)[-1] == dict(failed=True)


def test_a_run_from_the_start_is_a_new_one_and_a_broken_file_is_none(
  tracked, tmp_path
):
  section, folder = tracked

  def begin(step):
    run_loggers.Loggers(
      [section], tmp_path, config=tiny_runs.plain(), restored_step=step
    )
    return len(list(folder.iterdir()))

  assert [begin(None), begin(4), begin(None)] == [1, 1, 2]
  for text in ('{', '[]', '{"my_tracker": 3}'):
    (tmp_path / 'loggers.json').write_text(text)
    number = len(list(folder.iterdir()))
    assert begin(4) == number + 1


def test_other_processes_log_nothing(tracked, tmp_path, monkeypatch):
  section, folder = tracked
  monkeypatch.setattr(run_loggers.jax, 'process_index', lambda: 1)
  loggers = run_loggers.Loggers([section], tmp_path, config=tiny_runs.plain())
  loggers.write(1, {'train/loss': 1.0})
  loggers.close()
  assert not list(folder.iterdir()) and not (tmp_path / 'loggers.json').exists()


@pytest.mark.parametrize(
  'setting, words',
  [
    ('wandbb', "no logger named 'wandbb'.*did you mean 'wandb'"),
    (3, 'loggers=3: expected names'),
    ([3], 'an item is 3; expected a section'),
    (dict(wandb=3), 'wandb is 3; expected a section'),
    (dict(wandb=dict(projekt='x')), "wandb: unknown key 'projekt'.*'project'"),
    (dict(wandb=dict(run_id='x')), "unknown key 'run_id'"),
    (['wandb', dict(name='wandb')], 'given twice'),
  ],
)
def test_settings_that_mean_nothing_are_refused(setting, words):
  with pytest.raises(UserError, match=words):
    run_loggers.sections(setting)
  with pytest.raises(UserError, match=words):
    train.build(tiny_runs.plain(loggers=setting))


def test_loggers_are_named_in_lists_and_by_label():
  named = {'wandb': {'name': 'wandb'}}
  for setting in (
    'wandb',
    ['wandb'],
    dict(wandb={}),
    dict(wandb={}, mlflow=None),
  ):
    assert run_loggers.sections(setting) == named
  assert run_loggers.sections(None) == {}
  found = run_loggers.sections(dict(mine=dict(name='wandb', project='x')))
  assert found == {'mine': dict(name='wandb', project='x')}


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_a_missing_package_says_the_command(name, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(UserError, match=rf"pip install 'vit_jax\[{name}\]'"):
    run_loggers.Loggers(name, tmp_path, config={})


def test_wandb_keeps_rows_on_the_disk_offline(tmp_path):
  wandb = pytest.importorskip('wandb')
  for step in (None, 2):
    loggers = run_loggers.Loggers(
      dict(wandb=dict(mode='offline')),
      tmp_path,
      config=dict(seed=3),
      restored_step=step,
      on_log=pytest.fail,
    )
    loggers.write(
      (step or 0) + 1, {'val/top1': 0.5, 'train/loss': float('nan')}
    )
    loggers.close()
  assert wandb.run is None
  runs = list((tmp_path / 'wandb').glob('offline-run-*/*.wandb'))
  assert len({x.name for x in runs}) == 1 and all(
    x.stat().st_size for x in runs
  )


def test_mlflow_continues_its_run(tmp_path):
  mlflow = pytest.importorskip('mlflow')
  pytest.importorskip('sqlalchemy')
  uri = f'sqlite:///{tmp_path}/mlflow.db'
  (tmp_path / 'curves.png').write_bytes(b'png')
  for step in (None, 2):
    loggers = run_loggers.Loggers(
      dict(mlflow=dict(tracking_uri=uri, experiment='pets')),
      tmp_path / 'run',
      config=dict(model=dict(variant='B/16')),
      restored_step=step,
      on_log=pytest.fail,
    )
    loggers.write((step or 0) + 1, {'val/top1': 0.5, 'a[b]': 1})
    loggers.close(failed=step is None)
  client = mlflow.MlflowClient(uri)
  (experiment,) = client.search_experiments(filter_string="name = 'pets'")
  (run,) = client.search_runs([experiment.experiment_id])
  assert run.data.params == {'model.variant': 'B/16'}
  assert run.data.metrics == {'val/top1': 0.5, 'a_b_': 1.0}
  history = client.get_metric_history(run.info.run_id, 'val/top1')
  assert [x.step for x in history] == [1, 3]
  assert run.info.status == 'FINISHED'
