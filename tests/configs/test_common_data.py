"""The option `data` of recipes: one way to say it, whatever its layout."""

import importlib
import json
import pathlib

import pytest
from PIL import Image

from vit_jax import main
from vit_jax.configs import common_data, vit_i21k, vit_l16_i21k
from vit_jax.data import open_source
from vit_jax.training import train

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = [
  ('cifar10', ''),
  ('deit3_i1k', ''),
  ('deit3_i21k', ''),
  ('deit_b16_i1k', ''),
  ('finetune', ''),
  ('scratch', ''),
  ('vit_g14', ''),
  ('vit_h14_i21k', ''),
  ('vit_i1k', ''),
  ('vit_i21k', ''),
  ('vit_l16_i21k', ''),
  ('vit_s16_i1k', ''),
]


def _write(root, *folders, count=2):
  """Writes a few images of one size into each folder."""
  for folder in folders:
    (root / folder).mkdir(parents=True)
    for i in range(count):
      Image.new('RGB', (8, 8), (i, 0, 0)).save(root / folder / f'{i}.png')


def test_a_path_is_an_image_folder_or_prepared_records(tmp_path):
  _write(tmp_path / 'images', 'train/cat', 'val/cat')
  for text in (tmp_path / 'images', f'folder:{tmp_path}/images'):
    section = common_data.images(str(text), 'train[:50%]')
    assert section.to_dict() == dict(
      name='image_folder', data_dir=f'{tmp_path}/images', split='train[:50%]'
    )
  (tmp_path / 'records/train').mkdir(parents=True)
  (tmp_path / 'records/train/dataset.json').write_text('{}')
  for text in (tmp_path / 'records', f'records:{tmp_path}/records'):
    section = common_data.images(str(text), 'train')
    assert section.to_dict() == dict(
      name='array_record', data_dir=f'{tmp_path}/records', split='train'
    )


def test_prepare_and_preflight_take_the_same_paths(tmp_path):
  _write(tmp_path / 'images', 'train/cat')
  (tmp_path / 'records/train').mkdir(parents=True)
  (tmp_path / 'records/train/dataset.json').write_text('{}')
  for kind, prefix in (('images', 'folder:'), ('records', 'records:')):
    text = str(tmp_path / kind)
    assert open_source.parse(text) == open_source.parse(prefix + text)
    section = common_data.images(text, 'train').to_dict()
    assert open_source.parse(text) | dict(split='train') == section


def test_other_names_are_datasets_of_tfds():
  for name in ('imagenet2012', 'my_data', 'coco/2017:1.1.0'):
    assert common_data.images(name, 'validation', '/tfds').to_dict() == dict(
      name='tfds', dataset=name, split='validation', data_dir='/tfds'
    )
  with pytest.raises(ValueError, match="data_dir='/x' has no effect"):
    common_data.images('folder:/data', 'train', '/x')


def test_a_path_that_does_not_exist_keeps_the_usual_names():
  for text in ('folder:/no/x', 'records:/no/x', '/no/x'):
    section = common_data.images(text, 'validation[:10%]')
    assert section.split == 'val[:10%]' and section.data_dir == '/no/x'


@pytest.mark.parametrize(
  'folders, expected',
  [
    (('train/a', 'val/a'), ('train', 'val', None)),
    (('train/a', 'val/a', 'test/a'), ('train', 'val', 'test')),
    (('train/a', 'test/a'), ('train', 'test', None)),
    (('train/a', 'train/b'), ('train[:90%]', 'train[90%:]', None)),
    (('a', 'b'), ('train', 'val', None)),
    (('Training/a', 'Validation/a'), ('train', 'val', None)),
    # A class of this name: its folder has no folders.
    (('train', 'bus'), ('train', 'val', None)),
    ((), ('train', 'val', None)),
  ],
)
def test_the_splits_follow_from_the_folders(folders, expected, tmp_path):
  _write(tmp_path, *folders)
  assert common_data.splits(str(tmp_path)) == expected


def test_a_split_is_found_under_its_other_names(tmp_path):
  _write(tmp_path, 'Training/a', 'valid/a')
  splits = [common_data.images(str(tmp_path), s).split for s in
            ('train[:90%]', 'val', 'validation', 'test')]  # fmt: skip
  assert splits == ['Training[:90%]', 'valid', 'valid', 'test']
  # Of two folders for one split the name that comes first in folders.SPLITS.
  _write(tmp_path, 'validation/a')
  assert common_data.images(str(tmp_path), 'val').split == 'validation'


@pytest.mark.parametrize('recipe, arg', RECIPES)
def test_every_recipe_reads_a_users_folder(recipe, arg, tmp_path):
  _write(tmp_path / 'a', 'train/cat', 'train/dog', 'val/cat')
  _write(tmp_path / 'b', 'cat', 'dog', 'eel', count=3)
  get_config = importlib.import_module(f'vit_jax.configs.{recipe}').get_config
  for folder, num_classes in (('a', 2), ('b', 3)):
    found = [
      get_config(f'{arg}{spelling}{tmp_path}/{folder}')
      for spelling in ('data=', 'dataset=folder:', 'data=folder:')
    ]
    assert found[0].to_dict() == found[1].to_dict() == found[2].to_dict()
    config = found[0]
    assert config.model.num_classes == num_classes
    assert config.input.data.name == 'image_folder'
    assert config.input.data.data_dir == str(tmp_path / folder)
  config = get_config(f'{arg}data={tmp_path}/a')
  splits = {
    section.get('data', section.get('data_test')).split
    for section in config.evals.values()
  }
  # Two of AugReg's evaluations are parts of the training images.
  assert splits - {'train[:2%]', 'train[99%:]'} == {'val'}


