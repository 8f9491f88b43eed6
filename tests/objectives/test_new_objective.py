"""A new method as one file: frozen teacher, rising average, two image sizes.

The objective here is nobody's; it uses every opening that one has, through
`train()`, from a file outside the package.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from vit_jax import lookup, trees
from vit_jax.checkpoints import format as checkpoint_format, reader
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog, initialize
from vit_jax.training import train

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 6  # Three epochs.
MODEL = dict(
  name='vit',
  variant='mu/8',
  depth=1,
  position='sincos2d',
  num_classes=None,
  dropout_rate=0.1,
)
OBJECTIVE = '''
"""Matches local views to a frozen teacher and to the average of the student."""

import jax
import jax.numpy as jnp

from vit_jax import lookup

class Objective:
  fields = ('image', 'local_image')

  def __init__(self, model, *, teacher, total_steps, ramp_steps):
    self.student = model
    self.teacher = lookup.build('models', teacher, 'Model')
    self.total_steps, self.ramp_steps = total_steps, ramp_steps
    assert total_steps == 6

  def models(self):
    return {'params/backbone': self.student, 'frozen/teacher': self.teacher}

  def init(self, rng, batch):
    keys = jax.random.split(rng, 3)
    image = jnp.zeros((1, *batch['image'].shape[2:]), jnp.float32)
    student, teacher = (
      model.init(key, image)['params']
      for model, key in zip((self.student, self.teacher), keys)
    )
    width = self.student.width
    last = 0.1 * jax.random.normal(keys[2], (width, self.teacher.width))
    return dict(
      params=dict(backbone=student, head=dict(last=dict(kernel=last))),
      frozen=dict(teacher=teacher),
      extra=dict(center=jnp.zeros((1, self.teacher.width))),
    )

  def _embed(self, params, image, **options):
    backbone = {'params': params['backbone']}
    features = self.student.apply(backbone, image, **options)['features']
    return features @ params['head']['last']['kernel']

  def loss(self, params, state, batch, rng):
    (_, views), images = batch['image'].shape[:2], batch['image']
    assert views == 2
    teacher_BD = self.teacher.apply(
      {'params': state.frozen['teacher']}, images[:, 0], train=False
    )['features']
    average_BD = self._embed(state.ema_params, images[:, 1], train=False)
    center = state.extra['center']
    ramp = jnp.minimum(state.step / self.ramp_steps, 1.0)
    target_BD = teacher_BD - center + ramp * average_BD
    loss = 0.0
    local = batch['local_image']
    for view in range(local.shape[1]):
      rngs = {'dropout': jax.random.fold_in(rng, view)}
      found_BD = self._embed(params, local[:, view], train=True, rngs=rngs)
      loss += jnp.mean((found_BD - jax.lax.stop_gradient(target_BD)) ** 2)
    center = 0.9 * center + 0.1 * jnp.mean(teacher_BD, axis=0, keepdims=True)
    return loss, ({'ramp': ramp}, {'center': center})

  def predict(self, params, batch, *, extra, frozen):
    teacher_BD = self.teacher.apply(
      {'params': frozen['teacher']}, batch['image'], train=False
    )['features']
    embedded_BD = self._embed(params, batch['image'], train=False)
    return {'features': embedded_BD + teacher_BD - extra['center']}
'''
SOURCE = '''
"""The synthetic images, until as many were read as KILL_AFTER says."""
import itertools, os, signal
from vit_jax.data.sources import synthetic

_reads = itertools.count(1)

class Source(synthetic.Source):
  def __getitem__(self, index):
    if next(_reads) == int(os.environ.get('KILL_AFTER', -1)):
      os.kill(os.getpid(), signal.SIGKILL)
    return super().__getitem__(index)
'''


def _config(teacher, **changes):
  data = dict(name='synthetic', image_size=16, num_classes=4)
  views = 'global_ops=["", "flip_lr"], local_ops="flip_lr"'
  test = dict(data, split='test', num_examples=16)
  return dict(
    model=MODEL,
    objective=dict(
      name='mine.objective',
      teacher=MODEL | dict(dropout_rate=0.0),
      ramp_epochs=1,
    ),
    input=dict(
      data=dict(data, name='mine.source', split='train', num_examples=32),
      ops=f'multi_crop(16, num_local=2, local_size=8, {views})',
      device_ops='normalize(-1, 1)|flip_lr',
      batch_size=16,
    ),
    optimizer=dict(
      name='adamw',
      learning_rate=1e-2,
      weight_decay=dict(name='cosine', start=0.04, end=0.4),
      hold_epochs=[('head/last/.*', 1)],
    ),
    total_epochs=3,
    ema=dict(decay=dict(name='cosine', start=0.5, end=1.0, over_epochs=2)),
    init_from=[
      dict(weights=teacher, into='frozen/teacher'),
      dict(weights=teacher, into='params/backbone'),
    ],
    evals=dict(
      knn=dict(
        name='knn',
        data_train=test,
        data_test=test,
        ops='',
        k=(3,),
        batch_size=16,
        weights=('params', 'ema'),
      )
    ),
    checkpoint=dict(every_steps=1, keep_latest=20),
    log_every_steps=1,
    **changes,
  )


def _command(folder, workdir, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'vit_jax', 'train']
    + [f'--config={folder}/recipe.py', f'--workdir={workdir}'],
    env=dict(
      os.environ, PYTHONPATH=f'{ROOT}{os.pathsep}{folder}', **environment
    ),
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A run of 8 devices, the same killed and continued, and one of 1 device."""
  folder = tmp_path_factory.mktemp('new_objective')
  (folder / 'mine').mkdir()
  (folder / 'mine/objective.py').write_text(OBJECTIVE)
  (folder / 'mine/source.py').write_text(SOURCE)
  config = _config(str(folder / 'teacher.safetensors'))
  _write_teacher(folder / 'teacher.safetensors')
  (folder / 'recipe.py').write_text(
    'import ml_collections\n'
    f'def get_config():\n  return ml_collections.ConfigDict({config})\n'
  )
  # Images 1 to 16 make step 1, ...
  killed = _command(folder, folder / 'killed', KILL_AFTER='85')
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    train.train(folder / 'whole', **config)
    assert 0 < len(_rows(folder / 'killed')) < STEPS
    train.train(folder / 'killed', **config)
    one = dict(mesh=dict(devices=jax.devices()[:1]), evals=None)
    train.train(folder / 'one', **config | one)
  return folder


