"""Hugging Face datasets on disk."""

import io
import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import ops_language
from vit_jax.data.sources import huggingface
from vit_jax.errors import UserError

_NAMES = ['cat', 'dog', 'eel']


def _png(value):
  file = io.BytesIO()
  Image.new('RGB', (4, 3), (value, 0, 0)).save(file, 'PNG')
  return file.getvalue()


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  datasets = pytest.importorskip('datasets')
  folder = tmp_path_factory.mktemp('hf')
  (folder / 'lies.png').write_bytes(_png(77))

  def make(num):
    return datasets.Dataset.from_dict(
      {
        'image': [{'bytes': _png(i), 'path': None} for i in range(num)],
        'file': [str(folder / 'lies.png')] * num,
        'label': [i % 3 for i in range(num)],
        'tags': [[i % 3, 0] if i else [] for i in range(num)],
        'number': [-1, *range(1, num)],
        'word': ['cat'] * num,
        'pixels': [[[0, 1], [2, 3]]] * num,
        'lists': [[[0.5, 1]]] * num,
        'bytes': [_png(i) + bytes(2) for i in range(num)],
      },
      features=datasets.Features(
        {
          'image': datasets.Image(),
          'file': datasets.Image(),
          'label': datasets.ClassLabel(names=_NAMES),
          'tags': datasets.Sequence(datasets.ClassLabel(names=_NAMES)),
          'number': datasets.Value('int64'),
          'word': datasets.Value('string'),
          'pixels': datasets.Array2D((2, 2), 'uint8'),
          'lists': datasets.Sequence(
            datasets.Sequence(datasets.Value('float32'))
          ),
          'bytes': datasets.Value('binary'),
        }
      ),
    )

  both = datasets.DatasetDict(train=make(9), test=make(2))
  both.save_to_disk(str(folder / 'both'))
  both['test'].save_to_disk(str(folder / 'one'))
  return folder


def _source(path, split='train', **kwargs):
  return huggingface.Source(split, path=str(path / 'both'), **kwargs)


def test_rows_come_with_their_encoded_image_and_label(path):
  source = _source(path)
  assert (len(source), source.num_classes) == (9, 3)
  assert source.class_names == _NAMES
  assert source[4] == {'image': _png(4), 'label': 1}
  assert source.describe(4) == f"row 4 of 'train' in {path}/both"
  decoded = ops_language.parse('decode')(source[4], np.random.default_rng(0))
  assert decoded['image'][0, 0].tolist() == [4, 0, 0]


def test_an_image_can_be_a_file_or_an_array(path):
  assert _source(path, image_key='file')[0]['image'] == _png(77)
  array = _source(path, image_key='pixels')[0]['image']
  np.testing.assert_array_equal(array, [[0, 1], [2, 3]])
  assert array.dtype == np.uint8
  lists = _source(path, image_key='lists')[0]['image']
  np.testing.assert_array_equal(lists, [[0.5, 1]])
  assert lists.dtype == np.float32
  assert _source(path, image_key='bytes')[1]['image'] == _png(1) + bytes(2)


def test_a_column_without_images_is_named(path):
  with pytest.raises(UserError, match=r"'word' is Value.*string.*expected ima"):
    _source(path, image_key='word')


def test_several_labels_become_a_vector(path):
  source = _source(path, label_key='tags')
  np.testing.assert_array_equal(source[0]['label'], np.float32([0, 0, 0]))
  np.testing.assert_array_equal(source[2]['label'], np.float32([1, 0, 1]))
  assert source.num_classes == 3


def test_integers_need_num_classes_and_minus_one_is_a_missing_label(path):
  with pytest.raises(UserError, match=r"'number' is .*: set num_classes="):
    _source(path, label_key='number')
  source = _source(path, label_key='number', num_classes=9)
  assert (source[3]['label'], source.num_classes) == (3, 9)
  with pytest.raises(UserError, match='the label is missing: it is -1'):
    source[0]
  assert set(_source(path, label_key=None)[0]) == {'image'}


def test_words_say_how_to_make_classes_of_them(path):
  with pytest.raises(UserError, match=r"class_encode_column\('word'\)"):
    _source(path, label_key='word')