def test_classes_and_images_of_prepared_data_are_counted(tmp_path):
  info = dict(num_classes=7, shards=[dict(num_examples=n) for n in (30, 12)])
  info['skipped'] = ['x' * 1000] * 17_000  # Many names, over 16 MiB.
  for split in ('train', 'val'):
    (tmp_path / split).mkdir()
    (tmp_path / split / 'dataset.json').write_text(json.dumps(info))
  assert common_data.num_classes(str(tmp_path)) == 7
  assert common_data.num_training_images(str(tmp_path)) == 42
  assert common_data.splits(f'records:{tmp_path}') == ('train', 'val', None)


def test_prepared_imagenet21k_has_one_split(tmp_path):
  info = dict(num_classes=19_167, shards=[dict(num_examples=100_000)])
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/dataset.json').write_text(json.dumps(info))
  config = vit_l16_i21k.get_config(f'data={tmp_path}')
  assert config.model.num_classes == 19_167
  assert config.input.data.to_dict() == dict(
    name='array_record', data_dir=str(tmp_path), split='full[51200:]'
  )
  assert config.evals.val.data.split == 'full[25600:51200]'


@pytest.mark.parametrize(
  'recipe', ['vit_i21k', 'vit_l16_i21k', 'vit_h14_i21k', 'vit_g14']
)
def test_imagenet21k_may_have_several_labels_for_an_image(recipe, tmp_path):
  get_config = importlib.import_module(f'vit_jax.configs.{recipe}').get_config
  for arg, key, op in (('', None, False), ('multi_label', 'labels', True)):
    config = get_config(arg)
    for section in (config.input, config.evals.val, config.evals.test):
      assert section.data.get('label_key') == key
      assert section.ops.endswith('|onehot(21843)') == op
  _write(tmp_path, 'train/cat', 'train/dog', 'val/cat')
  with pytest.raises(ValueError, match="the labels 'labels' of TFDS are not"):
    get_config(f'data={tmp_path},multi_label')


def test_several_labels_for_an_image_train(tmp_path):
  config = vit_i21k.get_config('multi_label,smoke')
  assert config.input.ops.endswith('|onehot(4)')
  results = train.train(str(tmp_path), **config.to_dict())
  assert 'val/top1' in results


def test_training_images_are_counted_up_to_a_limit(tmp_path):
  _write(tmp_path / 'flat', 'a', 'b', count=10)
  _write(tmp_path / 'split', 'train/a', 'train/b', 'val/a', count=10)
  (tmp_path / 'split/train/a/notes.txt').touch()
  (tmp_path / 'split/train/a/.hidden.png').touch()
  (tmp_path / 'split/train/a/.thumbnails').mkdir()
  (tmp_path / 'split/train/a/.thumbnails/0.png').touch()
  count = common_data.num_training_images
  assert count(str(tmp_path / 'flat')) == 18
  assert count(str(tmp_path / 'split')) == 20
  assert count(str(tmp_path / 'split'), at_most=7) == 7
  # Without val/ and test/ the last tenth of train/ is held out.
  _write(tmp_path / 'alone', 'train/a', 'train/b', count=10)
  assert count(str(tmp_path / 'alone')) == 18
  assert count(str(tmp_path / 'split'), split='val[:50%]') == 10
  assert count('cifar10') is None and count('/no/x') is None


def test_an_unknown_number_of_classes_is_an_error_without_a_default():
  for text in ('/no/x', 'folder:/no/x', 'records:/no/x'):
    with pytest.raises(ValueError, match=f'data={text}: there is no such fold'):
      common_data.num_classes(text)
  with pytest.raises(ValueError, match=r'data=my_data is not .*num_classes='):
    common_data.num_classes('my_data')
  assert common_data.num_classes('/no/x', 7, default=9) == 7
  assert common_data.num_classes('/no/x', default=9) == 9


def test_a_batch_is_a_power_of_two_up_to_an_eighth_of_the_images():
  sizes = {3: 8, 64: 8, 127: 8, 128: 16, 1023: 64, 1024: 128, 10**6: 128}
  for count, size in sizes.items():
    assert common_data.batch_size(count, most=128) == size, count
  assert common_data.batch_size(None, most=128) == 128


@pytest.mark.parametrize('recipe, arg', RECIPES)
def test_a_recipe_without_data_says_what_to_do(recipe, arg, tmp_path, capsys):
  config = f'{ROOT}/configs/{recipe}.py:{arg}data_dir={tmp_path}'
  workdir = tmp_path / 'run'
  assert main.main([f'--config={config}', f'--workdir={workdir}']) == 2
  text = capsys.readouterr().err
  assert '\nconfig.input, config.evals.' in text.replace('error: ', '\n')
  # Recipes for pods say what does not fit these eight devices as well.
  assert ('problems:\nmesh data=-1, fsdp=16' in text) == (
    recipe in ('vit_g14', 'vit_h14_i21k')
  )
  for words in (
    'data=/path: images in /path/train/<class>/ and /path/val/<class>/, or in '
    '/path/<class>/ alone',
    'folder:/path and records:/path',
    "add :smoke to the recipe's name",
  ):
    assert words in text
  if 'i21k' in recipe or recipe == 'vit_g14':
    assert "TFDS knows no dataset 'imagenet21k'" in text
    assert 'vit_jax prepare "imagenet21k(data_dir=' in text
    assert 'data=/data/i21k' in text and 'close names' not in text
  else:
    assert 'is not prepared in' in text
    assert '--config.input.data.download=True' in text
  assert not workdir.exists()
