"""Outputs of a run beside its steps, against the bare model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny_runs
from vit_jax import lookup, trees
from vit_jax.data import pipeline
from vit_jax.errors import UserError
from vit_jax.objectives import supervised
from vit_jax.pretrained import catalog
from vit_jax.pretrained.formats import vit_jax as ours
from vit_jax.pretrained.weights import Weights
from vit_jax.reporting import flops
from vit_jax.training import evaluation, session, train, train_state

MODEL = dict(name='vit', variant='mu/8', num_classes=4, head_zero_init=False)
BATCH_SIZE = 16
PEAK = 1e12
# The flip is of training only.
DEVICE_OPS = 'normalize(-1, 1)|flip_lr(1.0)'


def apply(params, images, output='logits'):
  """Returns an output for images in 0..255, by the model alone."""
  model = lookup.build('models', MODEL, 'Model')
  x = np.float32(images) / 127.5 - 1
  return np.float64(model.apply({'params': params}, x, train=False)[output])


def config(**changes):
  section = tiny_runs.plain()['input'] | dict(device_ops=DEVICE_OPS)
  optimizer = dict(name='sgd', learning_rate=1.0, schedule='constant')
  sections = dict(model=MODEL, input=section, optimizer=optimizer)
  return tiny_runs.plain(**sections | changes)


def test_predictions_are_those_of_the_model_on_images_as_they_are():
  run = train.build(config())
  state = run.init()
  batch = next(run.input.batches())
  images = batch['image']
  assert not np.array_equal(images, images[:, :, ::-1])
  spread = pipeline.to_global(batch, run.batch_spec['image'].sharding)
  logits = run.predict(run.weights(state), spread)['logits']
  params = jax.device_get(state.params)
  np.testing.assert_allclose(logits, apply(params, images), atol=1e-5)


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
  """A run of which the head alone learns, from weights in a file.

  Returns its folder, these weights by name, and its rows of metrics.
  """
  folder = tmp_path_factory.mktemp('tuned')
  model = lookup.build('models', MODEL, 'Model')
  images = np.zeros((1, 16, 16, 3), np.float32)
  params = model.init(jax.random.key(5), images)['params']
  named = {k: np.asarray(v) for k, v in trees.flatten(params).items()}
  weights = Weights(trees.unflatten(named), MODEL, {}, None)
  ours.write(weights, folder / 'w.safetensors')
  changes = config(
    optimizer=dict(
      name='sgd', learning_rate=1.0, schedule='constant', freeze=['(?!head/).*']
    ),
    seed=3,
    ema=dict(decay=0.9),
    init_from=[dict(weights=str(folder / 'w.safetensors'))],
    evals=dict(
      val=dict(
        name='classification',
        data=tiny_runs.TEST,
        ops='',
        weights=('params', 'ema'),
      )
    ),
    log_every_steps=1,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flops, 'peak_flops', lambda device: PEAK)
    train.train(folder / 'run', **changes)
  lines = (folder / 'run/metrics.jsonl').read_text().splitlines()
  return folder / 'run', named, [json.loads(line) for line in lines]


@pytest.mark.parametrize('ema', [False, True])
def test_weights_and_their_average_start_from_the_loaded_ones(tuned, ema):
  folder, before, _ = tuned
  after = trees.flatten(catalog.load(folder, ema=ema).params)
  assert after.keys() == before.keys()
  for name, array in after.items():
    if name.startswith('head/'):
      assert not np.array_equal(array, before[name])
    else:
      np.testing.assert_allclose(array, before[name], rtol=1e-6, err_msg=name)


def _log_softmax(logits):
  return logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))


def test_both_weights_are_evaluated_under_their_own_names(tuned):
  folder, _, rows = tuned
  source = lookup.build('data/sources', tiny_runs.TEST, 'Source')
  images = np.stack([source[i]['image'] for i in range(21)])
  labels = np.asarray([source[i]['label'] for i in range(21)])
  losses = []
  for prefix, ema in (('val', False), ('val_ema', True)):
    logits = apply(
      trees.unflatten(catalog.load(folder, ema=ema).params), images
    )
    losses.append(-np.mean(_log_softmax(logits)[np.arange(21), labels]))
    assert rows[-1][f'{prefix}/loss'] == pytest.approx(losses[-1], rel=1e-4)
    top1 = np.mean(logits.argmax(-1) == labels)
    assert rows[-1][f'{prefix}/top1'] == pytest.approx(top1)
  assert abs(losses[0] - losses[1]) > 1e-2


def test_the_logged_gradient_is_that_of_the_trained_parameters(tuned):
  _, before, rows = tuned
  batch = next(train.build(config(seed=3)).input.batches())
  images = batch['image'][:, :, ::-1]  # As the device op flips them.
  params = trees.unflatten(before)
  logits = apply(params, images)
  error = np.exp(_log_softmax(logits)) - np.eye(4)[batch['label']]
  features = apply(params, images, 'features')
  kernel, bias = features.T @ error / BATCH_SIZE, error.mean(0)
  norm = np.sqrt(np.sum(kernel**2) + np.sum(bias**2))
  assert rows[0]['train/grad_norm'] == pytest.approx(norm, rel=1e-4)
  assert [row['train/epoch'] for row in rows] == [16 / 40, 32 / 40]


def test_pictures_are_of_the_average(tmp_path):
  drawn, run = [], train.build(config())

  class Picture:
    def draw(self, params, path):
      drawn.append((params['params'], path))

  class Writer:
    def write_image(self, step, name, path):
      drawn.append((step, name, path))

  for average in (None, 'average'):
    state = train_state.TrainState(0, 'raw', None, ema_params=average)
    evaluation.draw({'x': Picture()}, run, state, 5, tmp_path, Writer())
  path = tmp_path / 'x.png'
  written = (5, 'x', path)
  assert drawn == [('raw', path), written, ('average', path), written]


_KEYS = '''
"""An objective that reports its key."""
import jax, jax.numpy as jnp

class Objective:
  def __init__(self, model):
    pass

  def init(self, rng, batch):
    return {'params': {'kernel': jnp.zeros(2)}}

  def loss(self, params, state, batch, rng):
    return params['kernel'].sum(), ({'key': jax.random.key_data(rng)}, {})

  def predict(self, params, batch):
    return {}
'''


def test_a_step_draws_from_the_seed_and_the_step(tmp_path, monkeypatch):
  (tmp_path / 'reporting_objectives').mkdir()
  (tmp_path / 'reporting_objectives/keys.py').write_text(_KEYS)
  monkeypatch.syspath_prepend(tmp_path)
  run = train.build(
    config(seed=9, objective=dict(name='reporting_objectives.keys'))
  )
  state = run.init()
  batch = next(run.input.batches())
  spread = pipeline.to_global(batch, run.batch_spec['image'].sharding)
  for step in range(2):
    key = jax.random.fold_in(jax.random.key(9), step)
    state, metrics = run.step(state, spread)
    want = jax.random.key_data(jax.random.split(key)[1])
    np.testing.assert_array_equal(metrics['key'], want)


def test_fields_that_the_loss_lacks_are_named_before_anything_runs(monkeypatch):
  fields = ('image', 'depth')
  monkeypatch.setattr(supervised.Objective, 'fields', fields)
  with pytest.raises(
    UserError, match=r"\['depth'\], and .* \['image', 'label'"
  ):
    train.build(config())
  train.build(config(total_steps=0))  # No loss is computed.


class WithTeacher(supervised.Objective):
  """Has weights that nothing trains."""

  def init(self, rng, batch):
    branches = super().init(rng, batch)
    return branches | dict(frozen={'teacher': {'kernel': jnp.ones(3)}})


def test_frozen_weights_that_nothing_fills_are_logged(
  monkeypatch, tiny_weights
):
  monkeypatch.setattr(supervised, 'Objective', WithTeacher)
  run, log = train.build(config()), []
  session.initialize(run, dict(model=MODEL, init_from=[]), log.append)
  assert len(log) == 1 and log[0].startswith('frozen/teacher keeps its random')
  log.clear()
  teacher = dataclasses.replace(
    tiny_weights(), params={'kernel': np.float32([1, 2, 3])}
  )
  entry = dict(weights=teacher, into='frozen/teacher')
  section = dict(model=MODEL, init_from=[entry])
  state = session.initialize(run, section, log.append)
  assert not any('random' in line for line in log)
  np.testing.assert_array_equal(state.frozen['teacher']['kernel'], [1, 2, 3])


class MultiCrop(supervised.Objective):
  """Predicts from the images alone and trains on two views of each."""

  fields = ('image', 'local_image')

  def init(self, rng, batch):
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), 'float32')
    return super().init(rng, dict(image=image))


def _multi_crop(**changes):
  views = 'global_ops=["", ""], local_ops=""'
  ops = f'multi_crop(16, num_local=2, local_size=8, {views})'
  section = config()['input'] | dict(ops=ops, device_ops='normalize(-1, 1)')
  return train.build(config(input=section, **changes))


def test_utilisation_of_multi_crop_is_of_one_view_of_each_image(monkeypatch):
  monkeypatch.setattr(supervised, 'Objective', MultiCrop)
  run = _multi_crop()
  assert run.batch_spec['image'].shape == (BATCH_SIZE, 2, 16, 16, 3)
  forward = flops.count(
    run.predict,
    run.weights(run.abstract_state),
    dict(image=jax.ShapeDtypeStruct((BATCH_SIZE, 16, 16, 3), 'uint8')),
  )
  clock = session.make_clock(run, 0, peak_flops=PEAK)
  assert clock.flops_per_step == 3 * forward > 0
  assert clock.peak_flops == PEAK * jax.device_count()


def test_an_objective_gives_the_flops_of_a_step(monkeypatch):
  def cost(self, params, batch):
    assert batch['image'].shape == (BATCH_SIZE, 2, 16, 16, 3)
    return 7 * sum(x.size for x in jax.tree.leaves(params))

  monkeypatch.setattr(MultiCrop, 'flops', cost, raising=False)
  monkeypatch.setattr(supervised, 'Objective', MultiCrop)
  run = _multi_crop()
  sizes = [x.size for x in jax.tree.leaves(run.abstract_state.params)]
  assert run.flops_per_step() == 7 * sum(sizes)


def test_utilisation_is_of_all_devices(tuned):
  _, before, rows = tuned
  images = jax.ShapeDtypeStruct((BATCH_SIZE, 16, 16, 3), 'float32')
  model = lookup.build('models', MODEL, 'Model')
  forward = flops.count(
    lambda x: model.apply({'params': trees.unflatten(before)}, x), images
  )
  steps_per_second = rows[-1]['train/images_per_second'] / BATCH_SIZE
  want = 3 * forward * steps_per_second / (PEAK * jax.device_count())
  assert jax.device_count() == 8
  assert rows[-1]['train/mfu'] == pytest.approx(want)


@pytest.mark.parametrize(
  ('optimizer', 'message'),
  [
    (dict(hold_epochs=[('hed/.*', 1)]), 'optimizer.hold_epochs: '),
    (
      dict(weight_decay=dict(name='linear', start=0, end=1, over_epochs=0)),
      'weight_decay.over_epochs=0: expected 1 or more',
    ),
    (dict(warmup_epochs=4), r'warmup_epochs=4 \(10 steps\) must be less than'),
    (dict(hold_steps=[('hed/.*', 1)]), 'optimizer.hold_steps: '),
  ],
)
def test_errors_of_durations_name_the_keys_of_the_config(optimizer, message):
  section = dict(name='adamw', learning_rate=1e-3) | optimizer
  with pytest.raises(UserError, match=message):
    train.build(tiny_runs.plain(optimizer=section))


def test_an_objective_names_the_keys_of_the_config():
  section = dict(name='supervised', rampp_epochs=1)
  with pytest.raises(UserError, match="unknown key 'rampp_epochs'"):
    train.build(tiny_runs.plain(objective=section))
