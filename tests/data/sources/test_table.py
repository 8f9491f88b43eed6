"""CSV and JSONL files of paths and labels."""

import json

import numpy as np
import pytest
from PIL import Image

from vit_jax.data.sources import table
from vit_jax.errors import UserError
from vit_jax.evaluators import _rows
from vit_jax.parallel import mesh


@pytest.fixture
def write(tmp_path):
  """Returns `write(name, rows)`: a table beside the images 0.jpg to 9.jpg."""
  for i in range(10):
    (tmp_path / f'{i}.jpg').write_bytes(b'image %d' % i)

  def write(name, rows):
    if name.endswith('l'):
      text = '\n'.join(json.dumps(row) for row in rows) + '\n\n'
    else:
      text = '\n'.join(rows) + '\n'
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)

  return write


def _csv(*labels):
  rows = [f'{i}.jpg,{label}' for i, label in enumerate(labels)]
  return ['image,label', *rows]


def _labels(source):
  return [source[i]['label'] for i in range(len(source))]


def test_rows_are_examples_and_names_become_sorted_classes(write, tmp_path):
  path = write('a.csv', _csv('dog', 'cat', 'dog'))
  source = table.Source('all', path=path)
  assert (source.num_classes, source.class_names) == (2, ['cat', 'dog'])
  assert source[1] == {'image': b'image 1', 'label': 0}
  assert _labels(source) == [1, 0, 1]
  assert source.describe(1) == f'{tmp_path}/1.jpg (line 3 of {path})'


def test_json_lines_say_the_same(write):
  rows = [{'image': f'{i}.jpg', 'label': x} for i, x in enumerate(['b', 'a'])]
  source = table.Source('all', path=write('a.jsonl', rows))
  assert _labels(source) == [1, 0]
  numbers = [{'file': '3.jpg', 'y': 2}, {'file': '4.jpg', 'y': 0}]
  source = table.Source(
    'all', path=write('b.jsonl', numbers), image_key='file', label_key='y'
  )
  assert (source.num_classes, source.class_names) == (3, None)
  assert source[0] == {'image': b'image 3', 'label': 2}


