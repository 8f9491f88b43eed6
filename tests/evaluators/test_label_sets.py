"""ImageNet's test sets: which rows count, and which answers are right.

The only pixel of a test image is the class that the model answers with; the
second best answer is the next class.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.data import label_sets
from vit_jax.data.sources import relabelled
from vit_jax.errors import UserError
from vit_jax.evaluators import classification
from vit_jax.parallel import mesh as mesh_lib

SYNSETS = list(label_sets.synsets())


def predict(params, batch):
  answer_B = batch['image'][:, 0, 0, 0].astype(jnp.int32)
  first = jax.nn.one_hot(answer_B, 1000)
  return {'logits': params * (2 * first + jax.nn.one_hot(answer_B + 1, 1000))}


@pytest.fixture
def folder(tmp_path):
  """Returns a function that writes images by the name of their class."""

  def write(images, *, size=1, names=None):
    for name, answers in images.items():
      (tmp_path / 'images' / name).mkdir(parents=True)
      for i, answer in enumerate(answers):
        file = f'{i}.png' if names is None else names[name][i]
        pixels = np.full((size, size, 3), answer, np.uint8)
        pixels[0] = pixels[-1] = pixels[:, 0] = pixels[:, -1] = (
          answer if size == 1 else 255
        )
        Image.fromarray(pixels).save(
          tmp_path / 'images' / name / file, format='PNG'
        )
    return dict(
      name='image_folder', split='all', data_dir=str(tmp_path / 'images')
    )

  return write


def evaluate(data, labels, **options):
  mesh = mesh_lib.make_mesh()
  options = dict(ops='decode', batch_size=8, num_threads=0) | options
  evaluator = classification.Evaluator(
    predict, mesh, data=data, labels=labels, **options
  )
  assert evaluator.num_classes == 1000
  params = jax.device_put(jnp.float32(1), mesh_lib.replicated(mesh))
  with jax.transfer_guard('disallow'):
    return evaluator.run(params)


def test_the_synsets_are_sorted_and_the_subsets_have_200_classes():
  assert SYNSETS == sorted(SYNSETS) and len(SYNSETS) == 1000
  found = {}
  for name in ('imagenet-a', 'imagenet-r'):
    scored = label_sets.find(name).scored
    assert len(scored) == 200 and list(scored) == sorted(scored)
    found[name] = scored
  # The first and last of `thousand_k_to_200` and of `imagenet_r_wnids`.
  assert found['imagenet-a'][:8] == (6, 11, 13, 15, 17, 22, 23, 27)
  assert found['imagenet-a'][-5:] == (981, 984, 986, 987, 988)
  first = [SYNSETS[i] for i in found['imagenet-r'][:4]]
  assert first == ['n01443537', 'n01484850', 'n01494475', 'n01498041']
  assert len({*found['imagenet-a']} & {*found['imagenet-r']}) == 86


def test_folders_of_some_classes_are_those_of_the_model(folder):
  # Three images of class 6, one of class 11; one answer is wrong.
  data = folder({SYNSETS[11]: [11], SYNSETS[6]: [6, 6, 100]})
  for labels in ('imagenet', 'imagenet-sketch'):
    found = evaluate(data, labels)
    assert found['num_examples'] == 4 and found['top1'] == 3 / 4


def test_folders_of_other_names_are_an_error(folder):
  data = folder({'cat': [1], SYNSETS[6]: [6]})
  with pytest.raises(UserError, match=r"1 of the 2 classes .* as 'cat'"):
    evaluate(data, 'imagenet')


def test_answers_of_a_subset_are_taken_among_its_classes(folder):
  # Classes 6, 11 and 13 are in ImageNet-A; 10 and 12 are not. The answer 10
  # has 11 as its second best, 12 has 13, and 5 has 6.
  images = {SYNSETS[11]: [10, 11, 12], SYNSETS[6]: [5]}
  data = folder(images)
  found = evaluate(data, 'imagenet-a')
  assert found['num_examples'] == 4 and found['top1'] == 3 / 4
  assert evaluate(data, 'imagenet')['top1'] == 1 / 4
  # The losses are those of 200 classes with one logit of 1 or 2.
  one = np.log(199 + np.e)
  losses = [one - 1, np.log(199 + np.e**2) - 2, one, one - 1]
  assert found['loss'] == pytest.approx(np.mean(losses), rel=1e-5)


def test_images_of_classes_outside_of_the_subset_do_not_count(folder):
  data = folder({SYNSETS[10]: [10, 10], SYNSETS[11]: [11]})
  found = evaluate(data, 'imagenet-a')
  assert (found['num_examples'], found['num_unlabelled']) == (1, 2)
  assert found['top1'] == 1


def test_folders_of_imagenet_v2_are_numbers(folder):
  # Sorted as text, 10 would be before 2.
  data = folder({'2': [2], '10': [10, 2], '100': [100]})
  found = evaluate(data, 'imagenet-v2')
  assert found['num_examples'] == 4 and found['top1'] == 3 / 4


def test_real_labels_go_by_the_number_of_the_image(folder, tmp_path):
  labels = [[] for _ in range(50_000)]
  labels[2], labels[6], labels[49_999] = [7, 9], [20], [31]
  path = tmp_path / 'real.json'
  path.write_text(json.dumps(labels))
  name = 'ILSVRC2012_val_{:08d}.JPEG'.format
  data = folder(
    {'a': [9, 50, 30], 'b': [5]},
    names={'a': [name(3), name(7), name(50_000)], 'b': [name(1)]},
  )
  found = evaluate(data, f'real:{path}')
  # 9 is one of the two right classes, 50 is wrong, 31 is the second best of
  # 30, and image 1 has no label.
  assert found['num_examples'] == 3 and found['num_unlabelled'] == 1
  assert (found['top1'], found['top5']) == (1 / 3, 2 / 3)


def test_files_are_known_by_their_names_wherever_they_are():
  name = 'ILSVRC2012_val_00000293.JPEG'
  for words in (
    name,
    f'/data/val/n01440764/{name}',
    f'/data/val/00000-of-00012.array_record[3] (/data/val/n01440764/{name})',
    f'val.tar: {name}',
  ):
    assert label_sets.image_number(words) == 292
  for words in ('ILSVRC2012_val_00000000.JPEG', 'val_00000293.JPEG', ''):
    assert label_sets.image_number(words) is None


def test_real_labels_need_the_names_of_the_validation_set(folder, tmp_path):
  path = tmp_path / 'real.json'
  path.write_text(json.dumps([[0]] * 50_000))
  data = folder({'a': [9]}, names={'a': ['ILSVRC2012_val_00050001.JPEG']})
  with pytest.raises(UserError, match='is no file of ImageNet'):
    evaluate(data, f'real:{path}')
  path.write_text(json.dumps([[0]] * 49_999))
  with pytest.raises(UserError, match=r'50,000 lists .* a list of 49,999'):
    evaluate(data, f'real:{path}')
  path.write_text(json.dumps([[1000]] * 50_000))
  with pytest.raises(UserError, match='class ids, 0 to 999'):
    evaluate(data, f'real:{path}')


class Lists:
  """Labels as TFDS has them in imagenet2012_real."""

  class_names = None
  num_classes = 1000
  LABELS = ([3], [], [4, 5])

  def __init__(self, split):
    pass

  def __len__(self):
    return 3

  def __getitem__(self, index):
    image = np.full((1, 1, 3), 4, np.uint8)
    return {'image': image, 'label': np.array(self.LABELS[index], np.int64)}

  def describe(self, index):
    return str(index)


def test_real_labels_may_be_lists_of_the_source(tmp_path, monkeypatch):
  (tmp_path / 'lists.py').write_text(
    'from tests.evaluators.test_label_sets import Lists as Source'
  )
  monkeypatch.syspath_prepend(tmp_path)
  found = evaluate(dict(name='lists', split='x'), 'real', ops='')
  assert (found['num_examples'], found['num_unlabelled']) == (2, 1)
  assert found['top1'] == 1 / 2
  data = dict(name='digits', split='test[:3]')
  with pytest.raises(UserError, match='expects lists of class ids'):
    evaluate(data, 'real', ops='')


def test_objectnet_goes_by_its_own_files(folder, tmp_path):
  write_mappings(tmp_path)
  # A chair is one of two classes, a box none; the border is cut off.
  data = folder({'a_box': [1], 'chair': [44, 9, 9]}, size=6)
  found = evaluate(data, f'objectnet:{tmp_path}')
  assert (found['num_examples'], found['num_unlabelled']) == (3, 1)
  assert found['top1'] == 2 / 3
  source = relabelled.Source(
    'all', data=data, labels=f'objectnet:{tmp_path / "mappings"}'
  )
  assert source[0]['image'].shape == (2, 2, 3)
  assert set(source[0]['image'].ravel()) == {1}
  assert np.flatnonzero(source[1]['label']).tolist() == [9, 43]


def write_mappings(folder):
  """Writes the four files; line 1 of the names is class 9, line 2 class 43."""
  mappings = folder / 'mappings'
  mappings.mkdir()
  for file, value in (
    ('folder_to_objectnet_label', {'a_box': 'A box', 'chair': 'Chair'}),
    ('objectnet_to_imagenet_1k', {'Chair': 'folding chair; throne, seat'}),
    ('pytorch_to_imagenet_2012_id', {'9': 0, '43': 1}),
  ):
    (mappings / f'{file}.json').write_text(json.dumps(value))
  names = 'folding chair\nthrone, seat\n'
  (mappings / 'imagenet_to_label_2012_v2').write_text(names)


def test_files_of_objectnet_that_do_not_fit_are_named(folder, tmp_path):
  write_mappings(tmp_path)
  path = tmp_path / 'mappings' / 'objectnet_to_imagenet_1k.json'
  path.write_text(json.dumps({'Chair': 'stool'}))
  with pytest.raises(UserError, match=r"do not fit together .*'stool'"):
    label_sets.find(f'objectnet:{tmp_path}')
  with pytest.raises(UserError, match=r'there is no|No such file'):
    label_sets.find(f'objectnet:{tmp_path / "none"}')


def test_mistyped_label_sets_are_named():
  with pytest.raises(UserError, match="did you mean 'imagenet-a'"):
    label_sets.find('imagenet_a')
  with pytest.raises(UserError, match='objectnet:/path'):
    label_sets.find('objectnet')


def test_data_without_names_cannot_be_a_subset():
  data = dict(name='synthetic', split='test', num_classes=7)
  with pytest.raises(UserError, match='has 7 classes without names'):
    relabelled.Source('test', data=data, labels='imagenet-a')
