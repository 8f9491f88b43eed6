"""The learning-rate finder, on a tiny model and on curves made by hand."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from tests.training import tiny_runs
from vit_jax.commands import lr_find
from vit_jax.training import train

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
SMOKE = f'--config={CONFIGS}/quickstart.py:smoke'


def test_rates_grow_by_one_factor_and_the_picture_is_all_that_is_written(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  arguments = [SMOKE, '--min=1e-4', '--max=0.1', '--steps=12']
  assert lr_find.main([*arguments, '--format=json']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  rates = found['rates']
  np.testing.assert_allclose(rates, np.geomspace(1e-4, 0.1, 12), rtol=1e-4)
  assert found['suggested'] in rates and len(found['losses']) == 12
  assert [x.name for x in tmp_path.iterdir()] == ['lr_find.png']
  with PIL.Image.open('lr_find.png') as image:
    assert image.width > 300


def test_a_table_names_the_suggested_rate(tmp_path, capsys):
  arguments = ['--min=1e-4', '--max=0.1', '--steps=12']
  code = lr_find.main([SMOKE, *arguments, f'--output={tmp_path}/a.png'])
  text = capsys.readouterr().out
  assert code == 0 and 'steepest descent' in text
  assert 'suggested: --config.optimizer.learning_rate=' in text


def test_the_steps_are_those_of_a_run_at_these_rates(tmp_path):
  # The first loss is that of the fresh weights, whatever the rate; at rates
  # that change nothing in float32 the others are those of a run with no rate.
  config = tiny_runs.plain(total_steps=10, log_every_steps=1)
  optimizer = dict(name='sgd', learning_rate=1e-30, schedule='constant')
  train.train(tmp_path, **config | dict(optimizer=optimizer))
  want = [row['train/loss'] for row in tiny_runs.rows(tmp_path)]
  optimizer = dict(name='sgd', learning_rate=0.3, warmup_epochs=1.0)
  rates, losses = lr_find.measure(
    config | dict(optimizer=optimizer), low=1e-30, high=1e-29, steps=10
  )
  np.testing.assert_allclose(losses, want, rtol=1e-6)
  _, faster = lr_find.measure(
    config | dict(optimizer=optimizer), low=0.05, high=0.2, steps=10
  )
  assert faster[0] == pytest.approx(want[0], rel=1e-6)
  assert min(faster[5:]) < min(losses[5:])
  assert len(rates) == 10


def test_it_ends_where_the_loss_explodes():
  config = tiny_runs.plain(
    optimizer=dict(name='sgd', learning_rate=1.0, momentum=0.9)
  )
  rates, _ = lr_find.measure(config, low=1e-2, high=1e8, steps=60)
  assert len(rates) < 60


def test_the_suggestion_is_the_steepest_descent_before_the_lowest_loss():
  rates = np.geomspace(1e-5, 1, 6)
  assert lr_find.suggest(rates, [3, 2.9, 2.0, 1.1, 1.0, 9.0]) == 2
  # A fall after the lowest point does not count, a rise is no fall.
  assert lr_find.suggest(rates, [1.0, 2, 8, 3, 2, 1.5]) is None


def test_running_means_keep_a_line():
  line = np.arange(30.0)
  smoothed = lr_find.smooth(line)
  np.testing.assert_allclose(smoothed[3:-3], line[3:-3])
  assert np.ptp(lr_find.smooth(line % 2)[5:-5]) < 0.4


@pytest.mark.parametrize(
  'argument, words',
  [
    ('--min=0', 'expected 0 < min < max'),
    ('--min=2', '--min=2 --max=1: expected'),
    ('--max=inf', 'expected 0 < min < max'),
    ('--steps=9', '--steps=9: expected 10 or more'),
  ],
)
def test_bad_numbers_are_refused(argument, words, capsys):
  assert lr_find.main([SMOKE, argument]) == 2
  assert words in capsys.readouterr().err
