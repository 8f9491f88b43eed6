"""ImageNet-21k, from tars that are made here."""

import io
import tarfile

import pytest
from PIL import Image

from vit_jax.commands import prepare
from vit_jax.data.sources import array_record, imagenet21k
from vit_jax.errors import UserError

_SIZES = {'n02084071': 4, 'n00004475': 1, 'n12345678': 5}


def _jpeg(wnid, i):
  file = io.BytesIO()
  Image.new('RGB', (9, 7), (int(wnid[-2:]), i, 0)).save(file, 'JPEG')
  return file.getvalue()


@pytest.fixture
def folder(tmp_path):
  """The tars of three classes, written in no order, beside other files."""
  (tmp_path / 'w21').mkdir()
  for wnid, num in _SIZES.items():
    with tarfile.open(tmp_path / 'w21' / f'{wnid}.tar', 'w') as tar:
      for i in range(num):
        info = tarfile.TarInfo(f'{wnid}_{i}.JPEG')
        info.size = len(_jpeg(wnid, i))
        tar.addfile(info, io.BytesIO(_jpeg(wnid, i)))
  (tmp_path / 'w21' / 'notes.tar').write_bytes(b'no class')
  return tmp_path


def _source(folder, split='full'):
  return imagenet21k.Source(split, data_dir=str(folder / 'w21'))


def test_class_ids_are_the_places_of_the_sorted_wordnet_ids(folder):
  source = _source(folder)
  assert source.class_names == sorted(_SIZES)
  assert (len(source), source.num_classes) == (10, 3)
  labels = [source[i]['label'] for i in range(10)]
  assert labels == [0] + 4 * [1] + 5 * [2]
  assert source[3] == {'image': _jpeg('n02084071', 2), 'label': 1}
  assert source.describe(3).endswith('n02084071.tar: n02084071_2.JPEG')


def test_a_tar_under_the_name_of_another_class_is_an_error(folder):
  w21 = folder / 'w21'
  (w21 / 'n12345678.tar').rename(w21 / 'n12345679.tar')
  with pytest.raises(UserError, match=r'n12345679\.tar has n12345678_0\.JPEG'):
    _source(folder)


def test_another_number_of_classes_than_published_is_reported(
  folder, monkeypatch
):
  warnings = []
  monkeypatch.setattr(
    imagenet21k.logging, 'warning', lambda *args: warnings.append(args)
  )
  _source(folder)
  monkeypatch.setattr(imagenet21k, '_NUM_CLASSES', (3,))
  _source(folder)
  ((_, path, num),) = warnings
  assert (str(path), num) == (f'{folder}/w21', '3')


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
  def refuse(path):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(imagenet21k.os, 'listdir', refuse)
  with pytest.raises(UserError, match=r'w21 cannot be listed: .*Permission'):
    _source(folder)


def test_slices_hold_images_out(folder):
  parts = [_source(folder, f'full[{s}]') for s in (':3', '3:')]
  names = [p.describe(i) for p in parts for i in range(len(p))]
  assert [len(p) for p in parts] == [3, 7]
  assert len(set(names)) == 10
  for part in parts:
    for i in range(len(part)):
      wnid = part.class_names[part[i]['label']]
      assert wnid in part.describe(i)


def test_it_can_be_prepared(folder):
  argv = [f"imagenet21k(data_dir='{folder}/w21')", f'{folder}/out']
  assert prepare.main([*argv, '--split=full']) == 0
  prepared = array_record.Source('full', data_dir=f'{folder}/out')
  source = _source(folder)
  assert prepared.class_names == source.class_names
  assert [prepared[i] for i in range(10)] == [source[i] for i in range(10)]


def test_the_outer_file_says_how_to_unpack_it(folder):
  path = folder / 'winter21_whole.tar.gz'
  path.write_bytes(b'\x1f\x8b')
  with pytest.raises(UserError, match=f'tar -xf {path} -C DIR'):
    imagenet21k.Source('full', data_dir=str(path))


def test_missing_and_broken_archives_are_named(folder):
  with pytest.raises(UserError, match="has the split 'full'; got 'train'"):
    _source(folder, 'train')
  with pytest.raises(UserError, match=r'holds no n########\.tar; it has: w21'):
    imagenet21k.Source('full', data_dir=str(folder))
  path = folder / 'w21' / 'n00004475.tar'
  path.write_bytes(path.read_bytes()[:600])
  with pytest.raises(UserError, match=r'n00004475\.tar is .*broken'):
    _source(folder)
  with tarfile.open(path, 'w'):
    pass
  with pytest.raises(UserError, match=r"no files in 1 tars: \['n00004475'\]"):
    _source(folder)
