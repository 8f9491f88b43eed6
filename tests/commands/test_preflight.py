"""`python -m vit_jax preflight` on datasets with every kind of damage."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from vit_jax.commands import preflight


def _picture(seed, size):
  grid = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  return Image.fromarray(grid)


@pytest.fixture
def folder(tmp_path):
  """Six images to train, of sizes that differ, and two to validate."""
  sizes = [(8, 9), (10, 20), (30, 7), (8, 8), (9, 9), (11, 12)]
  for i, size in enumerate(sizes):
    path = tmp_path / 'train' / ('cat', 'cat', 'dog')[i % 3] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    _picture(i, size).save(path)
  for i in range(2):
    path = tmp_path / 'val' / 'dog' / f'{i}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    _picture(10 + i, (8, 8)).save(path)
  return tmp_path


def _report(capsys, source, *argv, code=0):
  assert preflight.main([source, '--format=json', *argv]) == code
  return json.loads(capsys.readouterr().out)


def test_classes_sizes_and_formats_are_counted(folder, capsys):
  report = _report(capsys, f'folder:{folder}', '--split=train, val')
  train, val = report['splits']['train'], report['splits']['val']
  assert train['num_examples'] == 6
  assert train['classes'] == {'cat': 4, 'dog': 2}
  assert val['classes'] == {'cat': 0, 'dog': 2}
  assert train['formats'] == {'png': 6}
  assert val['formats'] == {'jpeg': 2}
  assert train['height'] == [8, 9.5, 30]
  assert train['width'] == [7, 9, 20]
  files = (folder / 'train').rglob('*.png')
  assert train['num_bytes'] == sum(f.stat().st_size for f in files)
  assert train['broken'] == val['broken'] == report['duplicates'] == []


def test_broken_images_are_named_and_the_exit_code_is_1(folder, capsys):
  broken = folder / 'train' / 'cat' / '0.png'
  broken.write_bytes(broken.read_bytes()[:-30])
  empty = folder / 'train' / 'dog' / 'x.jpg'
  empty.touch()
  report = _report(capsys, f'folder:{folder}', code=1)
  train = report['splits']['train']
  assert [entry['name'] for entry in train['broken']] == [
    str(broken),
    str(empty),
  ]
  assert 'the file is empty' in train['broken'][1]['problem']
  assert train['classes'] == {'cat': 4, 'dog': 3}
  assert train['height'][0] == 8  # not 0, of the broken ones
  assert preflight.main([f'folder:{folder}']) == 1
  out = capsys.readouterr().out
  assert f'{empty}: decode: cannot decode the image of 0 bytes' in out


def test_an_image_that_cannot_even_be_read_is_broken(folder, capsys):
  for name in ('gone.png', 'lost.png'):
    (folder / 'train' / 'dog' / name).symlink_to('/nowhere')
  report = _report(capsys, f'folder:{folder}', code=1)
  entries = report['splits']['train']['broken']
  for entry, name in zip(entries, ('gone.png', 'lost.png'), strict=True):
    assert name in entry['name'] and 'FileNotFound' in entry['problem']
  assert report['duplicates'] == []


def test_duplicates_within_and_between_splits_are_found(folder, capsys):
  first = (folder / 'train' / 'cat' / '0.png').read_bytes()
  for name in (
    'train/cat/again.png',
    'train/dog/wrong.png',
    'val/dog/leak.png',
  ):
    (folder / name).write_bytes(first)
  twin = (folder / 'val' / 'dog' / '0.jpg').read_bytes()
  (folder / 'val' / 'dog' / 'twin.jpg').write_bytes(twin)
  report = _report(capsys, f'folder:{folder}', '--split=train,val')
  found = {
    tuple(name.removeprefix(f'{folder}/') for name in group['names']): (
      group['splits'],
      group['labels_differ'],
    )
    for group in report['duplicates']
  }
  assert found == {
    (
      'train/cat/0.png',
      'train/cat/again.png',
      'train/dog/wrong.png',
      'val/dog/leak.png',
    ): (['train', 'train', 'train', 'val'], True),
    ('val/dog/0.jpg', 'val/dog/twin.jpg'): (['val', 'val'], False),
  }
  assert report['duplicates'][0]['labels_differ']  # the worst comes first
  assert preflight.main([f'folder:{folder}', '--split=train,val']) == 0
  out = capsys.readouterr().out
  assert '2 images occur more than once, 1 of them in several' in out
  assert '1 with labels that differ' in out


def test_a_format_is_that_of_the_content(folder, capsys):
  path = folder / 'train' / 'cat' / 'liar.png'
  _picture(50, (8, 8)).save(path, 'JPEG')
  report = _report(capsys, f'folder:{folder}')
  train = report['splits']['train']
  assert train['formats'] == {'png': 6, 'jpeg': 1}
  assert train['broken'] == []


@pytest.mark.parametrize('flat', [False, True])
def test_all_splits_of_a_folder_are_checked(folder, capsys, flat):
  where = folder
  if flat:
    where = folder / 'train'
    for i in range(20):
      _picture(60 + i, (8, 8)).save(where / 'dog' / f'more_{i}.png')
  assert preflight.main([str(where), '--format=json']) == 0
  out, err = capsys.readouterr()
  splits = json.loads(out)['splits']
  assert list(splits) == ['train', 'val']
  assert 'checking train, val' in err
  count = sum(split['num_examples'] for split in splits.values())
  assert count == (26 if flat else 8)
  assert splits['val']['num_examples'] > 1


def test_a_missing_folder_is_named(tmp_path, capsys):
  assert preflight.main([f'{tmp_path}/none']) == 2
  error = capsys.readouterr().err
  assert f'there is no folder {tmp_path}/none' in error
  assert 'TFDS' not in error
  (tmp_path / 'a.csv').touch()
  assert preflight.main([f'{tmp_path}/a.csv']) == 2
  assert 'a.csv is not a folder' in capsys.readouterr().err


def test_one_broken_image_is_singular(folder, capsys):
  (folder / 'train' / 'dog' / 'x.jpg').touch()
  assert preflight.main([str(folder)]) == 1
  assert 'train: 1 broken image:' in capsys.readouterr().out


def test_a_missing_label_is_broken(folder, capsys):
  rows = ['image,label', 'train/cat/0.png,a', 'train/cat/1.png,']
  (folder / 'a.csv').write_text('\n'.join(rows))
  source = f"table(path='{folder}/a.csv')"
  report = _report(capsys, source, '--split=all', code=1)
  (entry,) = report['splits']['all']['broken']
  assert 'the label is missing' in entry['problem']
  assert report['splits']['all']['classes'] == {'a': 1}


def test_arrays_and_label_vectors_count_too(tmp_path, capsys):
  images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
  images[2] = images[0]
  vectors = np.float32([[1, 1], [0, 1], [1, 1]])
  path = tmp_path / 'a.npz'
  arrays = dict(train_images=images, train_labels=vectors)
  # The same bytes, and no duplicates.
  arrays |= dict(test_images=images.reshape(3, 5, 4), test_labels=vectors)
  np.savez(path, **arrays)
  report = _report(capsys, f"arrays(path='{path}')", '--split=train,test')
  train = report['splits']['train']
  assert train['classes'] == {'0': 2, '1': 3}
  assert train['formats'] == {'array': 3}
  splits = [group['splits'] for group in report['duplicates']]
  assert sorted(splits) == [['test'] * 2, ['train'] * 2]


def test_the_table_shows_the_fewest_and_most_of_many_classes(tmp_path, capsys):
  labels = [c for c in range(60) for _ in range(c + 1)]
  images = np.zeros((len(labels), 1, 1), np.uint8)
  path = tmp_path / 'a.npz'
  np.savez(path, train_images=images, train_labels=labels)
  assert preflight.main([f"arrays(path='{path}')"]) == 0
  rows = [line.split() for line in capsys.readouterr().out.splitlines()]
  for c in (0, 19, 40, 59):
    assert [str(c), str(c + 1)] in rows
  assert ['20', '21'] not in rows
  assert ['...', '20', 'more', '...'] in rows


def test_the_ops_of_a_recipe_can_be_checked(folder, capsys):
  argv = [f'folder:{folder}', '--ops=decode|central_crop(8)']
  report = _report(capsys, *argv, code=1)
  (entry,) = report['splits']['train']['broken']
  assert entry['name'].endswith('2.png')  # 30 x 7
  assert preflight.main([f'folder:{folder}', '--ops=dekode']) == 2
  assert "'dekode'" in capsys.readouterr().err


def test_a_bar_is_drawn_on_a_terminal(folder, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  assert preflight.main([f'folder:{folder}']) == 0
  assert '6/6' in capsys.readouterr().err
