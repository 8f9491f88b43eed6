"""Tar files in the layout of WebDataset."""

import functools
import io
import itertools
import json
import os
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from vit_jax import files
from vit_jax.data import pipeline
from vit_jax.data.sources import tar_shards
from vit_jax.data.storage import tar_index
from vit_jax.errors import UserError


def _png(value):
  file = io.BytesIO()
  Image.new('L', (4, 3), value).save(file, 'PNG')
  return file.getvalue()


def _write(path, members):
  """Writes a tar; a member that is no bytes is (type, what it leads to)."""
  with tarfile.open(path, 'w') as tar:
    for name, content in dict(members).items():
      info = tarfile.TarInfo(name)
      if isinstance(content, bytes):
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
      else:
        info.type, info.linkname = content
        tar.addfile(info)
  return str(path)


def _examples(start, num):
  return {
    f'set/{i:04}.{extension}': content
    for i in range(start, start + num)
    for extension, content in (
      ('seg.png', b'not the image'),
      ('png', _png(i)),
      ('cls', f'{i % 3}\n'.encode()),
    )
  }


@pytest.fixture
def folder(tmp_path):
  """Four tars: train-0, train-1, train-2 with 5 examples each, test-0."""
  for k in range(3):
    _write(tmp_path / f'train-{k}.tar', _examples(5 * k, 5))
  _write(tmp_path / 'test-0.tar', _examples(90, 2))
  return tmp_path


def _source(folder, split='train', pattern='{split}-{0..2}.tar', **kwargs):
  defaults = dict(paths=f'{folder}/{pattern}', num_classes=3)
  return tar_shards.Source(split, **(defaults | kwargs))


def test_examples_are_the_groups_of_members_in_order(folder):
  source = _source(folder)
  assert (len(source), source.num_classes) == (15, 3)
  for i in (7, 14, 0, 3):  # any order
    assert source[i] == {'image': _png(i), 'label': i % 3}
    where = f'{folder}/train-{i // 5}.tar: set/{i:04}.png'
    assert source.describe(i) == where


def test_the_pattern_contains_the_name_of_the_split(folder):
  assert len(_source(folder, 'test', '{split}-*.tar')) == 2
  assert len(_source(folder, 'train', '{split}-{0,2}.tar')) == 10
  assert len(_source(folder, 'all', '*.tar')) == 17
  with pytest.raises(UserError, match=r"its split is 'all'.*got 'test'"):
    _source(folder, 'test', 'train-{0..2}.tar')
  both = [f'{folder}/{{split}}-0.tar', f'{folder}/{{split}}-2.tar']
  assert len(_source(folder, paths=both)) == 10


def test_missing_tars_are_named(folder):
  with pytest.raises(UserError, match=r'2 of 5 are missing: .*train-3\.tar'):
    _source(folder, pattern='{split}-{0..4}.tar')


def test_slices_share_nothing_and_miss_nothing(folder):
  parts = [_source(folder, f'train[{s}]') for s in (':60%', '60%:')]
  names = [p.describe(i) for p in parts for i in range(len(p))]
  assert [len(p) for p in parts] == [9, 6]
  assert len(set(names)) == 15


def test_labels_can_be_names_or_lists_in_json(tmp_path):
  animals = ['cat', 'dog', 'eel']
  members = {
    'a.jpg': _png(1),
    'a.txt': b'dog\n',
    'a.json': json.dumps({'meta': {'tags': ['eel', 'cat']}}).encode(),
  }
  path = _write(tmp_path / 'x.tar', members)
  make = lambda key: tar_shards.Source(  # noqa: E731
    'all', paths=path, label_key=key, class_names=animals
  )
  assert make('txt')[0]['label'] == 1
  label = make('json.meta.tags')[0]['label']
  np.testing.assert_array_equal(label, np.float32([1, 0, 1]))
  with pytest.raises(UserError, match="the label is missing: no 'label'"):
    make('json')[0]
  assert 'label' not in make(None)[0]


def test_class_names_come_from_a_file_too(tmp_path):
  path = _write(tmp_path / 'x.tar', {'a.jpg': _png(1), 'a.cls': b'dog'})
  for content in (
    '["cat", "dog"]',
    'cat\ndog\n',
    '\ufeffcat\r\ndog\r\n\r\n',
    '\ufeff\n["cat", "dog"]',
  ):
    (tmp_path / 'names').write_text(content)
    names = str(tmp_path / 'names')
    source = tar_shards.Source('all', paths=path, class_names=names)
    assert source.class_names == ['cat', 'dog']
    assert source[0]['label'] == 1
  for content, words in (
    ('{"0": "cat"}', 'no list of texts'),
    ('["cat", 1]', 'no list of texts'),
    ('cat\n\ndog', 'name 1 of .* is empty'),
  ):
    (tmp_path / 'names').write_text(content)
    with pytest.raises(UserError, match=f'class_names: .*{words}'):
      tar_shards.Source('all', paths=path, class_names=names)


def test_without_classes_it_says_what_to_give(folder):
  with pytest.raises(UserError, match='set num_classes= or class_names='):
    _source(folder, num_classes=None)


