"""Conformance of every evaluator: a new file in evaluators/ is found by itself.

Its arguments `data...` get the splits of their names. One that needs other
options than its defaults exports `TINY = dict(options=dict(...))`.
"""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import lookup
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.training import train

CLASSES = 7
TWO_SPLITS = dict(data_train='train', data_test='test')

# (evaluator, its options, which split each of its data sections is).
CASES = [
  ('classification', dict(), dict(data='test')),
  ('classification', dict(loss='sigmoid', per_class=True), dict(data='test')),
  ('fewshot', dict(shots=(1, 4)), TWO_SPLITS),
  ('fewshot', dict(shots=(2,), l2=(1.0, 1e3)), TWO_SPLITS),
  ('knn', dict(k=(1, 10)), TWO_SPLITS),
  ('linear_probe', dict(l2=10.0), TWO_SPLITS),
  (
    'linear_probe',
    dict(solver='sgd', epochs=3, learning_rates=(0.1, 0.5), sgd_batch_size=32),
    TWO_SPLITS,
  ),
]
CASES += [
  (name, None, None)
  for name in lookup.names('evaluators')
  if name not in {name for name, *_ in CASES}
]
IDS = [f'{name}-{"-".join(options or ())}' for name, options, _ in CASES]
each_case = pytest.mark.parametrize('case', CASES, ids=IDS)


def predict(params, batch):
  x = batch['image'].reshape(len(batch['image']), -1).astype(jnp.float32) / 255
  # Two numbers do not tell 7 classes apart: no evaluator reaches 100 %.
  return {'features': jnp.tanh(x @ params)[:, :2], 'logits': x @ params}


def _params():
  # Directions of the classes' patterns, so that there is something to find.
  source = lookup.build('data/sources', _data('train', 70), 'Source')
  kernel = np.zeros((16, CLASSES), np.float32)
  for i in range(len(source)):
    example = source[i]
    kernel[:, example['label']] += example['image'].ravel() / 255 - 0.5
  return kernel / 10


def _data(split, num_examples):
  return dict(
    name='synthetic',
    split=split,
    num_examples=num_examples,
    image_size=4,
    channels=1,
    num_classes=CLASSES,
    seed=3,
  )


def _evaluator(case, *, devices=8, num_test=45, batch_size=16):
  name, options, data = case
  if options is None:
    module = importlib.import_module(f'vit_jax.evaluators.{name}')
    options = getattr(module, 'TINY', {}).get('options', {})
    keys = inspect.signature(module.Evaluator).parameters
    data = {k: k for k in keys if k.split('_')[0] == 'data'}
    data = {k: 'train' if k == 'data_train' else 'test' for k in data}
  sizes = dict(train=70, test=num_test)
  sections = {key: _data(split, sizes[split]) for key, split in data.items()}
  section = dict(name=name, ops='', batch_size=batch_size, num_threads=0)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  evaluator = lookup.build(
    'evaluators', section | sections | options, 'Evaluator', predict, mesh
  )
  params = jax.device_put(_params(), mesh_lib.replicated(mesh))

  def run():
    with jax.transfer_guard('disallow'):
      return evaluator.run(params)

  return run


@pytest.fixture(scope='module', params=CASES, ids=IDS)
def first(request):
  """Returns what runs an evaluator, and what it returns."""
  run = _evaluator(request.param)
  return run, run()


def test_the_numbers_are_named_finite_floats(first):
  _, result = first
  assert result['num_examples'] == 45
  for name, value in result.items():
    assert type(name) is str and type(value) is float
    assert np.isfinite(value)
  # Neither chance nor perfection: other answers would be other numbers.
  assert any(0 < value < 1 for value in result.values())


@each_case
def test_one_and_eight_devices_agree_for_any_batch_size(case):
  one = _evaluator(case, devices=1, batch_size=45)()
  eight = _evaluator(case, devices=8, batch_size=5)()
  assert one.keys() == eight.keys()
  for name, value in one.items():
    # Losses are sums in float32, or minima found in float32.
    tolerance = 1e-3 if name.endswith(('loss', 'error')) else 1e-12
    assert eight[name] == pytest.approx(value, rel=tolerance), name


def test_a_second_run_gives_the_same_bits(first):
  run, result = first
  assert run() == result


@each_case
def test_one_more_test_image_is_at_most_one_more_hit(case):
  hits = []
  for num_test in (1, 15, 16, 17):
    result = _evaluator(case, num_test=num_test)()
    assert result['num_examples'] == num_test
    shots = [k for k in result if k.endswith('shot')]
    names = shots or [k for k in result if k.endswith('nn')]
    names = names or [k for k in ('top1',) if k in result]
    hits.append([num_test * (3 if shots else 1) * result[k] for k in names])
  whole = np.round(hits).astype(int)
  np.testing.assert_allclose(hits, whole, atol=1e-9)
  more = np.diff(whole, axis=0, prepend=0)
  num_answers = np.array([[1], [14], [1], [1]]) * (3 if shots else 1)
  assert (more >= 0).all() and (more <= num_answers).all()


def test_training_runs_them_on_data_with_other_classes(tmp_path):
  evals = {
    name: dict(
      name=name,
      data_train=dict(name='digits', split='train[:100]'),
      data_test=dict(name='digits', split='test[:50]'),
      ops='',
      batch_size=56,
    )
    for name in ('fewshot', 'knn', 'linear_probe')
  }
  evals['fewshot'] |= dict(shots=(5,), every_steps=1)
  evals['knn'] |= dict(k=(5,))
  evals['linear_probe'] |= dict(l2=1.0, max_iterations=20)
  result = train.train(
    tmp_path,
    model=dict(name='vit', variant='mu/4', num_classes=3),
    objective=dict(name='supervised'),
    input=dict(
      data=dict(
        name='synthetic',
        split='train',
        num_examples=16,
        image_size=8,
        channels=1,
        num_classes=3,
      ),
      ops='',
      device_ops='normalize(-1, 1)',
      batch_size=8,
      num_threads=0,
    ),
    optimizer=dict(name='adamw', learning_rate=1e-3),
    evals=evals,
    total_steps=0,
  )
  for name in ('fewshot/5shot', 'knn/5nn', 'linear_probe/top1'):
    # The digits are told apart by untrained features, too.
    assert result[name] > 0.4
