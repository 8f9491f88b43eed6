"""Reading what prepare wrote, also when files go away."""

import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image

from vit_jax.commands import prepare
from vit_jax.data import pipeline
from vit_jax.data.sources import array_record
from vit_jax.errors import UserError

_NUM = 22


def _write(folder, i, size=(10, 16)):
  path = folder / 'in' / 'train' / ('cat', 'dog')[i % 2] / f'{i:02}.png'
  path.parent.mkdir(parents=True, exist_ok=True)
  noise = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(noise).save(path)


@pytest.fixture
def folder(tmp_path):
  """Images of two classes."""
  for i in range(_NUM):
    _write(tmp_path, i)
  return tmp_path


def _prepare(folder):
  argv = [f'folder:{folder}/in', f'{folder}/out', '--examples_per_shard=8']
  assert prepare.main(argv) == 0


def _source(folder, split='train'):
  return array_record.Source(split, data_dir=str(folder / 'out'))


def test_slices_and_the_pipeline_work_on_it(folder):
  _prepare(folder)
  parts = [_source(folder, f'train[{s}]') for s in (':50%', '50%:')]
  names = [p.describe(i) for p in parts for i in range(len(p))]
  assert len(set(names)) == _NUM
  data = dict(name='array_record', split='train', data_dir=f'{folder}/out')
  original = dict(name='image_folder', split='train', data_dir=f'{folder}/in')
  batches = [
    next(
      pipeline.TrainInput(
        data=d, ops='decode|random_crop(8)', batch_size=16, seed=3
      ).batches(start_step=2)
    )
    for d in (data, original)
  ]
  for name in batches[0]:
    np.testing.assert_array_equal(batches[0][name], batches[1][name])


def test_a_record_that_is_named_and_then_read_is_read_once(folder, monkeypatch):
  _prepare(folder)
  source, read = _source(folder), []
  restored = source._restored
  monkeypatch.setattr(
    source, '_restored', lambda index: read.append(index) or restored(index)
  )
  for index in (3, 4, 3):
    assert f'/in/train/{("cat", "dog")[source[index]["label"]]}/' in (
      source.describe(index)
    )
  assert read == [3, 4, 3]


class TestDisappears:
  def _input(self, folder, **kwargs):
    data = dict(name='array_record', split='train', data_dir=f'{folder}/out')
    return pipeline.TrainInput(
      data=data, ops='decode', batch_size=2, seed=0, prefetch=1, **kwargs
    )

  def _harmed(self, folder, harm, **kwargs):
    """Returns an input, and its batches after harm was done to a file."""
    _prepare(folder)
    one = self._input(folder, **kwargs)  # opens the first file only
    harm(folder / 'out' / 'train' / '00001-of-00003.array_record')
    return one, one.batches()

  @pytest.mark.parametrize(
    ('harm', 'words'),
    [
      (lambda path: path.unlink(), 'is gone'),
      (lambda path: path.write_bytes(b''), 'is broken: it has 0 rec'),
      (lambda path: os.truncate(path, path.stat().st_size // 2), 'is broken'),
    ],
  )
  def test_a_file_that_goes_away_is_named(self, folder, harm, words):
    _, batches = self._harmed(folder, harm)
    with pytest.raises(UserError, match=f'00001-of-00003.*{words}'):
      list(itertools.islice(batches, 30))

  def test_or_its_examples_are_skipped_and_counted(self, folder):
    one, batches = self._harmed(
      folder, lambda path: path.unlink(), on_error='skip'
    )
    index = [next(batches)['index'] for _ in range(44)]
    batches.close()
    assert set(np.concatenate(index)) == {*range(8), *range(16, 22)}
    assert one.skipped == 8

  def test_a_file_cut_off_while_open_gives_an_error_and_no_empty_image(
    self, folder
  ):
    for i in range(_NUM):  # larger than what a reader has buffered
      _write(folder, i, (150, 150))
    _prepare(folder)
    source = _source(folder)
    source[0]
    os.truncate(folder / 'out' / 'train' / '00000-of-00003.array_record', 70000)
    for i in range(3, 8):
      with pytest.raises((UserError, RuntimeError)):
        source[i]

  def test_missing_and_shorter_files_are_all_named_at_the_start(self, folder):
    _prepare(folder)
    out = folder / 'out' / 'train'
    (out / '00000-of-00003.array_record').unlink()
    os.truncate(out / '00002-of-00003.array_record', 10)
    with pytest.raises(UserError) as error:
      _source(folder)
    assert '00000-of-00003.array_record is missing' in str(error.value)
    assert 'has 10 bytes instead of' in str(error.value)

  @pytest.mark.parametrize(
    'content',
    [
      '{',
      '[]',
      '{"name": "another"}',
      pytest.param('[' * 100_000, id='deep'),
      '{"num_classes": 2, "class_names": null, "shards": [1]}',
      '{"num_classes": 2, "class_names": 5, "shards": []}',
      '{"num_classes": "2", "class_names": null, "shards": []}',
    ],
  )
  def test_a_description_by_someone_else_is_named(self, folder, content):
    _prepare(folder)
    (folder / 'out' / 'train' / 'dataset.json').write_text(content)
    with pytest.raises(UserError, match=r'train/dataset\.json'):
      _source(folder)

  def test_a_pipe_is_refused(self, folder):
    _prepare(folder)
    path = folder / 'out' / 'train' / 'dataset.json'
    info = json.loads(path.read_text())
    shard = path.with_name(info['shards'][0]['file'])
    shard.unlink()
    os.mkfifo(shard)
    info['shards'][0]['num_bytes'] = 0
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r'array_record is missing'):
      _source(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r'dataset\.json: it is a pipe'):
      _source(folder)
    path.unlink()
    path.symlink_to('/dev/zero')
    with pytest.raises(UserError, match=r'dataset\.json: it is a device'):
      _source(folder)

  def test_an_unknown_split_lists_the_splits(self, folder):
    _prepare(folder)
    with pytest.raises(UserError, match="no split 'test'; it has: train"):
      _source(folder, 'test')


def test_columns_and_their_texts_are_kept(tmp_path):
  rows = []
  for i, sex in enumerate('mfm'):
    Image.new('RGB', (4, 4)).save(tmp_path / f'{i}.png')
    rows.append(f'{i}.png,x,{sex}')
  table = tmp_path / 'table.csv'
  table.write_text('\n'.join(['image,label,sex', *rows]))
  for target, columns in (('with', ['sex']), ('without', [])):
    source = f'table(path={str(table)!r}, columns={columns})'
    assert prepare.main([source, f'{tmp_path}/{target}', '--split=all']) == 0
  source = array_record.Source('all', data_dir=str(tmp_path / 'with'))
  assert source.column_texts == {'sex': ['f', 'm']}
  assert [int(source[i]['sex']) for i in range(3)] == [1, 0, 1]
  info = (tmp_path / 'without/all/dataset.json').read_text()
  assert 'column_texts' not in info
