"""Images in one folder a class."""

import os

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import ops_language
from vit_jax.data.sources import image_folder
from vit_jax.errors import UserError


def _write(path, value=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((5, 6, 3), value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
  for i, name in enumerate(['cat', 'dog', 'eel']):
    for k in range(3):
      _write(tmp_path / 'train' / name / f'{k}.png', 10 * i + k)
  _write(tmp_path / 'test' / 'eel' / '0.png', 99)
  return tmp_path


def test_examples_are_the_files_in_the_order_of_their_paths(root):
  source = image_folder.Source('train', data_dir=str(root))
  paths = sorted(str(p) for p in (root / 'train').rglob('*.png'))
  assert [source.describe(i) for i in range(len(source))] == paths
  assert source.class_names == ['cat', 'dog', 'eel']
  example = source[4]
  with open(paths[4], 'rb') as file:
    assert example['image'] == file.read()
  assert example['label'] == 1


def test_a_class_that_the_test_split_lacks_shifts_no_class_id(root):
  source = image_folder.Source('test', data_dir=str(root))
  assert len(source) == 1
  assert source[0]['label'] == 2
  assert source.num_classes == 3


def test_a_class_that_training_lacks_is_named(root):
  _write(root / 'test' / 'yak' / '0.png')
  _write(root / 'test' / 'fox' / '0.png')
  with pytest.raises(
    UserError, match=r'2 classes that .*train has not: fox, y'
  ):
    image_folder.Source('test', data_dir=str(root))


def test_the_classes_can_come_from_another_split(root):
  source = image_folder.Source('test', data_dir=str(root), classes_from='test')
  assert (source.num_classes, source[0]['label']) == (1, 0)


def test_every_suffix_is_read_in_any_case_and_at_any_depth(tmp_path):
  names = ['a.jpg', 'b.jpeg', 'c.JPEG', 'd.png', 'e.webp', 'f.tif', 'g/h/i.GIF']
  for i, name in enumerate(names):
    _write(tmp_path / 'train' / 'x' / name, 40 * i)
  source = image_folder.Source('train', data_dir=str(tmp_path))
  found = [os.path.relpath(source.describe(i), tmp_path / 'train' / 'x')
           for i in range(len(source))]  # fmt: skip
  assert found == sorted(names)
  decode = ops_language.parse('decode')
  rng = np.random.default_rng(0)
  values = {
    name: decode(source[i], rng)['image'].mean() for i, name in enumerate(found)
  }
  for i, name in enumerate(names):
    assert abs(values[name] - 40 * i) <= 2, name  # lossy formats


def test_hidden_and_foreign_files_are_ignored(root, monkeypatch):
  warnings = []
  monkeypatch.setattr(
    image_folder.logging, 'warning', lambda text, *args: warnings.append(args)
  )
  for name in ['.hidden.png', '._0.png', 'notes.txt', '.DS_Store']:
    (root / 'train' / 'cat' / name).write_bytes(b'')
  _write(root / 'train' / '.cache' / 'x.png')
  _write(root / 'train' / 'cat' / '.trash' / 'x.png')
  (root / 'train' / 'README.md').write_text('')
  source = image_folder.Source('train', data_dir=str(root))
  assert (len(source), source.num_classes) == (9, 3)
  (root / 'train' / 'dog' / 'a.HEIC').write_bytes(b'')
  for _ in range(2):
    image_folder.Source('train', data_dir=str(root))
  assert [words.partition(' file')[0] for (words,) in warnings] == [
    f'{root}/train: 1',  # notes.txt
    f'{root}/train: 2',
  ]
  assert 'left out: 1 .txt, 1 .HEIC; images end in .jpg' in warnings[1][0]


def test_names_that_are_not_utf_8_are_read_and_shown_escaped(root):
  name = os.fsdecode(b'fl\xfcgel')
  _write(root / 'train' / name / f'{name}.png', 7)
  source = image_folder.Source('train', data_dir=str(root))
  assert source.class_names == ['cat', 'dog', 'eel', r'fl\udcfcgel']
  assert source.describe(9) == rf'{root}/train/fl\udcfcgel/fl\udcfcgel.png'
  with open(root / 'train' / name / f'{name}.png', 'rb') as file:
    assert source[9] == {'image': file.read(), 'label': 3}


def test_a_pipe_is_a_bad_image_and_is_not_waited_for(root):
  os.mkfifo(root / 'train' / 'cat' / 'zzz.png')
  source = image_folder.Source('train', data_dir=str(root))
  (index,) = [
    i for i in range(len(source)) if source.describe(i).endswith('zzz.png')
  ]
  with pytest.raises(UserError, match='not a regular file'):
    source[index]


def test_a_link_to_a_parent_folder_adds_nothing(root):
  (root / 'train' / 'cat' / 'loop').symlink_to(root / 'train')
  source = image_folder.Source('train', data_dir=str(root))
  assert len(source) == 9


def test_linked_classes_are_followed(root, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp('elsewhere')
  _write(elsewhere / 'gnu' / '0.png')
  (root / 'train' / 'gnu').symlink_to(elsewhere / 'gnu')
  source = image_folder.Source('train', data_dir=str(root))
  assert (len(source), source.num_classes) == (10, 4)


def test_errors_of_missing_folders_name_the_expected_ones(root):
  with pytest.raises(UserError, match=r'no folder .*nowhere; expected <dat'):
    image_folder.Source('train', data_dir=str(root / 'nowhere'))
  with pytest.raises(UserError, match='has the folders: test, train'):
    image_folder.Source('val', data_dir=str(root))


def test_a_split_without_class_folders_lists_its_contents(tmp_path):
  _write(tmp_path / 'train' / '0.png')
  with pytest.raises(UserError, match=r'no class folders in .*has 1 \.png'):
    image_folder.Source('train', data_dir=str(tmp_path))


def test_a_training_class_without_images_is_named(root):
  (root / 'train' / 'fox').mkdir()
  (root / 'train' / 'fox' / 'a.svg').write_bytes(b'')
  with pytest.raises(UserError, match=r'1 of the 4 class .*: fox; .*1 \.svg'):
    image_folder.Source('train', data_dir=str(root))


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
  real = os.scandir

  def scandir(path):
    if str(path).endswith('dog'):
      raise PermissionError(13, 'Permission denied', str(path))
    return real(path)

  monkeypatch.setattr(os, 'scandir', scandir)
  with pytest.raises(UserError, match=r'dog cannot be listed: .*Permission'):
    image_folder.Source('train', data_dir=str(root))


def test_a_folder_that_cannot_be_entered_is_named(root, monkeypatch):
  def refuse(real, part):
    def function(path, *args, **kwargs):
      if str(path).startswith(f'{root}{part}'):
        raise PermissionError(13, 'Permission denied', str(path))
      return real(path, *args, **kwargs)

    return function

  monkeypatch.setattr(os, 'stat', refuse(os.stat, '/'))
  monkeypatch.setattr(os, 'scandir', refuse(os.scandir, ''))
  with pytest.raises(UserError, match=f'{root} cannot be listed: .*Permission'):
    image_folder.Source('train', data_dir=str(root))


def test_slices_share_nothing_and_keep_the_class_ids(root):
  parts = [image_folder.Source(f'train[{s}]', data_dir=str(root))
           for s in (':60%', '60%:')]  # fmt: skip
  paths = [p.describe(i) for p in parts for i in range(len(p))]
  assert [len(p) for p in parts] == [5, 4]
  assert len(set(paths)) == 9
  for part in parts:
    for i in range(len(part)):
      name = part.describe(i).split(os.sep)[-2]
      assert part.class_names[part[i]['label']] == name


@pytest.fixture
def flat(tmp_path):
  for name, count in (('cat', 20), ('dog', 7), ('eel', 1)):
    for k in range(count):
      _write(tmp_path / name / f'{k}.png', k)
  return tmp_path


def _paths(split, root, **keys):
  source = image_folder.Source(split, data_dir=str(root), **keys)
  return {source.describe(i): source[i]['label'] for i in range(len(source))}


def test_classes_without_splits_hold_out_a_part_of_each(flat):
  train, val, both = (_paths(s, flat) for s in ('train', 'val', 'all'))
  assert train | val == both and not train.keys() & val.keys()
  count = [list(val.values()).count(label) for label in range(3)]
  # A tenth, but at least one of two or more.
  assert count == [2, 1, 0] and len(both) == 28
  for path, label in both.items():
    assert ['cat', 'dog', 'eel'][label] in path
  assert _paths('val', flat, val_fraction=0.5).keys() > val.keys()
  # Slices work as in any other split.
  halves = [_paths(f'train[{s}]', flat) for s in (':50%', '50%:')]
  assert halves[0] | halves[1] == train


def test_held_out_images_depend_on_names_and_seed_alone(flat):
  first = _paths('val', flat)
  assert _paths('val', flat) == first != _paths('val', flat, split_seed=1)
  names = sorted(path[len(str(flat)) :] for path in first)
  assert names == ['/cat/16.png', '/cat/19.png', '/dog/1.png']
  # Of other classes nothing changes.
  for k in range(30):
    _write(flat / 'yak' / f'{k}.png')
  assert first.keys() < _paths('val', flat).keys()


def test_holding_out_is_said_once(flat, monkeypatch):
  said = []
  monkeypatch.setattr(
    image_folder.logging, 'warning', lambda text, *args: said.append(*args)
  )
  for split in ('train', 'val'):
    image_folder.Source(split, data_dir=str(flat))
  assert said == [
    f'{flat} has no train/<class>/: of each of its 3 classes (cat, dog, eel) '
    '90% of the images are for training, 10% for validation (seed 0)'
  ]


def test_a_class_may_have_the_name_of_a_split(tmp_path):
  for name in ('bus', 'train'):
    for k in range(3):
      _write(tmp_path / name / f'{k}.png')
  source = image_folder.Source('train', data_dir=str(tmp_path))
  assert source.class_names == ['bus', 'train'] and len(source) == 4


def test_folders_with_other_names_are_splits_when_they_are_asked_for(tmp_path):
  for name in ('seen/cat', 'seen/dog', 'unseen/dog'):
    _write(tmp_path / name / '0.png')
  source = image_folder.Source(
    'unseen', data_dir=str(tmp_path), classes_from='seen'
  )
  assert source.class_names == ['cat', 'dog'] and source[0]['label'] == 1


def test_a_training_folder_with_another_name_names_the_classes(tmp_path):
  for name in ('Training/cat', 'Training/dog', 'Testing/dog'):
    _write(tmp_path / name / '0.png')
  source = image_folder.Source('Testing', data_dir=str(tmp_path))
  assert source.class_names == ['cat', 'dog'] and source[0]['label'] == 1


def test_a_wrong_split_of_classes_without_splits_is_an_error(flat):
  with pytest.raises(
    UserError, match=r"no folder 'test' .*: cat, dog, eel\. I"
  ):
    image_folder.Source('test', data_dir=str(flat))
  with pytest.raises(UserError, match='val_fraction is between 0 and 1; got 1'):
    image_folder.Source('val', data_dir=str(flat), val_fraction=1)
