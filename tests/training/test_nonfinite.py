"""Losses that are not finite: the run stops or skips, and names the cause."""

import json
import math
import re

import numpy as np
import pytest

from vit_jax import trees
from vit_jax.data import pipeline
from vit_jax.errors import RunError, UserError
from vit_jax.pretrained import catalog
from vit_jax.training import nonfinite, train

NUM_EXAMPLES, BATCH_SIZE = 96, 16
NUM_STEPS = NUM_EXAMPLES // BATCH_SIZE  # One epoch: each image comes once.


@pytest.fixture
def data(tmp_path):
  """Returns `make(bad) -> section` of float images; those of `bad` have a NaN.

  Each call replaces the file of the one before.
  """

  def make(bad=()):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (NUM_EXAMPLES, 16, 16, 3)).astype(np.float32)
    images[list(bad), 3, 5, 1] = np.nan
    labels = np.arange(NUM_EXAMPLES) % 4
    path = tmp_path / 'data.npz'
    np.savez(path, train_images=images, train_labels=labels)
    return dict(name='arrays', path=str(path), split='train')

  return make


def config(data, **changes):
  return (
    dict(
      model=dict(name='vit', variant='mu/8', num_classes=4),
      objective=dict(name='supervised'),
      input=dict(data=data, ops='', batch_size=BATCH_SIZE),
      optimizer=dict(name='sgd', learning_rate=0.1, schedule='constant'),
      total_steps=NUM_STEPS,
      checkpoint=dict(every_steps=2, keep_latest=9),
    )
    | changes
  )


def rows_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_run_stops_at_the_first_and_names_the_examples(data, tmp_path):
  section = data(bad=[7])
  with pytest.raises(RunError) as error:
    train.train(tmp_path / 'run', **config(section))
  rows = rows_of(tmp_path / 'run')
  step = rows[-1]['step']
  assert rows[-1]['train/loss'] is None
  good = (step - 1) // 2 * 2
  message = str(error.value)
  assert re.match(rf'step {step}: train/.* train/loss is nan\. ', message)
  assert (f'checkpoint of step {good} is good' in message) == (good > 0)
  assert 'The cause is the data: ' in message
  assert 'data.npz: train_images[7]: image with NaN or infinity' in message
  assert "on_nonfinite='skip'" in message and 'learning_rate' not in message


def test_a_nonfinite_update_is_skipped_and_counted(data, tmp_path, capsys):
  skipping = config(data(bad=[7]), on_nonfinite='skip')
  train.train(tmp_path / 'run', **skipping)
  rows = rows_of(tmp_path / 'run')
  assert [row['step'] for row in rows] == list(range(1, NUM_STEPS + 1))
  (bad,) = [row['step'] for row in rows if row['train/loss'] is None]
  skipped = [row['train/skipped_updates'] for row in rows]
  assert skipped == [0] * (bad - 1) + [1] * (NUM_STEPS + 1 - bad)
  params = trees.flatten(catalog.load(tmp_path / 'run').params)
  assert all(np.isfinite(x).all() for x in params.values())
  output = capsys.readouterr().out
  assert f'1 of {NUM_STEPS} updates were skipped' in output
  assert '  skipped 1' in output


def test_a_run_without_an_update_fails_and_continues_with_better_data(
  data, tmp_path
):
  skipping = config(data(bad=range(NUM_EXAMPLES)), on_nonfinite='skip')
  with pytest.raises(RunError) as error:
    train.train(tmp_path / 'run', **skipping)
  message = str(error.value)
  assert f'step {NUM_STEPS}: all {NUM_STEPS} updates of the run' in message
  assert '; and 13 more' in message and 'Repair or remove' in message
  assert rows_of(tmp_path / 'run')[-1]['train/skipped_updates'] == NUM_STEPS
  data()
  train.train(tmp_path / 'run', **skipping)
  assert rows_of(tmp_path / 'run')[-1]['train/skipped_updates'] == NUM_STEPS - 2


@pytest.fixture
def make_check(data):
  """Returns `make(on_nonfinite, **options) -> nonfinite.Check`."""

  def make(on_nonfinite, num_classes=4, **options):
    train_input = pipeline.TrainInput(
      data=data(), ops='', batch_size=BATCH_SIZE, seed=0, num_threads=0
    )
    # As of a source that does not check its labels.
    train_input.num_classes = num_classes
    options = dict(total_steps=1000) | options
    return nonfinite.Check(on_nonfinite, input=train_input, **options)

  return make


def metrics(loss=1.0, grad_norm=1.0, skipped=0):
  return {
    'train/loss': loss,
    'train/grad_norm': grad_norm,
    'train/learning_rate': 1e-3,
    'train/skipped_updates': skipped,
  }


def test_settings_are_to_blame_for_finite_data(make_check):
  check = make_check('stop')
  text = check.problem(120, metrics(math.nan, math.inf), lambda: 100)
  assert text.startswith('step 120: train/loss is nan, train/grad_norm is inf.')
  assert 'checkpoint of step 100 is good' in text
  assert 'images and labels of its batch are finite' in text
  assert 'train/learning_rate' not in text
  for advice in ('learning_rate', 'grad_clip_norm', "on_nonfinite='skip'"):
    assert advice in text


def test_before_any_checkpoint_the_run_starts_afresh(make_check):
  text = make_check('stop').problem(3, metrics(-math.inf), lambda: None)
  assert 'No checkpoint was saved before it' in text


@pytest.mark.parametrize('on_nonfinite', ['stop', 'skip'])
def test_finite_metrics_pass(make_check, on_nonfinite):
  check = make_check(on_nonfinite, total_steps=3)
  assert check.problem(3, metrics(loss=1e38), pytest.fail) is None


@pytest.mark.parametrize(
  'good, advice',
  [
    (None, 'No checkpoint was saved.'),
    (8, 'The same command continues from the checkpoint of step 8.'),
    (10, 'step 10 has the weights of all these steps.*in another workdir'),
    (12, 'step 12 has the weights of all these steps.*in another workdir'),
  ],
)
def test_too_many_skips_in_a_row_are_an_error(make_check, good, advice):
  check = make_check('skip', max_consecutive_skips=3)
  # Two, one good, two by the gradient alone, and a third.
  for step, loss, norm, skipped in (
    (8, math.nan, math.nan, 4),
    (9, math.nan, math.nan, 5),
    (10, 1.0, 1.0, 5),
    (11, 1.0, math.inf, 6),
    (12, 1.0, math.nan, 7),
  ):
    found = check.problem(step, metrics(loss, norm, skipped), pytest.fail)
    assert found is None
  text = check.problem(13, metrics(1.0, math.nan, 8), lambda: good)
  assert text.startswith(
    'step 13: the last 3 updates were skipped (max_consecutive_skips=3). '
    'train/grad_norm is nan.'
  )
  assert 'optimizer.learning_rate' in text and 'float32' in text
  assert re.search(advice, text)


def test_a_label_outside_the_classes_is_named(make_check):
  check = make_check('stop', num_classes=3)
  text = check.problem(1, metrics(math.nan), lambda: None)
  assert re.search(r'data: .*train_images\[\d*[37]\]: label outside 0..2', text)


def test_the_limit_is_at_least_one(make_check):
  with pytest.raises(UserError, match='max_consecutive_skips=0: expected 1'):
    make_check('skip', max_consecutive_skips=0)
