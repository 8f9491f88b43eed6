"""A model with BatchNorm in a run: trained, evaluated, resumed, not loaded."""

import json

import jax
import numpy as np
import pytest

from vit_jax.data import pipeline
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog
from vit_jax.training import train

_MODEL = """
import flax.linen as nn

class Model(nn.Module):
  num_classes: int = 4

  @nn.compact
  def __call__(self, image, *, train=False):
    x = nn.Conv(8, (3, 3), strides=2, use_bias=False)(image)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    x = nn.relu(x).mean(axis=(1, 2))
    return {'features': x, 'logits': nn.Dense(self.num_classes)(x)}
"""


def _config(**changes):
  data = dict(name='synthetic', image_size=8, num_classes=4)
  val = dict(
    name='classification',
    data=dict(data, split='test', num_examples=16),
    ops='',
    weights=('params', 'ema'),
  )
  return (
    dict(
      model=dict(name='normed.model', num_classes=4),
      objective=dict(name='supervised'),
      input=dict(
        data=dict(data, split='train', num_examples=32),
        ops='',
        device_ops='normalize(-1, 1)',
        batch_size=16,
      ),
      optimizer=dict(name='adamw', learning_rate=1e-2, schedule='constant'),
      total_steps=4,
      ema=dict(decay=0.0),
      evals=dict(val=val),
      log_every_steps=1,
    )
    | changes
  )


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
  (tmp_path / 'normed').mkdir()
  (tmp_path / 'normed/model.py').write_text(_MODEL)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(__import__('sys').modules, 'normed', raising=False)
  monkeypatch.delitem(__import__('sys').modules, 'normed.model', raising=False)


def _rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_it_trains_resumes_and_is_evaluated_with_its_statistics(tmp_path):
  whole = train.train(tmp_path / 'whole', **_config())
  # With a decay of 0 the average is a copy, and so is its evaluation.
  assert whole['val_ema/loss'] == whole['val/loss']
  train.train(tmp_path / 'cut', **_config(total_steps=2))
  assert train.train(tmp_path / 'cut', **_config()) == whole
  rows = [_rows(tmp_path / x) for x in ('whole', 'cut')]
  losses = [[r['train/loss'] for r in x if 'train/loss' in r] for x in rows]
  assert losses[0] == losses[1] and len(losses[0]) == 4
  # With the statistics of the start, 0 and 1, the answers would be others.
  run = train.build(_config())
  state = run.init()
  batch = pipeline.to_global(
    next(run.input.batches()), run.batch_spec['image'].sharding
  )
  state, _ = run.step(state, batch)
  trained = run.predict(run.weights(state), batch)['logits']
  fresh = {**run.weights(state), 'extra': run.init().extra}
  assert np.abs(trained - run.predict(fresh, batch)['logits']).max() > 1e-3


def test_one_and_eight_devices_agree(tmp_path):
  found = []
  for num in (1, 8):
    run = train.build(_config(mesh=dict(devices=jax.devices()[:num])))
    state, batches = run.init(), run.input.batches()
    losses = []
    for _ in range(3):
      batch = pipeline.to_global(
        next(batches), run.batch_spec['image'].sharding
      )
      state, metrics = run.step(state, batch)
      losses.append(float(metrics['loss']))
    batches.close()
    found.append((losses, jax.device_get(state.extra)))
  # float32 sums over the batch in another order.
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *found
  )


def test_micro_batches_are_refused():
  with pytest.raises(UserError, match=r'micro_batches=2: .*\(batch_stats\)'):
    train.build(_config(micro_batches=2))


def test_its_weights_are_not_loaded_without_the_statistics(tmp_path):
  train.train(tmp_path / 'run', **_config(total_steps=1, evals=None))
  with pytest.raises(UserError, match=r'batch statistics.*total_steps=0'):
    catalog.load(tmp_path / 'run')
