"""Scores of classifiers with the heads and the preprocessing that they have."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import sklearn.datasets
import sklearn.metrics
from PIL import Image

import vit_jax
from tests.data.sources.test_tfds import data_dir  # noqa: F401
from tests.training import tiny_runs
from vit_jax.commands import evaluate, prepare
from vit_jax.data import label_sets, open_source
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog, published, published_scores
from vit_jax.pretrained.formats import vit_jax as ours
from vit_jax.training import score, train

NAMES = [f'digit {i}' for i in range(10)]
OPS = "decode|resize_small(18, method='bicubic')|central_crop(16)"


def write_images(folder, names, count=60):
  """Writes digits with sides of 20 and 24 pixels, and returns their labels."""
  digits, labels, files = sklearn.datasets.load_digits(), [], []
  for i in range(count):
    label = int(digits.target[i])
    if names[label] is not None:
      path = folder / names[label] / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      image = Image.fromarray((digits.images[i] * 15.9).astype(np.uint8))
      image.resize((20, 24)).save(path)
      files.append(path)
      labels.append(label)
  return files, np.array(labels)


@pytest.fixture
def weights(tiny_weights, tmp_path):
  """Returns the path of a file with a classifier of digits."""
  found = dataclasses.replace(
    tiny_weights(num_classes=10),
    class_names=NAMES,
    preprocess=dict(
      image_size=(16, 16), ops=OPS, device_ops="normalize('imagenet')"
    ),
  )
  path = tmp_path / 'w.safetensors'
  ours.write(found, path)
  return path


def answers_of(path, files):
  """Returns the best class of each file, by what loads models for use."""
  model = vit_jax.load(path)
  return np.array([model(str(file))['logits'].argmax() for file in files])


def test_the_command_scores_a_file_on_a_folder(weights, tmp_path, capsys):
  # Only val/: the classes are its folders.
  files, labels = write_images(tmp_path / 'data' / 'validation', NAMES)
  output = tmp_path / 'results.json'
  options = ['--per_class', f'--output={output}']
  argv = [f'--weights={weights}', f'--data=folder:{tmp_path / "data"}']
  assert evaluate.main([*argv, *options]) == 0
  found = json.loads(output.read_text())
  right = answers_of(weights, files) == labels
  assert 0 < right.mean() < 1
  assert found['metrics']['top1'] == pytest.approx(right.mean(), abs=1e-12)
  assert found['metrics']['num_examples'] == 60
  assert found['preprocess']['ops'] == OPS
  assert found['split'] == 'validation' and 'published' not in found
  text = capsys.readouterr().out
  assert f'{100 * right.mean():.3f} %' in text and 'published' not in text
  assert OPS in text and 'digit 7' in text


def test_a_report_has_intervals(weights, tmp_path, capsys):
  # Two of the classes alone: they go by their names.
  names = [x if i in (3, 7) else None for i, x in enumerate(NAMES)]
  files, labels = write_images(tmp_path / 'data' / 'val', names)
  output = tmp_path / 'results.json'
  argv = [f'--weights={weights}', f'--data={tmp_path / "data"}']
  options = [f'--output={output}', '--report', '--per_class']
  assert evaluate.main([*argv, *options]) == 0
  found = json.loads(output.read_text())['report']
  answers = answers_of(weights, files)
  expected = sklearn.metrics.f1_score(labels, answers, average='macro')
  assert found['f1_macro'] == pytest.approx(expected, abs=1e-12)
  assert found['f1_macro_low'] < expected < found['f1_macro_high']
  recall = (answers[labels == 3] == 3).mean()
  assert found['recall/digit 3'] == pytest.approx(recall, abs=1e-12)
  text = capsys.readouterr().out
  low, high = found['f1_macro_low'], found['f1_macro_high']
  assert f'{expected:.4f}   {low:.4f} to {high:.4f}' in text
  with pytest.raises(UserError, match='leave out --report or --labels'):
    score.score(weights, 'x', report=True, labels='imagenet-a')


def test_records_have_the_same_score_as_the_folder(weights, tmp_path):
  write_images(tmp_path / 'data' / 'val', NAMES)
  folder = f'folder:{tmp_path / "data"}'
  argv = [f"image_folder(data_dir='{tmp_path / 'data'}', classes_from='val')"]
  target = tmp_path / 'records'
  assert prepare.main([*argv, str(target), '--split=val']) == 0
  expected = score.score(weights, folder)
  for data in (f'records:{target}', str(target)):
    assert score.score(weights, data).metrics == expected.metrics


def test_some_classes_go_by_their_names(weights, tmp_path):
  names = [x if i in (3, 5, 8) else None for i, x in enumerate(NAMES)]
  files, labels = write_images(tmp_path / 'data' / 'test', names)
  log = []
  found = score.score(weights, str(tmp_path / 'data'), on_log=log.append)
  right = answers_of(weights, files) == labels
  assert found.metrics['top1'] == pytest.approx(right.mean(), abs=1e-12)
  assert found.metrics['num_examples'] == len(files) < 60
  assert any('3 of the 10 classes' in line for line in log)


def test_classes_with_other_names_are_compared_by_number(weights, tmp_path):
  names = [f'd{i}' for i in range(10)]
  files, labels = write_images(tmp_path / 'data' / 'test', names)
  log = []
  found = score.score(weights, str(tmp_path / 'data'), on_log=log.append)
  right = answers_of(weights, files) == labels
  assert found.metrics['top1'] == pytest.approx(right.mean(), abs=1e-12)
  assert any('compared by number' in line for line in log)
  (tmp_path / 'data' / 'test' / names[0]).rename(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match=r'has 9 classes .* the weights 10'):
    score.score(weights, str(tmp_path / 'data'))


@pytest.fixture
def as_published(tiny_weights, monkeypatch):
  """Makes the name deit-B/16 load a tiny model with 1,000 classes."""
  load = catalog.load

  def loaded(source, **options):
    if source != 'deit-B/16':
      return load(source, **options)
    found = tiny_weights(num_classes=1000)
    return dataclasses.replace(
      found, source=dict(name=source), class_names=None
    )

  monkeypatch.setattr(score.catalog, 'load', loaded)


def test_the_published_accuracy_is_beside_the_measured_one(
  as_published, tmp_path, capsys
):
  synsets = list(label_sets.synsets())
  write_images(tmp_path / 'val', [synsets[i] for i in range(6, 16)])
  argv = ['--weights=deit-B/16', f'--data={tmp_path}']
  assert evaluate.main(argv) == 0
  text = capsys.readouterr().out
  assert '81.846 %' in text and '95.594 %' in text and '-81.846 %' in text
  assert 'facebookresearch/deit, on 50,000 images (here 60)' in text
  # It is not the accuracy on other test sets.
  assert evaluate.main([*argv, '--labels=imagenet-a']) == 0
  text = capsys.readouterr().out
  assert '81.846' not in text and 'deit-B/16 on imagenet-a' in text
  assert 'without a label, left out' in text


def test_published_accuracies_are_of_classifiers_that_are_listed():
  for name, found in published_scores.SCORES.items():
    entry = published.PUBLISHED[name]
    assert entry.model['num_classes'] == 1000
    assert 70 < found.top1 < (found.top5 or 100) <= 100
  assert published_scores.SCORES['deit-B/16'].top1 == 81.846
  # At their own size, with their own crop.
  large = published.PUBLISHED['deit-B/16-384'].preprocess['ops']
  assert 'resize_small(438' in large and 'central_crop(384' in large
  large = published.PUBLISHED['deit3-L/16-384-1k'].preprocess['ops']
  assert 'resize_small(384' in large and "method='bicubic'" in large


def test_a_preset_prepares_images_of_the_size_of_the_weights(weights, tmp_path):
  write_images(tmp_path / 'data' / 'val', NAMES, count=30)
  data = str(tmp_path / 'data')
  found = score.score(weights, data, preset='deit3')
  assert found.preprocess['ops'].startswith(
    "decode|resize_small(16, method='bicubic'"
  )
  assert found.metrics != score.score(weights, data).metrics
  ours = score.score(weights, data, preset='deit3', ops=OPS)
  assert ours.metrics == score.score(weights, data).metrics
  with pytest.raises(UserError, match='unknown family'):
    score.score(weights, data, preset='diet')


def test_images_of_another_size_are_prepared_in_the_same_way(
  weights, tmp_path, capsys
):
  files, labels = write_images(tmp_path / 'data' / 'val', NAMES)
  data, output = str(tmp_path / 'data'), tmp_path / 'results.json'
  argv = [f'--weights={weights}', '--image_size=24', f'--output={output}']
  assert evaluate.main([*argv, f'--data={data}']) == 0
  found = json.loads(output.read_text())
  ops = "decode|resize_small(27, method='bicubic')|central_crop(24)"
  assert found['preprocess']['ops'] == ops
  model = vit_jax.load(weights, image_size=24)
  answers = [model(str(file))['logits'].argmax() for file in files]
  right = np.array(answers) == labels
  assert found['metrics']['top1'] == pytest.approx(right.mean(), abs=1e-12)
  found = score.score(weights, data, preset='deit', image_size=(24, 24))
  assert 'resize_small(27' in found.preprocess['ops']  # int(24 / 0.875)
  # Few-shot, k-NN and probes, too, where their sections have no ops.
  images = dict(name='image_folder', data_dir=data, classes_from='val')
  knn = dict(name='knn', k=(1,), batch_size=8)
  for key, split in (('data_train', 'val[:30]'), ('data_test', 'val[30:]')):
    knn[key] = dict(images, split=split)
  lines = []
  vit_jax.evaluate(weights, dict(knn=knn), image_size=24, on_log=lines.append)
  assert any(ops in line for line in lines)


def test_splits_of_folders(tmp_path):
  section = score._section
  write_images(tmp_path / 'flat', NAMES, count=20)
  flat = str(tmp_path / 'flat')
  plain = dict(is_run=False, has_labels=False)
  assert section(flat, None, **plain)['split'] == 'all'
  assert section(flat, 'val', **plain)['split'] == 'val'
  with pytest.raises(UserError, match='--split=val for those that training'):
    section(flat, None, is_run=True, has_labels=False)
  write_images(tmp_path / 'both' / 'train', NAMES, count=20)
  with pytest.raises(UserError, match='no split val or test; it has: train'):
    section(str(tmp_path / 'both'), None, **plain)
  write_images(tmp_path / 'both' / 'testing', NAMES, count=20)
  found = section(str(tmp_path / 'both'), None, **plain)
  assert found['split'] == 'testing' and 'classes_from' not in found
  with pytest.raises(UserError, match='there is no such folder'):
    section(f'folder:{tmp_path / "missing"}', None, **plain)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='no folders of images; expected val/'):
    section(f'folder:{tmp_path / "empty"}', None, **plain)
  with pytest.raises(UserError, match='needs --split'):
    section('imagenet2012', None, **plain)
  found = section('imagenet2012', 'validation[:1%]', **plain)
  assert found['split'] == 'validation[:1%]'


def test_a_run_is_scored_with_its_loss_and_step(tmp_path):
  changes = dict(objective=dict(name='supervised', loss='sigmoid'))
  val = dict(name='classification', data=tiny_runs.TEST, ops='')
  val |= dict(loss='sigmoid', batch_size=16)
  config = tiny_runs.plain(evals=dict(val=val), **changes)
  expected = train.train(tmp_path / 'run', **config)
  data = 'synthetic(image_size=16, num_classes=4, num_examples=21)'
  found = score.score(tmp_path / 'run', data, split='test')
  assert found.source['step'] == 2 and found.name == 'test'
  for name, value in found.metrics.items():
    assert value == pytest.approx(expected[f'val/{name}'], rel=1e-5)


def test_a_dataset_of_tfds_is_scored(tiny_weights, data_dir):  # noqa: F811
  names = ['cat', 'dog', 'eel']
  weights = dataclasses.replace(tiny_weights(num_classes=3), class_names=names)
  path = pathlib.Path(data_dir) / 'w.safetensors'
  ours.write(weights, path)
  data = f"tfds(dataset='tiny_animals', data_dir={data_dir!r})"
  found = score.score(path, data, split='test')
  source = open_source.open_text(data, 'test')
  model = vit_jax.load(path)
  right = [
    model(source[i]['image'])['logits'].argmax() == source[i]['label']
    for i in range(5)
  ]
  assert found.metrics['top1'] == pytest.approx(np.mean(right), abs=1e-12)
  assert found.metrics['num_examples'] == 5


def test_features_have_no_score(tiny_weights, tmp_path):
  path = tmp_path / 'w.safetensors'
  ours.write(tiny_weights(num_classes=None), path)
  with pytest.raises(UserError, match='has no head, and a score needs one'):
    score.score(path, 'synthetic()', split='test')


def test_options_of_scores_need_data(capsys):
  for options, words in (
    (['--split=val'], '--split needs --data'),
    (['--data=x', '--config=evaluate.py'], '--data and --config are two ways'),
    (['--data=x', '--evals=val'], '--data and --evals are two ways'),
  ):
    assert evaluate.main(['--weights=none', *options]) == 2
    assert words in capsys.readouterr().err
