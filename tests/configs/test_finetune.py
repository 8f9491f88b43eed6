"""The recipe for fine-tuning: its settings, its options, and that it tunes."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import lookup, trees
from vit_jax.commands import _config_file, _recipe
from vit_jax.configs import common_data as finetune_data, common_weights
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import catalog, published, resample
from vit_jax.training import train

RECIPE = str(pathlib.Path(__file__).parents[2] / 'configs/finetune.py')
AUGREG_FILE = 'S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'


def load(arg=''):
  return _recipe.load(f'{RECIPE}:{arg}')


@pytest.mark.parametrize('name', published.PUBLISHED)
def test_the_model_section_is_that_of_the_published_name(name):
  entry = published.PUBLISHED[name]
  config = load(f'model={name},dataset=cifar10')
  model = config.model.to_dict()
  assert model.pop('dtype') == 'bfloat16'
  assert model.pop('residual_dtype') == 'float32'
  assert model.pop('num_classes') == 10
  model.pop('dropout_rate', None)  # Of vit-L/16 and vit-H/14.
  expected = dict(entry.model)
  del expected['num_classes']
  expected.pop('representation_size', None)  # It goes with the head.
  assert model == expected
  assert config.init_from[0]['weights'] == name
  # What the catalog does not tell is left to the reader of big_vision's files.
  normalize = entry.preprocess.get('device_ops', 'normalize(-1, 1)')
  assert config.input.device_ops == normalize


def test_the_model_section_follows_from_the_name_of_an_augreg_file():
  config = load(f'model={AUGREG_FILE}')
  assert config.model.variant == 'S/16'
  assert config.init_from[0]['weights'] == AUGREG_FILE
  assert load(f'model=/data/{AUGREG_FILE}.npz').model == config.model


def test_the_default_resolution_is_the_multiple_of_the_patch_nearest_to_384():
  for model, side, larger in (
    ('dino-S/8', 384, 448),
    ('augreg-B/32', 384, 448),
    ('dinov2-B/14', 378, 441),
  ):
    ops = load(f'model={model}').evals.val.ops
    assert ops == (
      f"decode|resize_small({larger}, method='area')|central_crop({side})"
    )


# Steps, warm-up, rate, crop, classes: big_vision's configs/transfer.py.
TABLE = {
  'imagenet2012': (20_000, 500, 0.03, 'random_resized_crop(384', 1000),
  'cifar10': (10_000, 500, 0.003, 'random_crop(384)', 10),
  'cifar100': (10_000, 500, 0.01, 'random_crop(384)', 100),
  'oxford_iiit_pet': (500, 100, 0.003, 'random_resized_crop(384', 37),
  'oxford_flowers102': (500, 100, 0.003, 'random_resized_crop(384', 102),
}


@pytest.mark.parametrize('dataset', TABLE)
def test_a_dataset_has_the_settings_of_its_authors(dataset):
  steps, warmup_steps, rate, crop, num_classes = TABLE[dataset]
  config = load(f'dataset={dataset}')
  assert config.total_steps == steps
  assert config.optimizer.to_dict() == dict(
    name='sgd',
    learning_rate=rate,
    momentum=0.9,
    mu_dtype='bfloat16',
    schedule='cosine',
    warmup_steps=warmup_steps,
    grad_clip_norm=1.0,
  )
  assert config.ema.to_dict() == dict(decay=0.9999, warmup=True)
  assert config.input.batch_size == 512
  assert crop in config.input.ops and config.input.ops.endswith('|flip_lr')
  assert config.model.num_classes == num_classes
  # What trains is neither what choices are made on nor what is reported.
  train_split, val, test = (
    section.data.split
    for section in (config.input, config.evals.val, config.evals.test)
  )
  assert train_split.startswith('train[:') and val.startswith('train[')
  assert train_split[7:-1] == val[6:-2] and test in ('test', 'validation')
  assert 'every_steps' not in config.evals.test


def test_a_folder_has_free_settings():
  config = load(
    'data=folder:/no/x,num_classes=7,train=train,val=validation,test=test,'
    'steps=60,crop=resize,resolution=96,model=dino-S/16,weights=/data/w.pth'
  )
  assert config.input.data.to_dict() == dict(
    name='image_folder', data_dir='/no/x', split='train'
  )
  assert config.evals.val.data.split == 'val'
  assert config.evals.test.data.split == 'test'
  assert config.pictures.predictions.data == config.evals.val.data
  assert config.input.ops == (
    'decode|resize(112, antialias=False)|random_crop(96)|flip_lr'
  )
  assert config.total_steps == 60 and config.optimizer.warmup_steps == 12
  assert config.model.num_classes == 7
  assert config.init_from[0]['weights'] == '/data/w.pth'


def _folders(root, *names, count=1):
  for name in names:
    (root / name).mkdir(parents=True)
    for i in range(count):
      (root / name / f'{i}.jpg').touch()


def test_a_users_validation_folder_is_evaluated(tmp_path):
  _folders(tmp_path, 'train/cat', 'train/dog', 'train/.thumbs', 'val/cat')
  config = load(f'data={tmp_path}')
  assert config.model.num_classes == 2
  assert config.input.data.split == 'train'
  assert config.evals.val.data.split == 'val' and list(config.evals) == ['val']
  assert config.pictures.predictions.data.split == 'val'
  assert load(f'data={tmp_path},num_classes=7').model.num_classes == 7
  _folders(tmp_path, 'test/cat')
  config = load(f'data={tmp_path}')
  splits = [config.evals[name].data.split for name in ('val', 'test')]
  assert splits == ['val', 'test']
  config = load(f'data={tmp_path},train=train[:50%],val=train[50%:]')
  assert config.evals.val.data.split == 'train[50%:]'


def test_the_plan_goes_with_the_number_of_images(tmp_path, capsys):
  _folders(tmp_path / 'small', 'train/cat', 'val/cat', count=220)
  _folders(tmp_path / 'tiny', 'train/cat', 'val/cat', count=5)
  config = load(f'data={tmp_path}/small')
  # 220 / 8 = 27.5; 20 * 220 / 16 = 275; 0.01 * sqrt(16 / 512).
  assert config.input.batch_size == 16 and config.total_steps == 275
  assert config.optimizer.learning_rate == 0.0018
  assert config.optimizer.warmup_steps == 55
  assert config.evals.val.every_steps == 13
  assert capsys.readouterr().err == (
    'finetune.py: about 220 training images: 275 steps of 16 images, 20 epochs,'
    ' 384 x 384 pixels\n'
  )
  config = load(f'data={tmp_path}/small,steps=40,optimizer=adamw')
  assert config.input.batch_size == 16 and config.total_steps == 40
  assert config.optimizer.learning_rate == 1.8e-5
  assert '2.91 epochs' in capsys.readouterr().err
  # At most 20 epochs is for those who say nothing.
  assert load(f'data={tmp_path}/small,steps=1000').total_steps == 1000
  assert '72.7 epochs' in capsys.readouterr().err
  config = load(f'data={tmp_path}/tiny')
  assert config.input.batch_size == 8 and config.total_steps == 13


def test_large_data_has_the_published_plan(tmp_path, capsys, monkeypatch):
  _folders(tmp_path, 'train/cat', 'val/cat')
  for count, steps in ((12_800, 500), (4096, 160)):
    monkeypatch.setattr(
      finetune_data, 'num_training_images', lambda *_, n=count, **__: n
    )
    config = load(f'data={tmp_path}')
    assert config.input.batch_size == 512 and config.total_steps == steps
    assert config.optimizer.learning_rate == 0.01
    assert bool(capsys.readouterr().err) == (steps < 500)
  monkeypatch.undo()
  load('data=cifar100')
  load('data=my_data,num_classes=7')
  assert not capsys.readouterr().err


def test_adamw_replaces_sgd_and_its_options():
  section = load('optimizer=adamw,layer_decay=0.75').optimizer.to_dict()
  assert section == dict(
    name='adamw',
    learning_rate=1e-3,
    weight_decay=0.05,
    layer_decay=0.75,
    schedule='cosine',
    warmup_steps=500,
    grad_clip_norm=1.0,
  )
  assert load('optimizer=adamw').optimizer.learning_rate == 1e-4
  assert load('layer_decay=0.5').optimizer.momentum == 0.9


@pytest.mark.parametrize(
  'arg, message',
  [
    ('data=my_data', 'data=my_data .*cifar100.*add num_classes='),
    ('dataset=folder:/no/x', 'data=folder:/no/x: there is no such folder'),
    ('crop=central', "crop='central': expected one of inception, resmall, res"),
    ('optimizer=lion', "'lion': expected one of published, sgd, adamw"),
    ('freeze,layer_decay=0.5', 'only the head learns: remove layer_decay'),
  ],
)
def test_a_wrong_option_is_an_error_that_says_what_to_do(arg, message):
  with pytest.raises(UserError, match=f'(?s){message}'):
    load(arg)


# What a run may have had that is of no use here, and what must stay.
KEPT = dict(name='vit', variant='mu/8', pooling='mean', activation='gelu')
LEFT = dict(
  num_classes=4,
  representation_size=True,
  head_bias_init=-10.0,
  head_zero_init=False,
  weight_init='torch',
  position_init='big_vision',
  stochastic_depth_rate=0.1,
  dropout_rate=0.1,
  attention_dropout_rate=0.1,
  scan=True,
  remat='full',
  attention='xla',
)


def test_a_run_gives_its_model_and_normalisation(tmp_path):
  run = dict(
    model=KEPT | LEFT,
    input=dict(device_ops="mixup(0.2) | normalize('imagenet')|erase(0.1)"),
  )
  (tmp_path / 'config.json').write_text(json.dumps(run))
  arg = f'model={tmp_path},data=cifar10'
  config = load(f'{arg},resolution=32')
  assert config.model.to_dict() == KEPT | dict(num_classes=10)
  assert config.input.device_ops == "normalize('imagenet')"
  with pytest.raises(UserError, match='give resolution=, in pixels'):
    load(arg)
  for path in ('checkpoints', 'checkpoints/20'):
    assert load(f'model={tmp_path}/{path},resolution=32').model.pooling


@pytest.mark.parametrize(
  'train_ops, eval_ops, size',
  [
    ('decode|random_crop(32, padding=4)|flip_lr', 'decode', 32),
    ('decode', "decode|resize_small(55, method='area')|central_crop(48)", 48),
    ('decode', 'decode|resize((40, 40), antialias=False)', 40),
    ('random_resized_crop(8, scale=(0.6, 1.0))', '', 8),
  ],
)
def test_a_run_gives_its_resolution(train_ops, eval_ops, size, tmp_path):
  run = dict(
    model=KEPT,
    input=dict(ops=train_ops, device_ops=''),
    evals=dict(val=dict(ops=eval_ops)),
  )
  (tmp_path / 'config.json').write_text(json.dumps(run))
  config = load(f'model={tmp_path},data=cifar10')
  assert config.evals.val.ops.endswith(f'central_crop({size})')


def test_the_resolution_of_a_run_is_that_of_its_main_evaluation(tmp_path):
  evals = dict(
    few=dict(name='fewshot', ops='decode|resize(24)'),
    val=dict(name='classification', ops='decode|resize(48)'),
  )
  run = dict(model=KEPT, input=dict(ops='decode'), evals=evals)
  (tmp_path / 'config.json').write_text(json.dumps(run))
  config = load(f'model={tmp_path},data=cifar10')
  assert config.evals.val.ops.endswith('central_crop(48)')


def test_a_file_of_ours_gives_its_model_and_normalisation(tmp_path):
  path, section = tmp_path / 'x.safetensors', KEPT | dict(num_classes=4)
  model = lookup.build('models', section, 'Model')
  image = np.zeros((1, 16, 16, 3), 'f')
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  weights = catalog.Weights(
    params=jax.tree.map(lambda x: np.zeros(x.shape, 'f'), shapes),
    model=section,
    preprocess=dict(
      device_ops='normalize(0, 1)', ops='decode|resize(20)|central_crop(16)'
    ),
  )
  catalog.save(weights, path)
  config = load(f'model={path},data=cifar10')
  assert config.model.to_dict() == KEPT | dict(num_classes=10)
  assert config.input.device_ops == 'normalize(0, 1)'
  assert config.evals.val.ops.endswith('central_crop(16)')


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """A run of two steps on images of 16x16 pixels."""
  folder = tmp_path_factory.mktemp('pretrained')
  config = load('dataset=cifar10,smoke')
  config.model.dtype = 'float32'
  with config.unlocked():
    config.model.representation_size = 8
    del config.ema, config.pictures, config.evals
  train.train(str(folder), **config.to_dict())
  return folder


@pytest.fixture
def images(tmp_path):
  """A folder of 40 random images of three classes."""
  rng = np.random.default_rng(0)
  for i in range(40):
    path = tmp_path / f'images/train/{"abc"[i % 3]}/{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 18, 3), np.uint8)).save(path)
  return tmp_path / 'images'


@pytest.fixture
def tune(pretrained, images, tmp_path):
  """Returns `tune(options, **keys of the config) -> weights`."""

  def tune(options='steps=2', **changes):
    config = load(
      f'model={pretrained},dataset=folder:{images},num_classes=3,'
      f'resolution=24,{options}'
    )
    config.input.batch_size = 16
    del config.pictures
    for name, value in changes.items():
      _config_file.apply(config, [(name.replace('__', '.'), str(value))])
    train.train(str(tmp_path / 'tuned'), **config.to_dict())
    return catalog.load(tmp_path / 'tuned', ema=False)

  return tune


def test_tuning_starts_from_the_weights_at_another_resolution(
  tune, pretrained, capsys
):
  before = trees.flatten(catalog.load(pretrained).params)
  weights = tune('steps=2,freeze')
  lines = capsys.readouterr().out.splitlines()
  start = lines.index('starting from weights')
  assert any(str(pretrained) in line for line in lines[start + 1 :])
  after = trees.flatten(weights.params)
  assert weights.model['num_classes'] == 3 and weights.class_names == [*'abc']
  assert after['head/kernel'].any() and after['head/kernel'].shape == (32, 3)
  # All but the head is frozen, so that where it started shows.
  assert not any(name.startswith('representation') for name in after)
  for name, array in after.items():
    if name == 'position_embedding':
      resized = resample.resize_position(before[name], (3, 3), method='google')
      np.testing.assert_array_equal(array, resized)
    elif not name.startswith('head/'):
      np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_without_freezing_all_learn_by_their_layer(tune, pretrained):
  before = trees.flatten(catalog.load(pretrained).params)
  # The first gradient is of the head alone, as it starts at zero; the last
  # learning rate is zero.
  weights = tune('steps=3,optimizer=adamw,layer_decay=0.1')
  after = trees.flatten(weights.params)

  def moved(name):
    return np.abs(after[name] - before[name]).max()

  # Adam's first steps have the size of the rate, whatever the gradients.
  block = moved('encoder/block_00/norm_mlp/bias')
  assert 0.05 < block / moved('encoder/norm/bias') < 0.2
  assert 0.05 < moved('class_token') / block < 0.2


def test_a_model_section_that_does_not_fit_the_weights_is_refused(tune):
  with pytest.raises(UserError, match=r"activation='gelu'.*gelu_tanh"):
    tune(model__activation='gelu')
  with pytest.raises(UserError, match=r'(?s)registers: the weights do'):
    tune(model__num_registers=2)


def test_every_published_model_becomes_a_section_that_computes_the_same():
  cost_and_training = {'dtype', 'num_classes', 'representation_size'}
  cost_and_training.add('residual_dtype')
  for name, weights in published.PUBLISHED.items():
    section, device_ops, _ = common_weights.model_of(name)
    assert section['variant'].partition('/')[0] in vit.VARIANTS
    for key in {*section, *weights.model} - cost_and_training:
      assert section[key] == weights.model[key], (name, key)
    expected = weights.preprocess.get('device_ops', 'normalize(-1, 1)')
    assert device_ops == dict(device_ops=expected)
