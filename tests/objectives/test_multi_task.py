"""The objective multi_task: losses by hand, missing labels, real runs."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.special

import vit_jax
from vit_jax.data.sources import digits
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.objectives import multi_task
from vit_jax.training import train

STATE = types.SimpleNamespace(step=0, extra={}, frozen={})
TASKS = dict(
  breed=dict(label='label', num_classes=3, weight=2.0),
  attributes=dict(label='attributes', num_classes=2, loss='sigmoid'),
  age=dict(label='age', loss='mse', mean=40.0, std=10.0, weight=0.5),
)
NAN = np.nan
BATCH = dict(
  image=np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype('f'),
  label=np.int32([0, 2, -1, 1]),
  attributes=np.float32([[1, 0], [NAN, 1], [0, -1], [1, 1]]),
  age=np.float32([30, NAN, 55, 41]),
)


def _objective(tasks=TASKS, **model):
  return multi_task.Objective(vit.Model('mu/4', depth=1, **model), tasks=tasks)


def _params(objective, scale=0.3):
  params = objective.init(jax.random.key(0), BATCH)['params']
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: x + scale * rng.normal(size=x.shape).astype('f'), params
  )


def _loss(objective, params, batch=BATCH):
  rng = jax.random.key(2)
  return objective.loss(params, STATE, batch, rng)


def test_the_loss_is_the_weighted_sum_of_means_over_known_labels():
  objective = _objective()
  params = _params(objective)
  outputs = {
    k: np.float64(x) for k, x in objective.predict(params, BATCH).items()
  }
  loss, (metrics, extra) = _loss(objective, params)
  rows = [0, 1, 3]
  log_p = scipy.special.log_softmax(outputs['logits/breed'], axis=-1)
  breed = -np.mean(log_p[rows, BATCH['label'][rows]])
  known = np.array([[1, 1], [0, 1], [1, 0], [1, 1]], bool)
  sign = np.where(BATCH['attributes'] == 1, 1, -1)
  attributes = -scipy.special.log_expit(sign * outputs['logits/attributes'])
  rows = [0, 2, 3]
  error = outputs['value/age'][rows] - BATCH['age'][rows]
  expected = dict(
    breed_loss=breed,
    attributes_loss=attributes[known].mean(),
    age_loss=np.mean((error / 10) ** 2),
    age_mae=np.abs(error).mean(),
  )
  for key, value in expected.items():
    np.testing.assert_allclose(metrics[key], value, rtol=1e-4, err_msg=key)
  total = 2 * breed + attributes[known].mean() + 0.5 * expected['age_loss']
  np.testing.assert_allclose(loss, total, rtol=1e-4)
  assert metrics['loss'] == loss and extra == {}
  best = outputs['logits/breed'].argmax(-1)
  right = best[[0, 1, 3]] == BATCH['label'][[0, 1, 3]]
  np.testing.assert_allclose(metrics['breed_top1'], right.mean())
  right = (outputs['logits/attributes'] > 0) == (BATCH['attributes'] == 1)
  np.testing.assert_allclose(
    metrics['attributes_accuracy'], right[known].mean()
  )


def test_images_without_a_label_do_not_change_gradients_of_its_head():
  objective = _objective()
  params = _params(objective)
  grad = jax.grad(lambda p, b: _loss(objective, p, b)[0])
  unknown = {'breed': 2, 'age': 1}
  first = grad(params, BATCH)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(first))
  for task, row in unknown.items():
    image = BATCH['image'].copy()
    image[row] = 0
    other = grad(params, BATCH | dict(image=image))
    jax.tree.map(
      np.testing.assert_array_equal, first['head'][task], other['head'][task]
    )
  nothing = BATCH | dict(
    label=np.full(4, -1, np.int32),
    attributes=np.full((4, 2), NAN, 'f'),
    age=np.full(4, NAN, 'f'),
  )
  assert _loss(objective, params, nothing)[0] == 0
  grads = jax.tree.leaves(grad(params, nothing))
  assert all(not np.any(x) for x in grads)


def test_a_class_that_the_task_does_not_have_is_nan():
  objective = _objective()
  batch = BATCH | dict(label=np.int32([0, 3, -1, 1]))
  assert np.isnan(_loss(objective, _params(objective), batch)[0])
  batch = BATCH | dict(label=np.int32([0, -2, -1, 1]))
  assert np.isnan(_loss(objective, _params(objective), batch)[0])


def test_columns_of_one_number_each_are_labels_in_their_order():
  fields = ['even', 'large']
  tasks = dict(x=dict(label=fields, num_classes=2, loss='sigmoid'))
  objective = _objective(tasks)
  assert objective.fields == ('image', 'even', 'large')
  even, large = BATCH['attributes'].T
  batch = dict(image=BATCH['image'], even=even, large=large)
  together = dict(x=dict(TASKS['attributes']))
  params = _params(objective)
  np.testing.assert_array_equal(
    _loss(objective, params, batch)[0],
    _loss(_objective(together), params)[0],
  )


def test_heads_have_the_options_of_the_models_head():
  options = dict(head_hidden_dim=6, head_dropout_rate=0.5)
  objective = _objective(**options)
  params = _params(objective)
  assert params['head']['age']['hidden']['kernel'].shape == (32, 6)
  assert params['head']['age']['kernel'].shape == (6, 1)
  losses = [
    objective.loss(params, STATE, BATCH, jax.random.key(i))[0] for i in (0, 1)
  ]
  assert losses[0] != losses[1]


@pytest.mark.parametrize(
  'task, words',
  [
    (dict(label='x', loss='l1'), "loss='l1': expected one of"),
    (dict(label='x'), 'num_classes=None: expected 1 or more'),
    (dict(label='x', loss='mse', num_classes=2), 'num_classes=2 with'),
    (dict(label=['x', 'y'], num_classes=2), '2 fields for 1 labels'),
    (dict(label='x', num_classes=2, mean=3.0), 'mean and std have no effect'),
    (dict(label='x', loss='mae', std=0.0), 'std=0.0: expected more than 0'),
    (dict(label='x', num_classes=2, weight=-1.0), 'weight=-1.0'),
    (dict(label='x', num_classes=2, wieght=1.0), "did you mean 'weight'"),
    (
      dict(label='x', loss='sigmoid', num_classes=2, label_smoothing=0.1),
      'label_smoothing has no effect',
    ),
  ],
)
def test_wrong_tasks_are_errors(task, words):
  with pytest.raises(UserError, match=words):
    _objective(dict(age=task))


def test_a_model_with_a_head_or_without_features_is_an_error():
  with pytest.raises(UserError, match='num_classes=5 makes a head'):
    _objective(num_classes=5)
  dense = _objective(pooling='none')
  with pytest.raises(UserError, match='expected a model'):
    dense.init(jax.random.key(0), BATCH)
  objective = _objective()
  wrong = BATCH | dict(attributes=np.zeros((4, 5), 'f'))
  with pytest.raises(UserError, match=r'float32\[4, 5\].*expects \[B, 2\]'):
    _loss(objective, _params(objective), wrong)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run on digits with columns of a table; a tenth of labels is missing."""
  folder = tmp_path_factory.mktemp('digits')
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    source = digits.Source(split)
    lines = ['image,label,even,large,ink']
    for i in range(len(source)):
      example = source[i]
      image, label = example['image'][:, :, 0], example['label']
      PIL.Image.fromarray(image).save(folder / f'{split}_{i}.png')
      even, large = str(int(label % 2 == 0)), str(int(label > 4))
      ink = f'{image.mean():.3f}'
      if split == 'train' and rng.random() < 0.1:
        even, ink = '-1', 'nan'
      lines.append(f'{split}_{i}.png,{label},{even},{large},{ink}')
    (folder / f'{split}.csv').write_text('\n'.join(lines) + '\n')
  table = dict(
    name='table',
    path=str(folder / '{split}.csv'),
    columns=['even', 'large', 'ink'],
  )
  tasks = dict(
    digit=dict(label='label', num_classes=10),
    kind=dict(label=['even', 'large'], num_classes=2, loss='sigmoid'),
    ink=dict(label='ink', loss='mse', mean=78.0, std=10.0),
  )
  results = train.train(
    folder / 'run',
    model=dict(name='vit', variant='mu/4', width=64, depth=2),
    objective=dict(name='multi_task', tasks=tasks),
    input=dict(
      data=dict(table, split='train'),
      ops='decode(1)',
      device_ops='normalize(-1, 1)',
      batch_size=64,
    ),
    optimizer=dict(name='adamw', learning_rate=3e-3, warmup_steps=20),
    total_steps=400,
    evals=dict(
      val=dict(
        name='multi_task',
        tasks=tasks,
        data=dict(table, split='test'),
        ops='decode(1)',
      )
    ),
    checkpoint=dict(every_steps=400),
  )
  del results
  return folder