def test_splits_and_slices(path):
  assert len(_source(path, 'test')) == 2
  assert len(_source(path, 'train[:5]')) == 5
  one = huggingface.Source('all', path=str(path / 'one'))
  assert one[1] == {'image': _png(1), 'label': 1}
  with pytest.raises(
    UserError, match="no split 'val'; it has: 'train', 'test'"
  ):
    _source(path, 'val')


def test_a_missing_column_or_folder_is_named(path, tmp_path):
  with pytest.raises(UserError, match="no column 'img'; it has: image, file"):
    _source(path, image_key='img')
  with pytest.raises(UserError, match=r'no folder .*\n.*\n.*save_to_disk'):
    _source(tmp_path)
  (tmp_path / 'both').mkdir()
  with pytest.raises(UserError, match='is not a dataset of save_to_disk'):
    _source(tmp_path)


def test_without_the_library_it_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)  # import now raises
  with pytest.raises(UserError, match=r"pip install 'vit_jax\[huggingface\]'"):
    _source(tmp_path)


_DEEP = '[' * 100_000


@pytest.mark.parametrize(
  ('file', 'changes'),
  [
    ('state.json', {'_data_files': []}),
    ('state.json', {'_data_files': [{'filename': 5}]}),
    ('state.json', {'_split': ['x']}),
    ('state.json', _DEEP),
    ('dataset_info.json', '[]'),
    ('dataset_info.json', _DEEP),
    ('dataset_info.json', {'features': 'x'}),
    ('dataset_info.json', {'features': [1]}),
    ('dataset_info.json', {'label': {'_type': 'Image'}}),
    ('dataset_info.json', {'label': {'_type': 'Audio'}}),
    (
      'dataset_info.json',
      {'label': {'_type': 'Array2D', 'shape': [10**9] * 2, 'dtype': 'uint8'}},
    ),
  ],
)
def test_a_damaged_folder_is_one_error(path, tmp_path, file, changes):
  shutil.copytree(path / 'one', tmp_path / 'bad')
  file = tmp_path / 'bad' / file
  if isinstance(changes, dict):
    content = json.loads(file.read_text())
    inside = content['features'] if 'label' in changes else content
    inside.update(changes)
    changes = json.dumps(content)
  file.write_text(changes)
  with pytest.raises(UserError, match=r'/bad\b'):
    huggingface.Source('all', path=str(tmp_path / 'bad'))


def test_lists_inside_lists_are_bounded(path, tmp_path):
  shutil.copytree(path / 'both', tmp_path / 'both')
  feature = {'_type': 'Value', 'dtype': 'int64'}
  for _ in range(300):
    feature = {'_type': 'List', 'feature': feature}
  file = tmp_path / 'both' / 'train' / 'dataset_info.json'
  file.write_text(json.dumps({'features': {'label': feature}}))
  with pytest.raises(UserError, match=r'train/dataset_info.* deeper than'):
    _source(tmp_path)
  (tmp_path / 'both' / 'dataset_dict.json').write_text(_DEEP)
  with pytest.raises(UserError, match=r'dataset_dict.* deeper than'):
    _source(tmp_path)


@pytest.mark.parametrize('folder', ['one', 'both/train'])
def test_a_pipe_is_refused(path, tmp_path, folder):
  whole = folder.partition('/')[0]
  shutil.copytree(path / whole, tmp_path / whole)
  (file,) = (tmp_path / folder).glob('*.arrow')
  file.unlink()
  os.mkfifo(file)
  with pytest.raises(UserError, match=r'arrow: it is a pipe'):
    huggingface.Source('all', path=str(tmp_path / whole))


def test_a_stored_format_is_undone(path, tmp_path):
  shutil.copytree(path / 'one', tmp_path / 'one')
  file = tmp_path / 'one' / 'state.json'
  stored = {'_format_type': 'numpy', '_format_columns': ['image']}
  file.write_text(json.dumps(json.loads(file.read_text()) | stored))
  source = huggingface.Source('all', path=str(tmp_path / 'one'))
  assert source[1] == {'image': _png(1), 'label': 1}


def test_other_columns_become_numbers_or_codes(path):
  names = ['number', 'word', 'label', 'tags']
  with pytest.raises(UserError, match="'label' is a field of its own"):
    _source(path, columns=names)
  del names[2:]
  source = _source(path, columns=names)
  assert [source[2][name] for name in names] == [2, 0]
  assert source[2]['number'].dtype == np.int32
  assert source.column_texts == {'word': ['cat']}
