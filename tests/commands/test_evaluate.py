"""What `vit_jax evaluate` refuses before it reads weights, and what it writes.

Evaluation itself, and the command beside a live run: training/test_evaluate.py.
"""

import json
import types

from vit_jax.commands import evaluate


def test_mistakes_are_named_before_weights_are_looked_for(
  recipe, tmp_path, capsys
):
  for options, words in (
    ([f'--output={tmp_path}'], 'is a folder; give a file'),
    ([f'--config={recipe}', '--config.evals=None'], 'has no config.evals'),
  ):
    assert evaluate.main(['--weights=none', *options]) == 2
    assert words in capsys.readouterr().err


def test_non_finite_values_are_null_in_the_file(tmp_path, capsys):
  path = tmp_path / 'made' / 'results.json'
  args = types.SimpleNamespace(output=str(path), weights='w', data=None)
  metrics = {'val/top1': 0.5, 'val/loss': float('nan'), 'x/y': float('inf')}
  source = {'step': 3, 'ema': True}
  results = types.SimpleNamespace(metrics=metrics, source=source)
  evaluate._write(args, results)
  assert json.loads(path.read_text()) == dict(
    weights='w',
    step=3,
    averaged=True,
    metrics={'val/top1': 0.5, 'val/loss': None, 'x/y': None},
  )
  assert str(path) in capsys.readouterr().out