def test_it_learns_three_tasks_of_a_table(run):
  lines = (run / 'run/metrics.jsonl').read_text().splitlines()
  last = {}
  for line in lines:
    last |= json.loads(line)
  assert last['val/num_examples'] == 360
  assert last['val/digit_top1'] > 0.85
  assert last['val/kind_accuracy'] > 0.9 and last['val/kind_map'] > 0.95
  # The standard deviation of the ink is 9.
  assert last['val/ink_mae'] < 3 and last['val/ink_rmse'] < 4


@pytest.mark.parametrize('task', ['digit', 'kind', 'ink'])
def test_a_task_of_a_run_is_a_model_of_its_own(run, task, tmp_path):
  model = vit_jax.load(run / 'run', part=task, on_log=str)
  paths = [run / f'test_{i}.png' for i in range(20)]
  images = np.stack([np.asarray(PIL.Image.open(x)) for x in paths])[..., None]
  source = digits.Source('test')
  labels = np.array([source[i]['label'] for i in range(20)])
  logits = model(images)['logits']
  if task == 'digit':
    assert np.mean(logits.argmax(-1) == labels) > 0.7
    assert model.loss == 'softmax'
    answers = [x[0].label for x in model.predict([str(x) for x in paths])]
    assert answers == logits.argmax(-1).tolist()
  elif task == 'kind':
    kinds = np.stack([labels % 2 == 0, labels > 4], axis=-1)
    assert np.mean((logits > 0) == kinds) > 0.8
    assert model.loss == 'sigmoid'
  else:
    ink = images.mean((1, 2, 3))
    assert np.abs(logits[:, 0] - ink).mean() < 4
  model.save(tmp_path / 'task.safetensors')
  again = vit_jax.load(tmp_path / 'task.safetensors')
  np.testing.assert_array_equal(again(images)['logits'], logits)


def test_a_run_of_several_tasks_asks_for_one(run):
  with pytest.raises(UserError, match=r"part='digit'.*digit, kind, ink"):
    vit_jax.load(run / 'run', on_log=str)
  with pytest.raises(UserError, match=r"'digt' is no task.*digit, kind, ink"):
    vit_jax.load(run / 'run', part='digt', on_log=str)
  backbone = vit_jax.load(run / 'run', model=dict(num_classes=None), on_log=str)
  image = jnp.zeros((1, 8, 8, 1), 'uint8')
  assert backbone(np.asarray(image))['features'].shape == (1, 64)
