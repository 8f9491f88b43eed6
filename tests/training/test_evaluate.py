"""Evaluation of runs and other weights, which changes nothing anywhere."""

import json
import pathlib
import subprocess
import sys

import pytest

import vit_jax
from tests.training import tiny_runs
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.pretrained.formats import vit_jax as ours
from vit_jax.training import evaluation, train

VAL = dict(name='classification', data=tiny_runs.TEST, ops='', batch_size=16)
# The evaluation of a trainer that waits for its next step meanwhile.
NOSY = """
import os, pathlib, time

class Evaluator:
  def __init__(self, forward, mesh, *, folder):
    self._folder = pathlib.Path(folder)

  def run(self, params):
    if (self._folder / 'results.json').exists():
      return {'done': 1.0}  # At the end of the run.
    from vit_jax.checkpoints import format
    for _ in range(600):
      if format.steps(format.absolute(self._folder / 'run/checkpoints')):
        break
      time.sleep(0.1)
    import test_evaluate
    test_evaluate.evaluate_beside(self._folder)
    return {'done': 1.0}
"""


def config(**changes):
  optimizer = dict(name='adamw', learning_rate=1e-2, warmup_steps=1)
  return tiny_runs.plain(
    optimizer=optimizer,
    ema=dict(decay=0.5),
    evals=dict(val=dict(VAL, weights=('params', 'ema'))),
    **dict(total_steps=3) | changes,
  )


def snapshot(folder):
  return {
    path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else '')
    for path in sorted(pathlib.Path(folder).rglob('*'))
  }


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Returns the folder of a run, and the results of its last evaluation."""
  workdir = tmp_path_factory.mktemp('evaluated') / 'run'
  return workdir, train.train(workdir, **config())


def test_a_run_is_evaluated_as_by_itself_and_not_changed(run):
  workdir, expected = run
  before = snapshot(workdir)
  found = vit_jax.evaluate(workdir)
  assert found.keys() == expected.keys() and 'val_ema/top1' in found
  assert found == pytest.approx(expected, rel=1e-5)
  assert expected['val/loss'] != expected['val_ema/loss']
  averaged = vit_jax.evaluate(workdir, ema=True)
  assert averaged['val/loss'] == found['val_ema/loss']
  assert snapshot(workdir) == before


SHARPER = """
from vit_jax.objectives import supervised

class Objective(supervised.Objective):
  def predict(self, params, batch):
    outputs = super().predict(params, batch)
    return outputs | {'logits': 9 * outputs['logits']}
"""


def test_a_run_whose_objective_predicts_by_itself_is_evaluated_with_a_note(
  run, tmp_path, monkeypatch
):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/sharper.py').write_text(SHARPER)
  monkeypatch.syspath_prepend(tmp_path)
  own = config(objective=dict(name='mine.sharper'))
  expected = train.train(tmp_path / 'run', **own)
  lines = []
  found = vit_jax.evaluate(tmp_path / 'run', on_log=lines.append)
  assert found['val/loss'] != pytest.approx(expected['val/loss'], rel=1e-3)
  (line,) = [line for line in lines if 'metrics.jsonl' in line]
  assert 'mine.sharper' in line
  vit_jax.evaluate(run[0], on_log=lines.append)
  assert sum('metrics.jsonl' in line for line in lines) == 1


def test_parameters_may_be_sharded_and_the_batch_of_any_size(run):
  workdir, expected = run
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  evals = dict(val=VAL | dict(batch_size=None))
  del evals['val']['batch_size']
  found = vit_jax.evaluate(workdir, evals, mesh=mesh, batch_size=3)
  # Of the recipe's evaluations that say nothing else: the average, as in load.
  assert found['val/loss'] == pytest.approx(expected['val_ema/loss'], rel=1e-5)


def test_weights_in_a_file_take_evaluations_of_any_recipe_and_image_size(
  tiny_weights, tmp_path
):
  path = tmp_path / 'w.safetensors'
  ours.write(tiny_weights(num_classes=4), path)
  large = dict(VAL, data=dict(VAL['data'], image_size=24))
  del large['ops']
  log = []
  found = vit_jax.evaluate(
    path, dict(val=VAL, large=large), ops='resize(24)', on_log=log.append
  )
  assert found['val/num_examples'] == found['large/num_examples'] == 21
  assert any('position_embedding' in line for line in log)
  with pytest.raises(
    UserError, match=r'/w\.safetensors is not a run; only runs'
  ):
    vit_jax.evaluate(path)
  five = dict(VAL, data=dict(VAL['data'], num_classes=5))
  with pytest.raises(UserError, match=r'data has 5 classes .* have 4 classes'):
    vit_jax.evaluate(path, dict(val=five))


def test_an_evaluator_may_have_images_of_its_own(
  tiny_weights, tmp_path, monkeypatch
):
  (tmp_path / 'own_images.py').write_text(
    """