def _write_teacher(path):
  from vit_jax.pretrained.weights import Weights

  section = {k: v for k, v in MODEL.items() if k != 'dropout_rate'}
  model = lookup.build('models', section, 'Model')
  image = np.zeros((1, 16, 16, 3), np.float32)
  params = jax.jit(model.init)(jax.random.key(5), image)['params']
  catalog.save(Weights(jax.tree.map(np.asarray, params), section), path)


def _rows(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def _losses(workdir):
  return [
    (row['step'], row['train/loss'], row['train/ramp'])
    for row in _rows(workdir)
    if 'train/loss' in row
  ]


def _leaves(workdir, step):
  """Returns all leaves of a checkpoint by name."""
  directory = checkpoint_format.absolute(workdir / 'checkpoints')
  meta = checkpoint_format.read_meta(directory, step)
  named = {
    name: jax.ShapeDtypeStruct(tuple(leaf['shape']), leaf['dtype'])
    for name, leaf in meta['leaves'].items()
  }
  return reader.read_state(directory, meta, named)


def _below(leaves, folder):
  return {
    name.removeprefix(f'{folder}/'): x
    for name, x in leaves.items()
    if name.startswith(f'{folder}/')
  }


def _is_same(a, b):
  assert a.keys() == b.keys() and a
  return all(np.array_equal(a[name], b[name]) for name in a)


def test_a_killed_run_ends_with_the_bits_of_a_whole_one(runs):
  assert _losses(runs / 'killed') == _losses(runs / 'whole')
  ours, theirs = (_leaves(runs / x, STEPS) for x in ('killed', 'whole'))
  assert _is_same(ours, theirs)
  last = [_rows(runs / x)[-1] for x in ('killed', 'whole')]
  for key in ('knn/3nn', 'knn_ema/3nn'):
    assert last[0][key] == last[1][key]


def test_one_device_has_the_losses_of_eight(runs):
  one, eight = (np.array(_losses(runs / x)) for x in ('one', 'whole'))
  assert len(one) == STEPS
  # float32 sums in another order, through six updates of Adam.
  np.testing.assert_allclose(one, eight, rtol=1e-3)
  assert eight[-1, 1] < eight[0, 1]


def test_the_teacher_is_the_file_and_stays(runs):
  teacher = trees.flatten(catalog.load(runs / 'teacher.safetensors').params)
  for step in (1, STEPS):
    leaves = _leaves(runs / 'whole', step)
    assert _is_same(_below(leaves, 'frozen/teacher'), teacher)
  assert not _is_same(_below(leaves, 'params/backbone'), teacher)
  assert not any('teacher' in x for x in _below(leaves, 'opt_state'))
  assert not any('teacher' in x for x in _below(leaves, 'ema_params'))


def test_the_average_of_its_backbone_starts_a_plain_model(runs):
  average = _below(_leaves(runs / 'whole', STEPS), 'ema_params/backbone')
  entry = dict(weights=str(runs / 'whole'), part='backbone')
  zeros = jax.tree.map(np.zeros_like, trees.unflatten(average))
  model = lookup.build('models', MODEL, 'Model')

  def start(**options):
    return initialize.initialize(
      dict(params=zeros),
      [entry | options],
      models=dict(params=model),
      on_log=str,
    )['params']

  assert _is_same(trees.flatten(start()), average)
  with pytest.raises(UserError, match=r"nothing is in 'bone'; .* backbone"):
    start(part='bone')


def test_durations_are_in_epochs_of_two_steps(runs):
  ramps = [ramp for _, _, ramp in _losses(runs / 'whole')]
  np.testing.assert_allclose(ramps, [0, 0.5, 1, 1, 1, 1])
  head = [_leaves(runs / 'whole', k)['params/head/last/kernel'] for k in (1, 2)]
  np.testing.assert_array_equal(*head)
  third = _leaves(runs / 'whole', 3)['params/head/last/kernel']
  assert not np.array_equal(third, head[0])


def test_the_average_moves_until_its_decay_is_one(runs):
  average = {
    step: _below(_leaves(runs / 'whole', step), 'ema_params')
    for step in (3, 4, 5, STEPS)
  }
  # The decay of update k is 1 from k = 5 on, two epochs after the first.
  assert not _is_same(average[3], average[4])
  assert _is_same(average[4], average[5])
  assert _is_same(average[4], average[STEPS])


def test_the_center_follows_the_teacher(runs):
  centers = [_leaves(runs / 'whole', k)['extra/center'] for k in (1, STEPS)]
  assert np.abs(centers[0]).max() > 0
  assert not np.array_equal(*centers)
