"""Published settings of fine-tuning beyond big_vision's five datasets."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.commands import _recipe
from vit_jax.configs import common_transfer, common_weights
from vit_jax.data import splits
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.optim import chain
from vit_jax.training import train

RECIPE = str(pathlib.Path(__file__).parents[2] / 'configs/finetune.py')
VTAB = [name for name in common_transfer.SETTINGS if name.startswith('vtab/')]
# google-research/task_adaptation: classes, images of train in TFDS.
CLASSES = {
  'caltech101': 102,
  'cifar100': 100,
  'dtd': 47,
  'flowers102': 102,
  'pets': 37,
  'sun397': 397,
  'svhn': 10,
  'camelyon': 2,
  'eurosat': 10,
  'resisc45': 45,
  'retinopathy': 5,
  'clevr_count': 8,
  'clevr_distance': 6,
  'dmlab': 6,
  'dsprites_location': 16,
  'dsprites_orientation': 16,
  'kitti_distance': 4,
  'smallnorb_azimuth': 18,
  'smallnorb_elevation': 9,
}
# Its fraction of train that train800 is the start of, where val200 follows it.
TRAIN = {
  'caltech101': (3057, 0.9),
  'cifar100': (50_000, 0.9),
  'pets': (3680, 0.8),
  'svhn': (73_257, 0.9),
  'eurosat': (27_000, 0.6),
  'resisc45': (31_500, 0.6),
  'clevr_count': (70_000, 0.9),
  'clevr_distance': (70_000, 0.9),
  'dsprites_location': (737_280, 0.8),
  'dsprites_orientation': (737_280, 0.8),
}


def load(arg=''):
  return _recipe.load(f'{RECIPE}:{arg}')


def test_vtab_has_its_nineteen_tasks():
  assert VTAB == [f'vtab/{name}' for name in CLASSES]


@pytest.mark.parametrize('task', CLASSES)
def test_a_vtab_task_has_800_and_200_images_and_the_setting_of_the_paper(task):
  config = load(f'model=vit-B/16,data=vtab/{task}')
  assert config.model.num_classes == CLASSES[task]
  assert config.total_steps == 2500 and config.input.batch_size == 512
  assert config.optimizer.learning_rate == 0.01
  assert config.input.data.split == 'train[:800]'
  val = splits.parse(config.evals.val.data.split)
  test = config.evals.test.data.split
  if task in TRAIN:
    num, fraction = TRAIN[task]
    start = math.floor(round(num * fraction, 6))
    assert (val.name, val.start, val.stop) == (
      'train',
      str(start),
      str(start + 200),
    )
    if test.startswith('train'):
      assert int(test[6:-2]) >= start + 200
  else:
    assert val.text in ('validation[:200]', 'test[:200]')
    assert test in ('test', 'test[50%:]')
  assert 'random_crop' not in config.evals.test.ops
  assert config.evals.test.ops.endswith('|resize(384, antialias=False)')
  last = load(f'data=vtab/{task},trainval')
  assert last.input.data.split == f'train[:800]+{val.text}'
  assert list(last.evals) == ['test']


def test_labels_that_tfds_lacks_are_made_of_its_features():
  made = {
    'clevr_count': 'objects',
    'clevr_distance': 'objects',
    'kitti_distance': 'objects',
    'dsprites_location': 'value_x_position',
    'dsprites_orientation': 'value_orientation',
  }
  for task in CLASSES:
    config = load(f'data=vtab/{task}')
    sections = [config.input, config.evals.val, config.evals.test]
    for section in sections:
      assert (f'vtab_label({task!r})' in section.ops) == (task in made)
      if task in made:
        assert section.data.label_key == made[task]
    assert ('flip_lr' in config.input.ops) == (
      task not in made
      and task not in ('dmlab', 'smallnorb_azimuth', 'smallnorb_elevation')
    )
  key = load('data=vtab/smallnorb_azimuth').input.data.label_key
  assert key == 'label_azimuth'


@pytest.mark.parametrize(
  'model, data, rate',
  [
    ('vit-B/16', 'cifar10', 0.01),
    ('vit-B/32', 'cifar10', 0.03),
    ('vit-L/16', 'cifar10', 0.03),
    ('vit-B/16', 'cifar100', 0.03),
    ('vit-B/16', 'imagenet2012', 0.03),
    ('vit-B/16', 'oxford_iiit_pet', 0.003),
  ],
)
def test_the_papers_models_have_the_rates_and_images_of_their_code(
  model, data, rate
):
  config = load(f'model={model},data={data}')
  assert config.optimizer.learning_rate == rate
  assert config.evals.val.ops == 'decode|resize(384, antialias=False)'
  assert 'random_resized_crop(384' in config.input.ops
  other = load(f'model={model},data={data},crop=resmall')
  assert 'random_crop(384)' in other.input.ops


def test_the_papers_large_models_keep_their_dropout():
  rates = {
    model: load(f'model={model}').model.get('dropout_rate', 0)
    for model in ('vit-L/16', 'vit-H/14', 'vit-B/16', 'vit-L/32', 'augreg-L/16')
  }
  assert rates == {
    'vit-L/16': 0.1,
    'vit-H/14': 0.1,
    'vit-B/16': 0,
    'vit-L/32': 0,
    'augreg-L/16': 0,
  }
  assert load('dropout=0.2').model.dropout_rate == 0.2


def test_the_paper_fine_tuned_at_512_and_518_pixels():
  for model, size in (('vit-L/16', 512), ('vit-H/14', 518), ('vit-B/16', 384)):
    config = load(f'model={model},data=imagenet2012,settings=vit_paper')
    assert f'resize({size},' in config.evals.test.ops
    assert config.total_steps == 20_000 and config.model.num_classes == 1000
  assert load('data=vit_paper').input.data.dataset == 'imagenet2012'


DEIT = dict(
  warmup_epochs=5.0, stair_epochs=1.0, schedule='deit', end_learning_rate=1e-5
)


@pytest.mark.parametrize(
  'data, epochs, optimizer, more',
  [
    (
      'cars196',
      1000,
      dict(name='sgd', learning_rate=0.01, weight_decay=1e-4),
      {},
    ),
    (
      'i_naturalist2018',
      360,
      dict(name='adamw', learning_rate=7.5e-5, weight_decay=0.05),
      dict(stochastic_depth_rate=0.1),
    ),
  ],
)
def test_deit_transfers_as_its_issues_say(data, epochs, optimizer, more):
  config = load(f'model=deit-B/16-i1k,data={data}')
  assert config.total_epochs == epochs and 'total_steps' not in config
  assert config.input.batch_size == 768 and config.input.repeats == 3
  section = config.optimizer.to_dict()
  assert section | optimizer | DEIT == section
  assert 'grad_clip_norm' not in section
  ops = config.input.device_ops.split('|')
  assert ops[-1] == 'mixup_cutmix(0.8, 1.0, label_smoothing=0.1)'
  assert ("random_erasing(0.1, mode='pixel')" in ops) == bool(more)
  assert config.model.to_dict() == config.model.to_dict() | more
  assert "rand_augment('rand-m9-mstd0.5-inc1')" in config.input.ops
  assert "resize_small(438, method='bicubic'" in config.evals.val.ops
  # Its data under another name, or with another optimizer.
  config = load(f'data=x,num_classes=9,settings={data},optimizer=sgd')
  assert config.input.data.dataset == 'x' and config.model.num_classes == 9
  assert config.optimizer.schedule == 'cosine'


def test_augmentation_is_an_option():
  config = load('mixup=0.2,label_smoothing=0.1,randaugment,erasing=0.25')
  assert config.input.device_ops == (
    "normalize(-1, 1)|random_erasing(0.25, mode='pixel')"
    '|mixup_cutmix(0.2, 0.0, label_smoothing=0.1)'
  )
  assert config.input.ops.endswith("|rand_augment('rand-m9-mstd0.5-inc1')")
  assert 'label_smoothing' not in config.objective
  config = load('label_smoothing=0.1,stochastic_depth=0.2')
  assert config.objective.label_smoothing == 0.1
  assert config.model.stochastic_depth_rate == 0.2
  assert config.input.device_ops == 'normalize(-1, 1)'


def test_layers_unfreeze_in_stages():
  config = load('model=augreg-L/16,unfreeze=2')
  assert config.optimizer.to_dict()['hold_steps'] == [
    ('encoder/block_(22|23)/.*|(encoder/norm|norm|pooling)/.*', 1000),
    ('(?!head/).*', 2000),
  ]
  config = load('model=deit-B/16-i1k,data=cars196,unfreeze=1')
  assert config.optimizer.hold_epochs[1] == ('(?!head/).*', 200.0)


def test_the_stages_hold_back_the_parameters_of_a_model():
  section = load('model=augreg-S/16,unfreeze=2,steps=20').optimizer.to_dict()
  model = vit.Model('mu/8', num_classes=3, depth=12)
  image = np.zeros((1, 16, 16, 3), 'f')
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  params = jax.tree.map(lambda x: np.ones(x.shape, 'f'), shapes)
  section |= dict(total_steps=20, warmup_steps=0)
  tx, _ = chain.make(params, **section)
  state, update, moves = tx.init(params), jax.jit(tx.update), []
  for _ in range(5):
    updates, state = update(params, state, params)
    moves.append(
      {name for name, x in trees.flatten(updates).items() if np.any(x)}
    )
  names = set(trees.flatten(params))
  head = {'head/kernel', 'head/bias'}
  last = {
    name
    for name in names
    if name.startswith(('encoder/block_10/', 'encoder/block_11/'))
  } | {'encoder/norm/scale', 'encoder/norm/bias'}
  assert moves == [head, head, head | last, head | last, names]


def test_a_run_is_resized_as_its_code_base_does(tmp_path):
  for activation, resize in (('gelu', 'torch'), (None, 'google')):
    run = dict(
      model=dict(name='vit', variant='B/16')
      | ({'activation': activation} if activation else {}),
      input=dict(ops='decode|resize(224)', device_ops='normalize(-1, 1)'),
    )
    (tmp_path / 'config.json').write_text(json.dumps(run))
    config = load(f'model={tmp_path}')
    assert config.init_from[0]['resize'] == resize
  assert 'resize' not in load('model=dino-S/16').init_from[0]


@pytest.mark.parametrize(
  'arg, message',
  [
    ('settings=cars', 'settings=cars: expected one of imagenet2012, .*cars196'),
    ('data=vtab/cars', 'data=vtab/cars: expected one of .*vtab/caltech101'),
    ('unfreeze=13', 'unfreeze=13: expected 1 to 12 blocks'),
    ('unfreeze=2,freeze', 'only the head learns: remove unfreeze'),
    ('model=/x.pth,unfreeze=2', 'does not say how many blocks it has'),
    ('model=/x.pth,mixup=0.2', 'does not say how images are normalised before'),
    (
      'data=/no/x,num_classes=2,trainval',
      'trainval goes with datasets of TFDS',
    ),
  ],
)
def test_a_wrong_option_is_an_error_that_says_what_to_do(arg, message):
  with pytest.raises(UserError, match=f'(?s){message}'):
    load(arg)


@pytest.mark.parametrize(
  'arg',
  [
    'data=vtab/clevr_count,trainval',
    'model=deit-B/16-i1k,data=i_naturalist2018',
    'data=cars196,unfreeze=1',
    'data=imagenet2012,extra_evals=all',
  ],
)
def test_a_setting_trains_two_smoke_steps(arg, tmp_path):
  config = load(f'{arg},smoke')
  if 'unfreeze' in arg:  # Of the one block and two steps of a smoke run.
    config.optimizer.hold_epochs = [('(?!head/).*', 0.5)]
  results = train.train(str(tmp_path), **config.to_dict())
  assert all(math.isfinite(value) for value in results.values())
  assert {f'{name}/top1' for name in config.evals} <= results.keys()


def test_an_unpublished_size_belongs_to_its_family():
  section, device_ops, resolution = common_weights.model_of('dinov2-g/14', 518)
  assert (section['layer_scale'], section['activation']) == (1e-5, 'gelu')
  assert device_ops == dict(device_ops="normalize('imagenet')")
  assert resolution == 518
