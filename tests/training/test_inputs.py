"""Data that cannot work ends a run before anything compiles, all at once."""

import pathlib
import textwrap

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax import lookup, main
from vit_jax.configs import cifar10, finetune, scratch
from vit_jax.data import open_source
from vit_jax.errors import DataError, UserError
from vit_jax.pretrained import catalog
from vit_jax.pretrained.weights import Weights
from vit_jax.training import inputs, train

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path):
  """A folder of photos of all sizes: <class>/<n>.png, without splits."""
  rng = np.random.default_rng(0)
  for i in range(24):
    path = tmp_path / f'photos/{("ant", "bee")[i % 2]}/{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (30 + i, 60 - i, 3)
    Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)
  return tmp_path / 'photos'


def _scratch(photos, stem):
  """Returns a small model of configs/scratch.py, as weights."""
  config = scratch.get_config(f'data={photos},resolution=32,stem={stem}')
  section = config.model.to_dict() | dict(num_classes=2)
  section |= dict(width=64, depth=1, mlp_dim=128, num_heads=1)
  module = lookup.build('models', section, 'Model')
  images = np.zeros((1, 32, 32, 3), np.float32)
  params = module.init(jax.random.key(0), images)['params']
  return Weights(jax.device_get(params), section, dict(image_size=(32, 32)))


def test_a_model_from_scratch_is_exported_with_a_stem_of_patches(
  photos, tmp_path
):
  for format in ('timm', 'huggingface', 'google_npz'):
    path = tmp_path / f'{format}.npz'
    with pytest.raises(UserError, match=r"stem \(stem='conv'\)|stem='conv':"):
      catalog.save(_scratch(photos, 'conv'), path, format=format)
    more = dict(allow_note_only=True) if format == 'google_npz' else {}
    weights = _scratch(photos, 'patch')
    catalog.save(weights, path, format=format, **more)
    kernel = catalog.load(path).params['patch_embedding/kernel']
    np.testing.assert_array_equal(
      kernel, weights.params['patch_embedding/kernel']
    )
  with pytest.raises(
    ValueError, match="stem='cnn': expected 'conv' or 'patch'"
  ):
    scratch.get_config(f'data={photos},stem=cnn')


def _no_training(monkeypatch):
  def fail(*_, **__):
    raise AssertionError('it must not come so far')

  monkeypatch.setattr(train.session_lib, 'start', fail)


def test_photos_of_all_sizes_end_before_the_first_step(
  photos, tmp_path, monkeypatch
):
  _no_training(monkeypatch)
  config = cifar10.get_config(f'data={photos}').to_dict()
  config['input']['batch_size'] = 8
  with pytest.raises(UserError, match='differ cannot share a batch') as e:
    train.train(str(tmp_path / 'run'), **config)
  # One of the two places that have the problem is enough to name each image.
  assert str(e.value).startswith(
    'config.evals.test, config.pictures.predictions: examples that differ'
  )
  assert not (tmp_path / 'run').exists()


def test_a_picture_of_photos_of_all_sizes_ends_before_the_first_step(
  photos, tmp_path, monkeypatch
):
  _no_training(monkeypatch)
  config = scratch.get_config(f'data={photos},resolution=32')
  config.pictures.predictions.ops = 'decode'
  with pytest.raises(
    UserError, match=r'^config\.pictures\.predictions: exampl'
  ):
    train.train(str(tmp_path / 'run'), **config.to_dict())


def test_all_problems_are_in_one_message(photos, tmp_path, monkeypatch):
  _no_training(monkeypatch)
  config = scratch.get_config(f'data={photos},resolution=32')
  config.evals.val.data.split = 'vall'
  config.evals.other = dict(config.evals.val, data=config.input.data)
  config.evals.other.ops = 'decode'
  config.evals.third = dict(config.evals.other, ops='decode|resiz(32)')
  config.pictures.predictions.data = dict(
    name='image_folder', split='train', data_dir='/no/folder'
  )
  config.model.num_classes = 3
  with pytest.raises(DataError) as e:
    train.train(str(tmp_path / 'run'), **config.to_dict())
  first, *lines = str(e.value).splitlines()
  assert first == '5 problems:'
  for text in (
    'config.input: config.model.num_classes=3, but the data has 2 classes',
    'config.evals.val: ',
    'config.evals.other: examples that differ cannot share a batch:',
    'config.evals.third: ',
    'config.pictures.predictions: no folder /no/folder',
  ):
    assert any(line.startswith(text) for line in lines), text


def test_one_cause_in_many_places_is_named_once(tmp_path):
  config = finetune.get_config('data=/no/folder,num_classes=2').to_dict()
  ((problem, places),) = inputs._problems(config).items()
  assert problem.startswith('no folder /no/folder; ')
  expected = ['config.input', 'config.evals.val']
  assert places == [*expected, 'config.pictures.predictions']