def test_numbers_in_a_csv_are_class_ids(write):
  source = table.Source('all', path=write('a.csv', _csv(1, 0, 4)))
  assert (source.num_classes, source.class_names) == (5, None)
  assert _labels(source) == [1, 0, 4]


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_several_labels_become_a_vector(write, kind):
  labels = [['b', 'a'], ['c'], []]
  if kind == 'csv':
    path = write('a.csv', _csv('b; a', 'c', ''))
  else:
    rows = [{'image': f'{i}.jpg', 'label': x} for i, x in enumerate(labels)]
    path = write('a.jsonl', rows)
  source = table.Source(
    'all', path=path, separator=';' if kind == 'csv' else None
  )
  assert source.class_names == ['a', 'b', 'c']
  assert source[0]['label'].dtype == np.float32
  expected = [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
  np.testing.assert_array_equal(_labels(source), expected)


def test_splits_are_files_that_share_the_classes_of_training(write, tmp_path):
  write('train.csv', _csv('ant', 'bee', 'cat'))
  write('val.csv', _csv('cat'))
  source = table.Source('val', path=f'{tmp_path}/{{split}}.csv')
  assert (len(source), source[0]['label'], source.num_classes) == (1, 2, 3)
  own = table.Source(
    'val', path=f'{tmp_path}/{{split}}.csv', classes_from='val'
  )
  assert (own[0]['label'], own.num_classes) == (0, 1)


def test_splits_can_be_a_column(write):
  rows = ['image,label,set', '0.jpg,a,train', '1.jpg,b,train', '2.jpg,b,test']
  path = write('a.csv', rows)
  source = table.Source('test', path=path, split_key='set')
  assert (len(source), source[0]['label'], source.num_classes) == (1, 1, 2)
  with pytest.raises(UserError, match=r"no row with 'set' 'val'.*test, train"):
    table.Source('val', path=path, split_key='set')


def test_a_file_without_splits_is_not_two_splits(write):
  path = write('a.csv', _csv('a', 'b', 'a', 'b'))
  with pytest.raises(UserError, match="its split is 'all'"):
    table.Source('test', path=path)
  parts = [table.Source(f'all[{s}]', path=path) for s in (':50%', '50%:')]
  assert len({p.describe(i) for p in parts for i in range(2)}) == 4


def test_classes_can_be_given(write):
  path = write('a.csv', _csv('dog', 'cat'))
  names = ['eel', 'dog', 'cat']
  source = table.Source('all', path=path, class_names=names)
  assert _labels(source) == [1, 2]
  path = write('b.csv', _csv(0, 1))
  assert table.Source('all', path=path, num_classes=7).num_classes == 7
  with pytest.raises(UserError, match='num_classes=2, but there are 3'):
    table.Source('all', path=path, num_classes=2, class_names=names)
  with pytest.raises(UserError, match='a name occurs twice'):
    table.Source('all', path=path, class_names=['dog', 'cat', 'dog'])
  for wrong in (0, '7'):
    with pytest.raises(UserError, match=f'at least 1; got {wrong!r}'):
      table.Source('all', path=path, num_classes=wrong)


def test_labels_that_training_lacks_are_named_with_their_lines(write, tmp_path):
  write('train.csv', _csv('ant', 'bee'))
  write('val.csv', _csv('ant', 'cow', 'yak', 'cow'))
  with pytest.raises(UserError) as error:
    table.Source('val', path=f'{tmp_path}/{{split}}.csv')
  message = str(error.value)
  assert '2 labels are unknown' in message
  assert "val.csv, line 3: 'cow' is neither a number" in message
  with pytest.raises(UserError, match=r'label 3 is outside 0 \.\. 1'):
    table.Source('all', path=write('b.csv', _csv(0, 3)), num_classes=2)


def test_a_missing_label_or_image_is_named_when_it_is_read(write):
  path = write('a.csv', [*_csv('a', '', 'b'), ',a'])
  source = table.Source('all', path=path)
  assert source.class_names == ['a', 'b']
  with pytest.raises(UserError, match="the label is missing: 'label' is empty"):
    source[1]
  with pytest.raises(UserError, match="the column 'image' is empty"):
    source[3]
  rows = [{'image': '0.jpg', 'label': ['a']}, {'image': '1.jpg'}]
  source = table.Source('all', path=write('b.jsonl', rows))
  with pytest.raises(UserError, match='the label is missing'):
    source[1]


def test_a_missing_column_lists_the_columns(write):
  path = write('a.csv', ['path,class', '0.jpg,1'])
  with pytest.raises(
    UserError, match="no column 'image', 'label'; its first line has: path, cl"
  ):
    table.Source('all', path=path)
  (write('e.csv', []))
  with pytest.raises(UserError, match='has no column'):
    table.Source('all', path=path.replace('a.csv', 'e.csv'))


def test_a_column_missing_from_all_rows_is_missing_from_json(write):
  path = write('a.jsonl', [{'file': '0.jpg', 'label': 'cat'}])
  with pytest.raises(UserError, match=r"no column 'image'.*: file, label"):
    table.Source('all', path=path)


def test_a_column_or_cell_too_many_is_never_guessed(write):
  path = write('a.csv', ['image,label,label', '0.jpg,cat,dog'])
  with pytest.raises(UserError, match="'label' more than once"):
    table.Source('all', path=path)
  path = write('b.csv', ['image,label', '0.jpg,cat', '1,5.jpg,cat'])
  with pytest.raises(UserError, match=r'b\.csv, line 3: 3 cells in 2 columns'):
    table.Source('all', path=path)


def test_an_undecodable_path_is_shown_escaped(write):
  path = write('a.jsonl', [{'image': '\ud800.jpg', 'label': 'cat'}])
  assert r'\ud800.jpg (line 1' in table.Source('all', path=path).describe(0)


def test_spaces_around_a_label_are_ignored(write):
  path = write('a.csv', _csv('cat', ' cat', 'dog '))
  assert table.Source('all', path=path).class_names == ['cat', 'dog']


@pytest.mark.parametrize(
  'bad',
  [
    {'image': 5, 'label': 'cat'},
    {'image': ['0.jpg'], 'label': 'cat'},
    {'image': '0.jpg', 'label': {'name': 'cat'}},
    {'image': '0.jpg', 'label': [['cat']]},
    {'image': '0.jpg', 'label': 1.0},
    {'image': '0.jpg', 'label': True},
  ],
)
def test_a_value_of_another_type_is_named_with_its_line(write, bad):
  path = write('a.jsonl', [{'image': '0.jpg', 'label': 'cat'}, bad])
  with pytest.raises(UserError, match=r'a\.jsonl, line 2: .* is .*; expected'):
    table.Source('all', path=path)


def test_class_ids_do_not_become_names_beside_names(write):
  rows = [{'image': '0.jpg', 'label': x} for x in (1, 'cat')]
  path = write('a.jsonl', rows)
  with pytest.raises(UserError, match=r'ids \(1\) and some are names \(cat\)'):
    table.Source('all', path=path)


def test_dates_are_refused_as_class_ids(write):
  path = write('a.csv', _csv(20250131))
  with pytest.raises(UserError, match=r'a\.csv: .*20,250,132 classes'):
    table.Source('all', path=path)
  assert table.Source('all', path=path, num_classes=30_000_000)


def test_a_file_other_than_a_table_is_named(write, tmp_path):
  with pytest.raises(UserError, match=r'no\.csv'):
    table.Source('all', path=f'{tmp_path}/no.csv')
  with pytest.raises(UserError, match=r'is a file \.csv, \.tsv, \.jsonl'):
    table.Source('all', path=write('a.xls', ['x']))
  (tmp_path / 'b.jsonl').write_text('{"image": "0.jpg", "label": 1}\n{"im')
  with pytest.raises(UserError, match=r'b\.jsonl, line 2: '):
    table.Source('all', path=f'{tmp_path}/b.jsonl')
  with pytest.raises(UserError, match='has no rows'):
    table.Source('all', path=write('c.csv', ['image,label']))


def test_paths_start_at_data_dir_and_quotes_and_tabs_are_read(write, tmp_path):
  (tmp_path / 'deep').mkdir()
  (tmp_path / 'deep' / 'a, b.jpg').write_bytes(b'here')
  path = write('a.csv', ['label,image', '1,"a, b.jpg"'])
  source = table.Source('all', path=path, data_dir=str(tmp_path / 'deep'))
  assert source[0] == {'image': b'here', 'label': 1}
  path = write('a.tsv', ['label\timage', '1\tdeep/a, b.jpg'])
  assert table.Source('all', path=path)[0]['image'] == b'here'


def test_other_columns_become_numbers_or_codes(write):
  rows = ['image,label,sex,age,score,site']
  rows += ['0.jpg,a,m,61,1.5,7', '1.jpg,b,f,9,2,8', '2.jpg,a,m,33,-1,7']
  path = write('a.csv', rows)
  names = ['sex', 'age', 'score']
  source = table.Source('all', path=path, columns=names)
  assert source.column_texts == {'sex': ['f', 'm']}
  assert source.fields == {'image': 'image', **dict.fromkeys(names, 'group')}
  found = [[source[i][name] for i in range(3)] for name in names]
  assert found == [[1, 0, 1], [61, 9, 33], [1.5, 2, -1]]
  kinds = [source[0][name].dtype for name in names]
  assert kinds == [np.int32, np.int32, np.float32]
  # A list fixes the codes, whatever rows the split has.
  given = dict(site=['9', '8', '7'])
  source = table.Source('all', path=path, columns=given)
  assert [source[i]['site'] for i in range(3)] == [2, 1, 2]
  with pytest.raises(UserError, match="no column 'race'"):
    table.Source('all', path=path, columns=['race'])
  with pytest.raises(UserError, match="'site' has '7', which is not among"):
    _ = table.Source('all', path=path, columns={'site': ['8']})[0]
  with pytest.raises(UserError, match="'label' is a field of its own"):
    table.Source('all', path=path, columns=['label'])


def test_an_evaluator_gets_the_columns(write, tmp_path):
  for i in range(3):
    Image.new('RGB', (4, 4)).save(tmp_path / f'{i}.png')
  rows = ['image,label,sex,age', '0.png,a,m,61', '1.png,b,f,9', '2.png,a,m,33']
  data = dict(
    name='table',
    split='all',
    path=write('a.csv', rows),
    label_key=None,
    columns=['sex', 'age'],
  )
  rows = _rows.Rows(mesh.make_mesh(), data=data, ops='decode', batch_size=8)
  (found,) = rows.map(_groups, {})
  assert {name: x.tolist() for name, x in found.items()} == {
    'sex': [1, 0, 1],
    'age': [61, 9, 33],
  }
  assert rows.input.source.column_texts == {'sex': ['f', 'm']}


def _groups(params, batch):
  del params
  assert 'label' not in batch
  return {name: batch[name] for name in ('sex', 'age')}
