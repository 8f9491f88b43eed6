"""A sweep runs every value once, survives failures and sorts its table."""

import functools
import math
import pathlib

import ml_collections
import pytest

from vit_jax.commands import sweep as sweep_lib
from vit_jax.errors import RunError, UserError
from vit_jax.training import train

RATES = '--sweep.optimizer.learning_rate='


@pytest.fixture
def run(recipe, tmp_path):
  """Returns `run(*arguments) -> exit code`, in the folder `runs`."""
  return lambda *argv: sweep_lib.main(
    [f'--config={recipe}', f'--workdir={tmp_path / "runs"}', *argv]
  )


@pytest.fixture
def trained(monkeypatch):
  """Replaces the training; returns what was trained: `{folder: sections}`."""
  done = {}

  @functools.wraps(train.train)
  def pretend(workdir, **sections):
    done[pathlib.Path(workdir).name] = sections
    rate = sections['optimizer']['learning_rate']
    if rate > 1:
      raise RunError(f'the loss is NaN at {rate}')
    # Best at 0.03 by the accuracy and at 0.1 by the loss.
    top1 = 1 - abs(rate - 0.03)
    return {
      'val/top1': top1,
      'val/loss': 1 - rate,
      'val/expected_calibration_error': rate,
      'test/top1': 0.5,
      'test/loss': 1 - rate if rate < 1 else math.nan,
    }

  monkeypatch.setattr(train, 'train', pretend)
  return done


CONFIG = ml_collections.ConfigDict(
  dict(
    model=dict(name='vit', variant='S/16'),
    objective=dict(name='supervised'),
    input=dict(batch_size=8),
    optimizer=dict(learning_rate=0.5, freeze=['a.*']),
    init_from=[dict(weights='x', skip=['head/.*'])],
    evals=dict(
      test=dict(name='classification'), val=dict(name='classification')
    ),
  )
)


def test_every_value_is_trained_in_a_folder_of_its_own(run, tmp_path, capsys):
  assert run(f'{RATES}1e-3,1e-5') == 0
  runs = tmp_path / 'runs'
  for rate in ('1e-3', '1e-5'):
    folder = runs / f'optimizer.learning_rate={rate}'
    assert (
      f'"learning_rate": {float(rate)}' in (folder / 'config.json').read_text()
    )
    assert (folder / 'checkpoints/2').is_dir()
  out = capsys.readouterr().out
  assert 'sorted by val/top1' in out and 'the best, val/top1 ' in out


def test_the_same_command_trains_nothing_again(run, tmp_path, capsys):
  assert run(f'{RATES}1e-3') == 0
  first = capsys.readouterr().out
  rows = (
    tmp_path / 'runs/optimizer.learning_rate=1e-3/metrics.jsonl'
  ).read_text()
  assert run(f'{RATES}1e-3') == 0
  again = capsys.readouterr().out
  assert 'this run is finished' in again and 'first step' not in again
  assert first[first.index('sorted by') :] == again[again.index('sorted by') :]
  assert (
    tmp_path / 'runs/optimizer.learning_rate=1e-3/metrics.jsonl'
  ).read_text() == rows


def test_a_run_that_diverges_is_marked_and_the_others_go_on(
  run, tmp_path, capsys
):
  assert run(f'{RATES}1e38,1e-3') == 1
  out, error = capsys.readouterr()
  assert 'optimizer.learning_rate=1e38 (failed)' in out
  assert 'the best' in out and 'learning_rate=1e-3' in out.split('the best')[1]
  assert 'learning_rate=1e38 failed: step 2' in error


def test_results_are_sorted_by_the_metric(trained, tmp_path, capsys):
  values = {'optimizer.learning_rate': [0.1, 2.0, 0.03, 0.01]}
  results = sweep_lib.sweep(str(tmp_path), CONFIG, values)
  rates = [label.partition('=')[2] for label in results]
  assert rates == ['0.03', '0.01', '0.1', '2.0']
  assert results['optimizer.learning_rate=2.0'] == {}
  # Of the other evaluation the table has the same number and no more.
  table = capsys.readouterr().out
  assert 'test/top1' in table and 'loss' not in table
  results = sweep_lib.sweep(str(tmp_path), CONFIG, values, metric='val/loss')
  assert [label.partition('=')[2] for label in results][:2] == ['0.1', '0.03']
  values = {'optimizer.learning_rate': [0.1, 0.03, 0.01]}
  name = 'val/expected_calibration_error'
  results = sweep_lib.sweep(str(tmp_path), CONFIG, values, metric=name)
  assert [results[label][name] for label in results] == [0.01, 0.03, 0.1]