def test_only_a_classification_has_to_have_the_classes_of_the_model():
  data = dict(name='synthetic', image_size=8, num_classes=3, num_examples=8)
  train_data, test = dict(data, split='train'), dict(data, split='test')
  evals = dict(
    knn=dict(name='knn', data_train=train_data, data_test=test, ops=''),
    val=dict(name='classification', data=test, ops=''),
  )
  config = dict(
    model=dict(num_classes=2),
    input=dict(data=dict(train_data, num_classes=2), ops=''),
    evals=evals,
  )
  ((problem, places),) = inputs._problems(config).items()
  assert problem.startswith('config.model.num_classes=2, but')
  assert places == ['config.evals.val']


def test_images_that_the_model_cannot_take_end_before_the_first_step(
  photos, tmp_path, monkeypatch
):
  _no_training(monkeypatch)
  config = finetune.get_config(f'model=dino-S/16,data={photos},resolution=32')
  config.init_from, config.model.variant = [], 'mu/16'
  for section in (config.evals.val, config.pictures.predictions):
    before, section.ops = section.ops, 'decode|resize(48)'
    with pytest.raises(
      DataError,
      match=r'trained on images uint8\[32, 32, 3\], and cannot take uint8\[48,',
    ):
      train.train(str(tmp_path / 'run'), **config.to_dict())
    section.ops = before


def test_other_errors_do_not_open_the_data_again(photos, monkeypatch):
  monkeypatch.setattr(inputs, '_problems', lambda _: pytest.fail('opened'))
  with pytest.raises(UserError, match='other'):
    with inputs.all_problems({}):
      raise UserError('other')


def test_a_run_logs_its_training_and_evaluation_data(photos, tmp_path, capfd):
  config = f'{ROOT}/configs/scratch.py:data={photos},resolution=32,epochs=1'
  small = ['width=32', 'depth=1', 'mlp_dim=32', 'num_heads=1']
  small.append('dtype=bfloat16')
  assert not main.main(
    [
      f'--config={config}',
      f'--workdir={tmp_path / "run"}',
      *(f'--config.model.{key}' for key in small),
    ]
  )
  text = ' '.join(''.join(capfd.readouterr()).split())
  assert (
    f'data: training: train of {photos} (22 images); '
    f'val: val of {photos} (2 images)'
  ) in text
  assert 'on this CPU --config.model.dtype=float32 may be twice as' in text
  assert (tmp_path / 'run/predictions.png').exists()


def test_a_printed_path_cannot_control_the_terminal():
  data = dict(name='image_folder', split='train', data_dir='/a\x1b[2J\nb')
  assert inputs.describe(dict(input=dict(data=data)), {'config.input': 7}) == (
    r'data: training: train of /a\x1b[2J\nb (7 images)'
  )


GETITEM = """
def __len__(self):
  return 8
def __getitem__(self, i):
  return {'image': np.full((8, 8, 3), i, np.uint8), 'label': i % 2}
"""
DESCRIBE = """
def describe(self, i):
  return f'image {i}'
"""


def _module(tmp_path, monkeypatch, name, body):
  """Writes a module `mine.<name>` whose source has the methods of `body`."""
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'mine').mkdir()
  code = 'import numpy as np\n\nclass Source:\n'
  code += '  def __init__(self, split):\n    pass\n'
  (tmp_path / f'mine/{name}.py').write_text(code + textwrap.indent(body, '  '))
  return f'mine.{name}'


def test_a_source_needs_no_classes(tmp_path, monkeypatch):
  name = _module(tmp_path, monkeypatch, 'plain', GETITEM + DESCRIBE)
  source = open_source.open_source(dict(name=name, split='train'))
  assert source.num_classes is None and source.class_names is None
  assert open_source.open_text(f'{name}()', 'train').num_classes is None
  config = cifar10.get_config('cifar10,smoke')
  data = dict(name=name, split='train')
  config.input.data = config.evals.test.data = data
  config.input.ops, config.evals.test.ops = 'resize(16)', 'resize(16)'
  config.pictures = {}
  results = train.train(str(tmp_path / 'run'), **config.to_dict())
  assert results['test/num_examples'] == 8


def test_the_names_of_a_source_are_counted(tmp_path, monkeypatch):
  body = GETITEM + DESCRIBE + "\nclass_names = ['a', 'b', 'c']\n"
  name = _module(tmp_path, monkeypatch, 'named', body)
  source = open_source.open_source(dict(name=name, split='train'))
  assert source.num_classes == 3


def test_methods_that_a_source_lacks_are_listed(tmp_path, monkeypatch):
  name = _module(tmp_path, monkeypatch, 'short', 'num_classes = 2\n')
  with pytest.raises(UserError) as e:
    open_source.open_source(dict(name=name, split='train'))
  for text in ("'mine.short' has no", '__len__(self)', 'describe(self, i)'):
    assert text in str(e.value)