def test_a_missing_label_image_or_class_is_named_when_it_is_read(tmp_path):
  members = {
    'good.png': _png(1),
    'good.cls': b'0',
    'nolabel.png': _png(1),
    'noimage.cls': b'0',
    'far.png': _png(1),
    'far.cls': b'3',
    'word.png': _png(1),
    'word.cls': b'cat',
  }
  path = _write(tmp_path / 'x.tar', members)
  data = dict(name='tar_shards', split='all', paths=path, num_classes=3)
  source = tar_shards.Source('all', paths=path, num_classes=3)
  for i, words in enumerate(
    ['the label is missing', 'no image', r'outside 0 \.\. 2', 'neither a num']
  ):
    with pytest.raises(UserError, match=words):
      source[i + 1]
  skipping = pipeline.EvalInput(
    data=data, ops='decode', batch_size=5, on_error='skip'
  )
  (batch,) = skipping
  assert batch['mask'].tolist() == [True] + 4 * [False]
  assert skipping.skipped == 4
  assert f'{path}: nolabel.png: the label is missing' in str(
    skipping.skipped_names
  )


def test_tars_without_images_are_an_error(tmp_path):
  path = _write(
    tmp_path / 'x.tar', {'a.mp3': b'la', '._b.jpg': b'', 'c.cls': b'1'}
  )
  with pytest.raises(UserError, match=r'no images in 1 tars.*\*\.jpg'):
    tar_shards.Source('all', paths=path, num_classes=2)


def test_a_link_is_its_target(tmp_path):
  members = {
    'a/0.png': _png(7),
    'a/1.png': (tarfile.LNKTYPE, 'a/0.png'),
    'a/2.png': (tarfile.SYMTYPE, '1.png'),
    'a/gone.png': (tarfile.SYMTYPE, '/data/gone.png'),
    'a/round.png': (tarfile.SYMTYPE, 'round.png'),
  }
  path = _write(tmp_path / 'x.tar', members)
  for _ in range(2):  # read through, then from the index that was kept
    source = tar_shards.Source('all', paths=path, label_key=None)
    assert [source[i]['image'] for i in range(3)] == [_png(7)] * 3
    for i in (3, 4):
      with pytest.raises(UserError, match=r'link to what is not in .*x\.tar'):
        source[i]


def test_many_links_take_linear_time(tmp_path):
  names = [f'{i}.png' for i in range(20_000)]
  links = {
    name: (tarfile.LNKTYPE, target)
    for target, name in itertools.pairwise(names)
  }
  itself = {'x.png': (tarfile.SYMTYPE, 'x.png')}  # A circle of one.
  path = _write(tmp_path / 'a.tar', {names[0]: b'content'} | links | itself)
  start = time.process_time()
  (index,) = tar_index.open_all([path])
  # It takes 1 s, and takes 20 s if it is quadratic.
  assert time.process_time() - start < 8
  assert index.read(len(names) - 1) == b'content'
  with pytest.raises(UserError, match='a link to what is not in'):
    index.read(len(names))


def test_an_image_lost_by_dots_in_its_name_is_a_bad_one(tmp_path):
  members = {'a.png': _png(1), 'a.seg.png': b'', 'b.v2.png': _png(1)}
  path = _write(tmp_path / 'x.tar', members)
  source = tar_shards.Source('all', paths=path, label_key=None)
  assert len(source) == 2
  with pytest.raises(UserError, match='first dot'):
    source[1]
  assert source.describe(1) == f'{path}: b.v2.png'


def test_a_duplicate_file_is_an_error(tmp_path):
  path = _write(tmp_path / 'x.tar', {'a.png': _png(1)})
  with tarfile.open(path, 'a') as tar:
    tar.addfile(tarfile.TarInfo('a.png'))
  with pytest.raises(UserError, match=r'x\.tar has a\.png more than once'):
    tar_shards.Source('all', paths=path, label_key=None)


