"""What a run computes beside its steps, against the bare model."""

import json

import jax
import numpy as np
import pytest

from vit_jax import flops, lookup, train, trees
from vit_jax.data import pipeline
from vit_jax.pretrained import catalog, our_files
from vit_jax.pretrained.weights import Weights

MODEL = dict(name='vit', variant='mu/8', num_classes=4, head_zero_init=False)
DATA = dict(name='synthetic', image_size=16, num_classes=4)
TEST = dict(DATA, split='test', num_examples=21)
BATCH_SIZE = 16
PEAK = 1e12
# Only in training: a flip, which leaves labels alone, and mixed images.
DEVICE_OPS = 'normalize(-1, 1)|flip_lr(1.0)|mixup(0.5)'


def apply(params, images):
  """Returns logits of images in 0..255, by the model alone."""
  model = lookup.build('models', MODEL, 'Model')
  x = np.float32(images) / 127.5 - 1
  return np.float64(model.apply({'params': params}, x, train=False)['logits'])


def config(**changes):
  return (
    dict(
      model=MODEL,
      objective=dict(name='supervised'),
      input=dict(
        data=dict(DATA, split='train', num_examples=40),
        ops='',
        device_ops=DEVICE_OPS,
        batch_size=BATCH_SIZE,
      ),
      optimizer=dict(name='sgd', learning_rate=1.0, schedule='constant'),
      total_steps=2,
    )
    | changes
  )


def test_predictions_are_those_of_the_model_on_images_as_they_are():
  run = train.build(config())
  state = run.init()
  batch = next(run.input.batches())
  images = batch['image']
  assert not np.array_equal(images, images[:, :, ::-1])
  spread = pipeline.to_global(batch, run.batch_spec['image'].sharding)
  logits = run.predict(state.params, spread)['logits']
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
  our_files.write(weights, folder / 'w.safetensors')
  changes = config(
    optimizer=dict(
      name='sgd', learning_rate=1.0, schedule='constant', freeze=['(?!head/).*']
    ),
    ema=dict(decay=0.9),
    init_from=[dict(weights=str(folder / 'w.safetensors'))],
    evals=dict(
      val=dict(
        name='classification', data=TEST, ops='', weights=('params', 'ema')
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
  source = lookup.build('data/sources', TEST, 'Source')
  images = np.stack([source[i]['image'] for i in range(21)])
  labels = np.asarray([source[i]['label'] for i in range(21)])
  losses = []
  for prefix, ema in (('val', False), ('val_ema', True)):
    logits = apply(catalog.load(folder, ema=ema).params, images)
    losses.append(-np.mean(_log_softmax(logits)[np.arange(21), labels]))
    assert rows[-1][f'{prefix}/loss'] == pytest.approx(losses[-1], rel=1e-4)
    top1 = np.mean(logits.argmax(-1) == labels)
    assert rows[-1][f'{prefix}/top1'] == pytest.approx(top1)
  assert abs(losses[0] - losses[1]) > 1e-2


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
