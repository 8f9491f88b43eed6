"""TFDS datasets, made here: prepared and read without TensorFlow."""

import functools
import io
import json
import logging
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from vit_jax.data import ops_language, splits
from vit_jax.data.sources import tfds
from vit_jax.errors import UserError

_NAMES = ['cat', 'dog', 'eel']
_NUM = 23


def _image(index):
  grid = np.arange(6 * 8 * 3).reshape(6, 8, 3)
  return ((grid + 10 * index) % 256).astype(np.uint8)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """A folder with the dataset tiny_animals, prepared as array_record."""
  import tensorflow_datasets

  class TinyAnimals(tensorflow_datasets.core.GeneratorBasedBuilder):
    # TFDS looks for the file of a class in a package with importlib_resources,
    # which it does not install on this Python.
    __module__ = '__main__'
    VERSION = tensorflow_datasets.core.Version('1.0.0')

    def _info(self):
      features = tensorflow_datasets.features
      return tensorflow_datasets.core.DatasetInfo(
        builder=self,
        features=features.FeaturesDict(
          {
            'image': features.Image(shape=(6, 8, 3), encoding_format='png'),
            'label': features.ClassLabel(names=_NAMES),
            'several': features.Sequence(features.ClassLabel(names=_NAMES)),
            'raw': features.Tensor(shape=(2, 2, 1), dtype=np.uint8),
            'file_name': features.Text(),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {
        'train': self._generate_examples(_NUM),
        'test': self._generate_examples(5),
      }

    def _generate_examples(self, num):
      for i in range(num):
        png = io.BytesIO()
        Image.fromarray(_image(i)).save(png, 'PNG')
        png.seek(0)
        yield (
          i,
          {
            'image': png,
            'label': i % 3,
            'several': [i % 3, (i + 1) % 3],
            'raw': np.full((2, 2, 1), i, np.uint8),
            'file_name': f'{i}.png',
          },
        )

  folder = tmp_path_factory.mktemp('tfds')
  builder = TinyAnimals(data_dir=str(folder), file_format='array_record')
  builder.download_and_prepare()
  return str(folder)


@pytest.fixture
def tfrecord_dir(data_dir, tmp_path):
  """The same dataset, described as TFRecord, without its records."""
  folder = tmp_path / 'tiny_animals' / '1.0.0'
  shutil.copytree(f'{data_dir}/tiny_animals/1.0.0', folder)
  for shard in folder.glob('*.array_record*'):
    shard.rename(str(shard).replace('array_record', 'tfrecord'))
  info = json.loads((folder / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  return str(tmp_path)


def _source(data_dir, split='train', **kwargs):
  return tfds.Source(split, dataset='tiny_animals', data_dir=data_dir, **kwargs)


def test_records_come_with_their_encoded_image_and_label(data_dir):
  source = _source(data_dir)
  assert len(source) == _NUM
  assert (source.num_classes, source.class_names) == (3, _NAMES)
  decode = ops_language.parse('decode')
  found = []
  for i in range(_NUM):
    example = source[i]
    assert set(example) == {'image', 'label'}
    assert isinstance(example['image'], bytes)
    image = decode(example, np.random.default_rng(0))['image']
    number = next(n for n in range(_NUM) if (image == _image(n)).all())
    assert example['label'] == number % 3
    found.append(number)
  assert sorted(found) == list(range(_NUM))


def test_a_record_is_described_by_number_dataset_and_folder(data_dir):
  words = _source(data_dir, 'test').describe(3)
  assert words.startswith("record 3 of split 'test' of tiny_animals in ")
  assert words.endswith('tiny_animals/1.0.0')


@pytest.mark.parametrize(
  'part', ['[:90%]', '[90%:]', '[-15%:]', '[33%:77%]', '[:7]', '[-3:]']
)
def test_our_own_slices_are_as_long_as_those_of_tfds(data_dir, part):
  theirs = len(_source(data_dir, f'train{part}'))
  assert len(splits.parse(f'train{part}').records(_NUM)) == theirs


def test_even_splits_match_tfds(data_dir):
  texts = [f'train[part {k} of 4]' for k in range(1, 5)]
  parts = [_source(data_dir, text) for text in texts]
  whole = _source(data_dir)
  records = [part[i]['image'] for part in parts for i in range(len(part))]
  assert records == [whole[i]['image'] for i in range(_NUM)]
  assert sorted(len(part) for part in parts) == [5, 6, 6, 6]


def test_several_labels_become_a_vector_with_the_op_onehot(data_dir):
  source = _source(data_dir, label_key='several')
  assert source.num_classes == 3
  label = source[0]['label']
  vector = ops_language.parse('onehot(3)')(source[0], np.random.default_rng(0))
  assert sorted(np.flatnonzero(vector['label'])) == sorted(label)


def test_an_image_stored_as_a_tensor_comes_as_its_array(data_dir):
  example = _source(data_dir, image_key='raw', label_key=None)[0]
  assert set(example) == {'image'}
  assert example['image'].shape == (2, 2, 1)
  assert example['image'].dtype == np.uint8


def test_an_unknown_feature_lists_the_features(data_dir):
  with pytest.raises(UserError, match=r"no feature 'lable'; it has: .*label"):
    _source(data_dir, label_key='lable')


def test_an_unknown_split_lists_the_splits(data_dir):
  with pytest.raises(
    UserError, match=r'trian.*it has: train \(23 records\), test \(5 records\)'
  ):
    _source(data_dir, 'trian')


def test_an_unknown_dataset_names_close_ones(data_dir):
  with pytest.raises(UserError, match='close names: cifar10'):
    tfds.Source('train', dataset='cifar_10', data_dir=data_dir)


@pytest.mark.parametrize('dataset', ['/data/pets', 'foldr:~/pets', 'a/pets'])
def test_a_path_is_refused_as_a_dataset(tmp_path, monkeypatch, dataset):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a' / 'pets').mkdir(parents=True)
  path = dataset.removeprefix('foldr:')
  with pytest.raises(UserError, match=f"images is written 'folder:{path}'"):
    tfds.Source('train', dataset=dataset)


def test_a_dataset_whose_description_is_damaged_is_named(data_dir, tmp_path):
  shutil.copytree(f'{data_dir}/tiny_animals', tmp_path / 'tiny_animals')
  info = tmp_path / 'tiny_animals' / '1.0.0' / 'dataset_info.json'
  info.write_text('{')
  with pytest.raises(
    UserError, match=r"build 'tiny_animals': .*Failed to load"
  ):
    tfds.Source('train', dataset='tiny_animals', data_dir=str(tmp_path))


def test_tfds_prints_no_warnings_about_other_folders(tmp_path):
  (tmp_path / 'cifar10' / '1.0.0').mkdir(parents=True)
  logger = logging.getLogger('absl')
  filters, lines = list(logger.filters), []
  handler = logging.Handler()
  handler.emit = lambda record: lines.append(record.getMessage())
  logger.addHandler(handler)
  try:
    with pytest.raises(UserError):
      tfds.Source('train', dataset='cifar10', data_dir=str(tmp_path))
  finally:
    logger.removeHandler(handler)
  assert not lines and logger.filters == filters


def test_an_unprepared_dataset_comes_with_the_lines_that_prepare_it(tmp_path):
  with pytest.raises(UserError, match='cifar10 is not prepared in') as error:
    tfds.Source('train', dataset='cifar10', data_dir=str(tmp_path))
  assert (
    "  tfds.builder('cifar10', data_dir="
    f"'{tmp_path}', file_format='array_record').download_and_prepare()"
  ) in str(error.value)


def test_tfrecord_comes_with_the_command_that_converts_it(tfrecord_dir):
  with pytest.raises(UserError, match='as tfrecord, which has no ran') as error:
    _source(tfrecord_dir)
  message = str(error.value)
  assert "file_format='array_record').download_and_prepare()" in message
  assert (
    '  tfds convert_format --dataset_version_dir='
    f'{tfrecord_dir}/tiny_animals/1.0.0 --out_file_format=array_record\n'
  ) in message


def test_converted_records_are_read(tfrecord_dir, data_dir):
  """`tfds convert_format` adds files."""
  folder = pathlib.Path(tfrecord_dir) / 'tiny_animals' / '1.0.0'
  original = pathlib.Path(data_dir) / 'tiny_animals' / '1.0.0'
  for shard in original.glob('*.array_record*'):
    shutil.copy(shard, folder)
  path = folder / 'dataset_info.json'
  info = json.loads(path.read_text())
  path.write_text(
    json.dumps(info | {'alternativeFileFormats': ['array_record']})
  )
  source = _source(tfrecord_dir)
  assert [source[i] for i in range(_NUM)] == [
    _source(data_dir)[i] for i in range(_NUM)
  ]


def test_reading_array_record_needs_no_tensorflow(data_dir, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)  # import now raises
  assert _source(data_dir)[0]['label'] in range(3)


def test_an_empty_record_of_a_file_cut_off_is_no_image(data_dir, monkeypatch):
  source = _source(data_dir)
  monkeypatch.setattr(source, '_records', [{'image': None, 'label': 0}])
  with pytest.raises(UserError, match='the record is empty; was its file cut'):
    source[0]


def test_a_bucket_is_to_be_mounted(monkeypatch):
  def builder(*args, **kwargs):
    raise ImportError('Please install gcsfs to access Google Storage')

  monkeypatch.setattr(tensorflow_datasets, 'builder', builder)
  with pytest.raises(UserError, match='mount the bucket of gs://bucket/data'):
    tfds.Source('train', dataset='cifar10', data_dir='gs://bucket/data')


@pytest.mark.parametrize('nested', [False, True])
def test_files_of_a_dataset_import_no_module(
  data_dir, tmp_path, monkeypatch, nested
):
  # Not the name of the class of `data_dir`: features are those of the file.
  folder = tmp_path / 'data' / 'foreign_animals'
  shutil.copytree(f'{data_dir}/tiny_animals', folder)
  for file in folder.rglob('*tiny_animals*'):
    file.rename(file.with_name(file.name.replace('tiny', 'foreign')))
  info = folder / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('tiny_animals', 'foreign_animals'))
  marker = tmp_path / 'imported'
  (tmp_path / 'foreign_feature.py').write_text(
    f'import pathlib\npathlib.Path({str(marker)!r}).touch()\n'
  )
  monkeypatch.syspath_prepend(tmp_path)

  def read():
    return tfds.Source(
      'train', dataset='foreign_animals', data_dir=str(tmp_path / 'data')
    )

  assert len(read()) == _NUM
  path = folder / '1.0.0' / 'features.json'
  described = json.loads(path.read_text())
  inner = described['featuresDict']['features']
  if nested:
    inner = inner['several']['sequence']['feature']
  else:
    inner = inner['file_name']
  inner['pythonClassName'] = 'foreign_feature.Text'
  path.write_text(json.dumps(described))
  with pytest.raises(
    UserError, match=r"names the class 'foreign_feature\.Text'"
  ):
    read()
  assert not marker.exists()
  # What the user's own code reads with TFDS is no concern of ours.
  (tmp_path / 'foreign_feature.py').write_text('')
  connector = tensorflow_datasets.features.FeatureConnector
  with pytest.raises(ValueError, match='Unrecognized FeatureConnector'):
    connector.cls_from_name('foreign_feature.Text')


def test_other_features_become_fields(data_dir):
  make = functools.partial(
    tfds.Source, 'train', dataset='tiny_animals', data_dir=data_dir
  )
  files = [f'{i}.png' for i in range(_NUM)]
  source = make(columns={'raw': None, 'file_name': files})
  example = source[3]
  place = example['raw'][0, 0, 0]
  assert example['raw'].shape == (2, 2, 1)
  assert example['file_name'] == place and example['label'] == place % 3
  source = make(label_key=None, columns=['several'])
  assert source[3]['several'].tolist() == [place % 3, (place + 1) % 3]
  with pytest.raises(UserError, match="no feature 'race'"):
    make(columns=['race'])