class TestIndex:
  def test_it_is_kept_and_used_until_the_tar_changes(self, folder, monkeypatch):
    before = _source(folder)[3]
    assert os.path.exists(folder / 'train-0.tar.index.npz')
    with monkeypatch.context() as patches:
      patches.setattr(tarfile, 'open', None)  # reading through would fail
      assert _source(folder)[3] == before
    _write(folder / 'train-0.tar', _examples(50, 7))
    assert len(_source(folder)) == 17
    assert _source(folder)[6]['image'] == _png(56)

  @pytest.mark.parametrize('content', [b'', b'PK\3\4junk', b'junk'])
  def test_a_broken_one_is_made_again(self, folder, content):
    _source(folder)
    (folder / 'train-0.tar.index.npz').write_bytes(content)
    assert _source(folder)[3]['image'] == _png(3)

  def test_a_folder_that_cannot_be_written_needs_none(
    self, folder, monkeypatch
  ):
    def refuse(*args):
      raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(files, '_open_temporary', refuse)
    assert _source(folder)[3]['image'] == _png(3)
    assert not list(folder.glob('*.npz'))

  def test_a_tar_cut_off_anywhere_is_an_error_and_never_shorter(self, folder):
    path = folder / 'train-0.tar'
    whole = path.read_bytes()
    assert whole.endswith(bytes(1024))
    end = len(whole.rstrip(b'\0')) // 512 * 512 + 512
    for length in (100, 512, 700, 1024, end - 512, end):
      path.write_bytes(whole[:length])
      with pytest.raises(UserError, match=r'train-0\.tar is .*broken'):
        _source(folder)

  def test_a_damaged_header_is_an_error_and_never_fewer_images(self, folder):
    path = folder / 'train-0.tar'
    content = path.read_bytes()
    header = content.index(b'set/0003.png')
    path.write_bytes(content[:header] + b'X' + content[header + 1 :])
    with pytest.raises(UserError, match=rf'more behind its end at.* {header}'):
      _source(folder)

  def test_concatenated_tars_are_an_error(self, folder):
    first, second = folder / 'train-0.tar', folder / 'train-1.tar'
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(UserError, match='joined by cat'):
      _source(folder)

  def test_a_folder_is_refused_as_a_tar(self, folder):
    (folder / 'test-1.tar').mkdir()
    with pytest.raises(UserError, match='Is a directory'):
      _source(folder, split='test', pattern='{split}-1.tar')

  def test_a_compressed_tar_says_how_to_unpack_it(self, folder):
    with tarfile.open(folder / 'train-0.tar', 'w:gz'):
      pass
    with pytest.raises(UserError, match=r'unpack it first: gunzip .*train-0'):
      _source(folder)

  def test_several_mistakes_are_reported_at_once(self, folder):
    for k in (0, 2):
      (folder / f'train-{k}.tar').write_bytes(b'junk' * 300)
    with pytest.raises(UserError) as error:
      _source(folder)
    for k in (0, 2):
      assert f'train-{k}.tar is not a tar' in str(error.value)

  def test_long_and_foreign_names_are_kept(self, tmp_path):
    name = 'ä' * 90 + '/' + 'ö' * 90
    path = _write(tmp_path / 'x.tar', {f'{name}.png': _png(1)})
    source = tar_shards.Source('all', paths=path, label_key=None)
    assert source.describe(0) == f'{path}: {name}.png'

  def test_a_name_outside_utf_8_is_shown_escaped(self, tmp_path):
    path = _write(tmp_path / 'x.tar', {'\udcff.png': _png(1)})
    source = tar_shards.Source('all', paths=path, label_key=None)
    assert source.describe(0) == f'{path}: \\xff.png'
    assert source[0]['image'] == _png(1)


class TestDisappears:
  """A shard that goes away in the middle of an epoch."""

  def _input(self, folder, **kwargs):
    data = dict(
      name='tar_shards',
      split='train',
      paths=f'{folder}/{{split}}-{{0..2}}.tar',
      num_classes=3,
    )
    return pipeline.TrainInput(
      data=data, ops='decode', batch_size=5, seed=0, prefetch=1, **kwargs
    )

  @pytest.mark.parametrize(
    ('harm', 'words'),
    [
      (lambda path: path.unlink(), 'cannot be read any more: .*No such file'),
      (lambda path: os.truncate(path, 2000), 'was changed after'),
      (lambda path: _write(path, _examples(60, 5)), 'was changed after'),
    ],
  )
  def test_the_run_stops_and_names_it(self, folder, harm, words):
    batches = self._input(folder).batches()
    next(batches)
    harm(folder / 'train-1.tar')
    with pytest.raises(UserError, match=rf'train-1\.tar: set.*{words}'):
      list(itertools.islice(batches, 30))

  def test_or_its_examples_are_skipped_and_counted(self, folder):
    one = self._input(folder, on_error='skip')
    batches = one.batches()
    next(batches)
    (folder / 'train-1.tar').unlink()
    late = list(itertools.islice(batches, 30))[10:]
    batches.close()
    index = np.concatenate([batch['index'] for batch in late])
    assert set(index) == {*range(5), *range(10, 15)}
    assert one.skipped == 5
    assert all(
      batch['image'].any() for batch in late if 0 not in batch['index']
    )


def test_entries_of_the_json_are_columns(tmp_path):
  members = {}
  for i, sex in enumerate(['m', 'f']):
    members[f'{i}.png'] = _png(i)
    entry = {'label': i, 'sex': sex, 'age': 10 * i}
    members[f'{i}.json'] = json.dumps(entry).encode()
  path = _write(tmp_path / 'a.tar', members)
  make = functools.partial(
    tar_shards.Source, 'all', paths=path, label_key='json.label', num_classes=2
  )
  source = make(columns={'sex': ['f', 'm'], 'age': None})
  assert [source[i]['sex'] for i in range(2)] == [1, 0]
  assert [source[i]['age'] for i in range(2)] == [0, 10]
  assert source.column_texts == {'sex': ['f', 'm']}
  with pytest.raises(UserError, match=r"list its texts with columns=\{'sex'"):
    _ = make(columns=['sex'])[0]
  with pytest.raises(UserError, match="the column 'race' is empty"):
    _ = make(columns=['race'])[0]
  with pytest.raises(UserError, match=r"set label_key='json\.label'"):
    make(columns=['sex'], label_key='cls')