def test_of_equal_results_the_one_with_the_lower_loss_is_first(
  trained, tmp_path
):
  values = {'optimizer.learning_rate': [1.0, 0.01, 0.1, 0.03]}
  results = sweep_lib.sweep(str(tmp_path), CONFIG, values, metric='test/top1')
  rates = [label.partition('=')[2] for label in results]
  assert rates == ['0.1', '0.03', '0.01', '1.0']


def test_a_duration_of_the_sweep_replaces_the_other_form(trained, tmp_path):
  config = CONFIG.copy_and_resolve_references()
  config.total_steps = 8
  sweep_lib.sweep(str(tmp_path), config, {'total_epochs': [1.0, 2.0]})
  found = [(c['total_steps'], c['total_epochs']) for c in trained.values()]
  assert found == [(None, 1.0), (None, 2.0)]


def test_the_first_evaluation_is_compared_where_none_is_val(trained, tmp_path):
  config = CONFIG.copy_and_resolve_references()
  del config.evals.val
  values = {'optimizer.learning_rate': [0.1]}
  sweep_lib.sweep(str(tmp_path), config, values)
  with pytest.raises(UserError, match=r'val/loss.*of the evaluations test'):
    sweep_lib.sweep(str(tmp_path), config, values, metric='val/loss')


def test_several_keys_run_through_all_combinations(trained, tmp_path):
  values = {
    'optimizer.learning_rate': [0.1, 0.01],
    'model.variant': ['S/16', 'B/16'],
    'seed': [1],
  }
  sweep_lib.sweep(str(tmp_path), CONFIG, values)
  assert list(trained) == [
    f'optimizer.learning_rate={rate},model.variant={name}_16,seed=1'
    for rate in ('0.1', '0.01')
    for name in 'SB'
  ]
  for folder, sections in trained.items():
    assert f'rate={sections["optimizer"]["learning_rate"]},' in folder
    assert sections['model']['variant'].replace('/', '_') in folder
    assert sections['seed'] == 1
    # All else is as in the config, which itself is not changed.
    assert sections['init_from'] == CONFIG.to_dict()['init_from']
    assert sections['optimizer']['freeze'] == ['a.*']
  assert CONFIG.optimizer.learning_rate == 0.5 and 'seed' not in CONFIG


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], ['--sweep.optimizer.learning_rate=0.01,0.03', 'none']),
    ([f'{RATES}0.1', f'{RATES}0.2'], ['give each key once']),
    ([f'{RATES}0.1,0.1'], ['optimizer.learning_rate=0.1 twice']),
    (
      [f'{RATES}0.1,fast'],
      ['learning_rate=fast', 'expected a finite number such as'],
    ),
    (['--sweep.totl_steps=1,2'], ['totl_steps', "'total_steps'"]),
    ([f'{RATES}0.1', '--metric=vall/top1'], ['vall/top1', 'evaluations val']),
    ([f'{RATES}0.1', '--config.evals={}'], ['config.evals has none']),
    (['--sweep.seed'], ['--sweep.seed needs a value']),
  ],
)
def test_a_mistake_is_reported_before_anything_is_trained(
  run, trained, capsys, arguments, words
):
  assert run(*arguments) == 2
  error = capsys.readouterr().err
  assert all(word in error for word in words), error
  assert not trained


def test_results_are_sorted_by_the_main_evaluation(trained, tmp_path, capsys):
  config = CONFIG.copy_and_resolve_references()
  config.evals.val.name = 'fewshot'  # It has no top-1 accuracy.
  sweep_lib.sweep(str(tmp_path), config, {'optimizer.learning_rate': [0.1]})
  assert 'sorted by test/top1' in capsys.readouterr().out


def test_a_run_has_its_evaluations_in_the_order_of_the_recipe(
  trained, tmp_path
):
  config = CONFIG.copy_and_resolve_references()
  config.evals.few = dict(name='fewshot')
  sweep_lib.sweep(str(tmp_path), config, {'optimizer.learning_rate': [0.1]})
  (sections,) = trained.values()
  assert list(sections['evals']) == ['test', 'val', 'few']


def test_an_unknown_metric_lists_the_metrics_of_the_runs(run, trained, capsys):
  assert run(f'{RATES}0.1', '--metric=val/top3') == 2
  assert "no metric 'val/top3'; it has: val/top1" in capsys.readouterr().err


def test_a_sweep_without_any_success_is_an_error(run, trained, capsys):
  assert run(f'{RATES}3.0,4.0') == 1
  assert 'every run of the sweep failed' in capsys.readouterr().err
