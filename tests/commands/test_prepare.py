"""`python -m vit_jax prepare`; the source has tests of its own."""

import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vit_jax.commands import prepare
from vit_jax.data.sources import array_record
from vit_jax.data.storage import shards
from vit_jax.errors import UserError

_ROOT = pathlib.Path(__file__).parents[2]
_NUM = 22


def _picture(value, height=10, width=16):
  grid = np.arange(height * width * 3).reshape(height, width, 3)
  return Image.fromarray(((grid // 7 + 9 * value) % 256).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
  """Images of two classes: 22 to train, 3 to validate."""
  for split, num in (('train', _NUM), ('val', 3)):
    for i in range(num):
      path = tmp_path / 'in' / split / ('cat', 'dog')[i % 2] / f'{i:02}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      _picture(i).save(path)
  return tmp_path


def _prepare(folder, *argv, split='train', code=0):
  source = f'folder:{folder}/in'
  argv = [source, f'{folder}/out', f'--split={split}', *argv]
  assert prepare.main([*argv, '--examples_per_shard=8']) == code


def _source(folder, split='train'):
  return array_record.Source(split, data_dir=str(folder / 'out'))


def _info(folder, split='train'):
  return json.loads((folder / 'out' / split / 'dataset.json').read_text())


def _files(folder):
  return {
    f.name: f.read_bytes()
    for f in (folder / 'out' / 'train').iterdir()
    if f.suffix in ('.array_record', '.json')
  }


def test_prepared_examples_are_read_unchanged(folder, capsys):
  _prepare(folder, split='train,val')
  source = _source(folder)
  assert (len(source), source.num_classes) == (_NUM, 2)
  assert source.class_names == ['cat', 'dog']
  files = sorted((folder / 'in' / 'train').rglob('*.png'))
  for i in (21, 0, 8, 7, 13):
    assert source[i] == {
      'image': files[i].read_bytes(),
      'label': int(files[i].parent.name == 'dog'),
    }
    assert source.describe(i).endswith(f'[{i % 8}] ({files[i]})')
  assert len(_source(folder, 'val')) == 3
  out = capsys.readouterr().out
  assert '22 images in 3 files' in out
  assert '2, with 11 to 11 images each' in out


def test_the_facts_are_those_of_the_files(folder):
  _prepare(folder)
  info = _info(folder)
  assert (info['num_examples'], info['class_counts']) == (_NUM, [11, 11])
  assert [s['num_examples'] for s in info['shards']] == [8, 8, 6]
  for shard in info['shards']:
    content = (folder / 'out' / 'train' / shard['file']).read_bytes()
    assert shard['num_bytes'] == len(content)
  assert info['source'] == dict(name='image_folder', data_dir=f'{folder}/in')


def test_names_need_not_be_utf_8_but_that_of_the_target(folder, capsys):
  foreign = folder / os.fsdecode(b'f\xfcr')
  (folder / 'in').rename(foreign)
  cats = foreign / 'train' / 'cat'
  (cats / '00.png').rename(cats / os.fsdecode(b'\xff.png'))
  for _ in range(2):  # begun, then compared
    assert prepare.main([f'folder:{foreign}', f'{folder}/out']) == 0
  assert r'cat/\udcff.png' in _source(folder).describe(10)
  assert prepare.main([f'folder:{foreign}', f'{foreign}/out']) == 2
  err = capsys.readouterr().err
  assert r'f\udcfcr/out/train: the name of the target is not UTF-8' in err


def test_arrays_and_label_vectors_are_kept(tmp_path):
  images = np.random.default_rng(0).integers(0, 9999, (5, 4, 6, 7))
  vectors = np.float32(np.eye(5, 3))
  np.savez(tmp_path / 'a.npz', train_images=images / 8, train_labels=vectors)
  source = f"arrays(path='{tmp_path}/a.npz')"
  assert prepare.main([source, f'{tmp_path}/out']) == 0
  example = _source(tmp_path)[2]
  np.testing.assert_array_equal(example['image'], np.float32(images[2] / 8))
  np.testing.assert_array_equal(example['label'], vectors[2])
  assert example['label'].dtype == np.float32
  assert _info(tmp_path)['class_counts'] == [1, 1, 1]


class TestResize:
  def test_large_images_shrink_and_small_ones_stay_to_the_byte(self, folder):
    path = folder / 'in' / 'train' / 'cat' / '00.png'
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture(5, 60, 90).save(path, exif=exif)
    _prepare(folder, '--resize_small=20')
    source = _source(folder)
    with Image.open(io.BytesIO(source[0]['image'])) as image:
      assert (image.format, image.size) == ('JPEG', (30, 20))
      assert image.getexif()[0x0112] == 6
      expected = _picture(5, 60, 90).resize((30, 20), Image.Resampling.BICUBIC)
      error = np.asarray(image) - np.asarray(expected, float)
      assert np.abs(error).mean() < 3  # JPEG
    other = folder / 'in' / 'train' / 'cat' / '02.png'
    assert source[1]['image'] == other.read_bytes()

  def test_quality_changes_the_size(self, folder):
    _prepare(folder, '--resize_small=8')
    large = len(_source(folder)[0]['image'])
    shutil.rmtree(folder / 'out')
    _prepare(folder, '--resize_small=8', '--quality=20')
    assert len(_source(folder)[0]['image']) < large

  def test_quality_without_resizing_is_an_error(self, folder, capsys):
    _prepare(folder, '--quality=80', code=2)
    assert 'no effect without --resize_small' in capsys.readouterr().err
    _prepare(folder, '--resize_small=8', '--quality=101', code=2)
    assert 'quality is 1 to 95; got 101' in capsys.readouterr().err


class TestBroken:
  def test_the_first_one_stops_and_is_named(self, folder, capsys):
    path = folder / 'in' / 'train' / 'dog' / '03.png'
    path.write_bytes(path.read_bytes()[:50])
    _prepare(folder, '--resize_small=8', code=2)
    error = capsys.readouterr().err
    assert f'{path}: cannot decode' in error and '--on_error=skip' in error
    with pytest.raises(UserError, match='not complete: run prepare again'):
      _source(folder)

  def test_or_they_are_left_out_counted_and_named(self, folder, capsys):
    path = folder / 'in' / 'train' / 'dog' / '03.png'
    path.write_bytes(path.read_bytes()[:50])
    _prepare(folder, '--resize_small=8', '--on_error=skip')
    assert 'skipped  1 image that' in capsys.readouterr().out
    info = _info(folder)
    assert info['num_examples'] == _NUM - 1
    assert info['class_counts'] == [11, 10]
    assert str(path) in info['skipped'][0]
    source = _source(folder)
    assert len(source) == _NUM - 1
    assert all(str(path) not in source.describe(i) for i in range(_NUM - 1))


class TestResume:
  def test_killed_at_any_moment_it_ends_with_the_same_bytes(self, folder):
    _prepare(folder)
    whole = _files(folder)
    shutil.rmtree(folder / 'out')
    out = folder / 'out' / 'train'
    # A source that is slow enough to be killed within the second file.
    code = (
      'import sys, time\n'
      'from vit_jax.commands import prepare\n'
      'from vit_jax.data.sources import image_folder\n'
      'read = image_folder.Source.__getitem__\n'
      'def slow(self, i):\n'
      '  time.sleep(0.02 if i < 8 else 0.5)\n'
      '  return read(self, i)\n'
      'image_folder.Source.__getitem__ = slow\n'
      f'prepare.main(["folder:{folder}/in", "{folder}/out",'
      ' "--examples_per_shard=8", "--num_threads=1"])\n'
    )
    process = subprocess.Popen(
      [sys.executable, '-c', code],
      env=os.environ | {'PYTHONPATH': str(_ROOT)},
      stdout=subprocess.DEVNULL,
    )
    try:
      second = out / '.00001-of-00003.array_record.part'
      deadline = time.monotonic() + 60
      while not second.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    finally:
      process.send_signal(signal.SIGKILL)
      process.wait()
    first = out / '00000-of-00003.array_record'
    before = first.stat().st_mtime_ns
    assert not (out / '00001-of-00003.array_record').exists()
    _prepare(folder)
    assert first.stat().st_mtime_ns == before  # was not written again
    assert _files(folder) == whole
    assert not list(out.glob('.*'))

  def test_started_again_it_replaces_missing_and_short_files(
    self, folder, capsys
  ):
    _prepare(folder)
    whole, out = _files(folder), folder / 'out' / 'train'
    (out / '00000-of-00003.array_record').unlink()
    os.truncate(out / '00001-of-00003.array_record', 99)
    capsys.readouterr()
    _prepare(folder)
    assert 'resumed  1 of 3 files exist' in capsys.readouterr().out
    assert _files(folder) == whole

  def test_runs_of_the_code_before_are_continued_and_read(self, folder):
    """It had the SHA-256 of each file in dataset.json and beside the file."""
    _prepare(folder)
    whole = _files(folder)
    out = folder / 'out' / 'train'
    for path in out.glob('*-of-*.json'):
      path.write_text(path.read_text()[:-1] + ', "sha256": "a"}')
    info = _info(folder)
    info['shards'] = [shard | {'sha256': 'a'} for shard in info['shards']]
    (out / 'dataset.json').write_text(json.dumps(info))
    (out / '.lock').touch()
    assert len(_source(folder)) == _NUM
    _prepare(folder)
    assert _files(folder)['dataset.json'] == whole['dataset.json']

  @pytest.mark.parametrize('change', ['file', 'resize', 'shards'])
  def test_a_folder_begun_from_something_else_is_refused(
    self, folder, capsys, change
  ):
    _prepare(folder)
    argv = [f'folder:{folder}/in', f'{folder}/out', '--examples_per_shard=8']
    if change == 'file':
      (folder / 'in' / 'train' / 'cat' / '00.png').rename(
        folder / 'in' / 'train' / 'cat' / '99.png'
      )
    elif change == 'resize':
      argv.append('--resize_small=4')
    else:
      argv[-1] = '--examples_per_shard=9'
    assert prepare.main(argv) == 2
    error = capsys.readouterr().err
    key = dict(file='records', resize='resize', shards='examples_per_shard')
    assert 'was begun from something else' in error
    assert f'{key[change]}: was ' in error

  def test_two_at_once_write_the_same_files(self, folder, monkeypatch):
    _prepare(folder)
    whole = _files(folder)
    shutil.rmtree(folder / 'out')
    fill = shards.Writer._fill

    def meanwhile(self, path, part, advance):
      if part.start == 8:
        with monkeypatch.context() as patches:
          patches.setattr(shards.Writer, '_fill', fill)
          _prepare(folder)
      return fill(self, path, part, advance)

    monkeypatch.setattr(shards.Writer, '_fill', meanwhile)
    _prepare(folder)
    assert _files(folder) == whole

  def test_a_full_disk_ends_with_a_message_and_the_rest_goes_on(
    self, folder, monkeypatch, capsys
  ):
    from array_record.python import array_record_module

    _prepare(folder)
    whole = _files(folder)
    shutil.rmtree(folder / 'out')
    real, opened = array_record_module.ArrayRecordWriter, []

    class Full:
      def __init__(self, *args):
        opened.append(real(*args))
        self.write = opened[-1].write

      def close(self):
        opened[-1].close()
        if len(opened) == 2:
          raise RuntimeError('write() failed: No space left on device')

    with monkeypatch.context() as patches:
      patches.setattr(array_record_module, 'ArrayRecordWriter', Full)
      _prepare(folder, code=1)
    error = capsys.readouterr().err
    assert 'No space left on device; the complete files of' in error
    _prepare(folder)
    assert 'resumed  1 of 3 files exist' in capsys.readouterr().out
    assert _files(folder) == whole

  @pytest.mark.parametrize(
    ('name', 'code'), [('plan.json', 2), ('dataset.json', 1)]
  )
  def test_a_disk_full_at_the_smallest_file_does_so_too(
    self, folder, capsys, name, code
  ):
    # A folder of the name cannot be replaced by a file.
    (folder / 'out' / 'train' / name).mkdir(parents=True)
    _prepare(folder, code=code)
    assert 'cannot write' in capsys.readouterr().err
    (folder / 'out' / 'train' / name).rmdir()
    _prepare(folder)
    assert len(_source(folder)) == _NUM

  def test_a_file_that_lacks_records_is_noticed(
    self, folder, monkeypatch, capsys
  ):
    from array_record.python import array_record_module

    real = array_record_module.ArrayRecordWriter

    class Forgetful:
      def __init__(self, *args):
        self.close, self.write = real(*args).close, len

    monkeypatch.setattr(array_record_module, 'ArrayRecordWriter', Forgetful)
    _prepare(folder, code=2)
    assert 'is broken: it has 0 records, not 8' in capsys.readouterr().err
    assert not list((folder / 'out' / 'train').glob('*.array_record'))


class TestCommand:
  @pytest.mark.parametrize(
    ('argv', 'words'),
    [
      (['tabel(path="x")'], "did you mean 'table'"),
      (['table(pth="x")'], "did you mean 'path'"),
      (['table("x")'], 'is not one source with keys'),
      (['table(path="x", split="a")'], 'use --split'),
      (['digit'], 'digit'),
      (['digits', '--split=train[:5]'], 'whole splits'),
      (['digits', '--resize_small=0'], 'resize_small is at least 1'),
      (['digits', '--resize_small=9', '--quality=0'], '1 to 95; got 0'),
      (['digits', '--examples_per_shard=0'], 'at least 1; got 0'),
      (['digits', '--split=../x=train'], '../x=...: expected the name of a'),
      (['folder:'], 'folder:PATH is images'),
      (['tests'], 'no image in'),
      (
        ['digits', '--num_threads=0'],
        '--num_threads: expected 1 or more; got 0',
      ),
    ],
  )
  def test_a_mistake_ends_with_one_message(self, tmp_path, capsys, argv, words):
    assert prepare.main([argv[0], f'{tmp_path}/out', *argv[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and words in error

  def test_a_target_that_cannot_be_written_is_named(self, tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert prepare.main(['digits', f'{tmp_path}/file']) == 2
    assert f'cannot write {tmp_path}/file/train' in capsys.readouterr().err

  def test_a_split_can_get_another_name(self, folder):
    _prepare(folder, split='train,validation=val')
    assert len(_source(folder, 'validation')) == 3
    assert not (folder / 'out' / 'val').exists()

  def test_all_images_of_a_folder_of_classes_are_written(self, folder, capsys):
    assert prepare.main([f'{folder}/in/train', f'{folder}/out']) == 0
    assert 'splits   train, val (' in capsys.readouterr().out
    assert (len(_source(folder)), len(_source(folder, 'val'))) == (20, 2)

  def test_prepared_data_can_be_prepared_again(self, folder):
    _prepare(folder)
    argv = [f'records:{folder}/out', f'{folder}/again/out']
    assert prepare.main(argv) == 0
    again = _source(folder / 'again')
    assert [again[i] for i in range(_NUM)] == list(
      map(_source(folder).__getitem__, range(_NUM))
    )

  def test_a_source_without_arguments_needs_no_brackets(self, tmp_path, capsys):
    assert prepare.main(['digits', f'{tmp_path}/out', '--split=test']) == 0
    assert '360 images in 1 file,' in capsys.readouterr().out
    assert len(_source(tmp_path, 'test')) == 360

  def test_a_bar_is_drawn_on_a_terminal(self, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    _prepare(folder)
    assert '22/22' in capsys.readouterr().err