import jax
import numpy as np

class Evaluator:
  def __init__(self, forward, mesh):
    self._forward = forward

  def run(self, weights):
    image = np.zeros((8, 16, 16, 3), np.uint8)
    with jax.transfer_guard('allow'):
      logits = self._forward(weights, {'image': image})['logits']
    return {'num_logits': float(logits.size)}
"""
  )
  monkeypatch.syspath_prepend(tmp_path)
  found = vit_jax.evaluate(
    tiny_weights(), dict(own=dict(name='own_images')), ops=''
  )
  assert found['own/num_logits'] == 8 * 5


def test_a_mistyped_evaluation_is_named(run):
  with pytest.raises(UserError, match=r"no evaluation 'vall' .*mean 'val'"):
    vit_jax.evaluate(run[0], names=['vall'])


@pytest.mark.parametrize(
  'changes',
  [
    dict(name='payload.evil'),
    dict(data=dict(name='payload.evil', split='x')),
    dict(data=dict(name='mixture', sources=dict(a=dict(name='payload.evil')))),
    dict(data=[dict(name='payload.evil')]),
    dict(ops='payload.evil.op'),
  ],
)
def test_files_of_a_run_name_no_code(run, changes, tmp_path, monkeypatch):
  (tmp_path / 'payload').mkdir()
  (tmp_path / 'payload/evil.py').write_text('raise SystemExit("imported")')
  monkeypatch.syspath_prepend(tmp_path)
  path = run[0] / 'config.json'
  text = path.read_text()
  evals = json.loads(text)
  evals['evals']['val'] |= changes
  try:
    path.write_text(json.dumps(evals))
    with pytest.raises(UserError, match=r'val: .*payload.*--config=RECIPE'):
      vit_jax.evaluate(run[0])
  finally:
    path.write_text(text)


def test_results_are_a_table_and_one_of_classes_the_worst_first(capsys):
  evaluation.print_results({}, 'of a run without evaluations')
  assert capsys.readouterr().out == ''
  results = {'val/top1': 0.5, 'val/top1/cat': 0.9, 'val/top1/dog': 0.1}
  evaluation.print_results(results | {'few/5shot': 0.3}, 'step 5')
  lines = [x.split() for x in capsys.readouterr().out.splitlines()]
  assert ['step', '5'] in lines and ['val,', '2', 'classes'] in lines
  assert ['val', '0.5000', '-'] in lines and ['few', '-', '0.3000'] in lines
  assert lines.index(['dog', '0.1000']) < lines.index(['cat', '0.9000'])


def evaluate_beside(folder):
  """Evaluates the live run with the command, in a process of its own."""
  unfinished = folder / 'run/checkpoints/9.orbax-checkpoint-tmp-1'
  unfinished.mkdir()
  before = snapshot(folder / 'run/checkpoints')
  rows = (folder / 'run/metrics.jsonl').read_bytes()
  command = [sys.executable, '-m', 'vit_jax', 'evaluate', '--evals=val']
  command += [f'--weights={folder / "run"}', '--step=newest']
  command += [f'--output={folder / "results.json"}']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert 'val_ema' in done.stdout and 'step 2' in done.stdout
  assert snapshot(folder / 'run/checkpoints') == before
  assert (folder / 'run/metrics.jsonl').read_bytes().startswith(rows)
  unfinished.rmdir()


def test_a_live_run_goes_on_while_it_is_evaluated(tmp_path, monkeypatch):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine/nosy.py').write_text(NOSY)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setitem(sys.modules, 'test_evaluate', sys.modules[__name__])
  changes = dict(
    total_steps=6, log_every_steps=1, checkpoint=dict(every_steps=2)
  )
  alone = config(**changes)
  alone['evals']['val']['every_steps'] = 2
  train.train(tmp_path / 'alone', **alone)
  nosy = dict(name='mine.nosy', folder=str(tmp_path), every_steps=4)
  watched = alone | dict(evals=alone['evals'] | dict(nosy=nosy))
  train.train(tmp_path / 'run', **watched)

  def rows(name):
    kept = ('step', 'train/loss', 'val/loss', 'val_ema/top1')
    found = tiny_runs.rows(tmp_path / name)
    return [{k: x for k, x in row.items() if k in kept} for row in found]

  assert rows('run') == rows('alone') and len(rows('run')) == 6
  with open(tmp_path / 'results.json') as file:
    results = json.load(file)
  assert results['step'] == 2
  at_two = next(row for row in rows('alone') if row['step'] == 2)
  assert results['metrics']['val/loss'] == pytest.approx(at_two['val/loss'])
