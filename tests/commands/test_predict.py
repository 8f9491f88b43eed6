"""`python -m vit_jax predict` from a trained run to names in three formats."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax.commands import predict
from vit_jax.pretrained.formats import vit_jax as ours
from vit_jax.training import train

_DEVICE_OPS = 'normalize(-1, 1)'


@pytest.fixture
def weights(tiny_weights, tmp_path):
  """Returns the path of weights that know their preprocessing and classes."""
  path = tmp_path / 'tiny.safetensors'
  ours.write(tiny_weights(), path)
  return str(path)


@pytest.fixture
def photos(tmp_path):
  """Returns a folder of three images, one of them in a folder of its own."""
  _write(tmp_path / 'photos', ['a.png', 'b.jpg', 'more/c.png'])
  return tmp_path / 'photos'


def _write(folder, names):
  rng = np.random.default_rng(0)
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)


def test_a_run_knows_its_classes_and_how_it_was_evaluated(tmp_path, capsys):
  for split in ('train', 'val'):
    for name in ('cat', 'dog'):
      images = ['a.png', 'b.png', 'c.png', 'd.png']
      _write(
        tmp_path / split / name, images if split == 'train' else images[:2]
      )
  data = dict(name='image_folder', data_dir=str(tmp_path))
  results = train.train(
    str(tmp_path / 'run'),
    model=dict(name='vit', variant='mu/8', num_classes=2),
    objective=dict(name='supervised'),
    input=dict(
      data=dict(data, split='train'),
      ops='decode|random_resized_crop(16)',
      device_ops=_DEVICE_OPS,
      batch_size=8,
    ),
    optimizer=dict(name='adamw', learning_rate=0.1),
    total_steps=2,
    ema=dict(decay=0.5),
    evals=dict(
      val=dict(
        name='classification',
        data=dict(data, split='val'),
        ops='decode|resize_small(16)|central_crop(16)',
        weights='ema',
      )
    ),
  )
  capsys.readouterr()
  code = predict.main(
    [f'--weights={tmp_path / "run"}', str(tmp_path / 'val'), '--format=json']
  )
  assert code == 0
  answers = json.loads(capsys.readouterr().out)
  assert len(answers) == 4
  # The same loss: the same weights, images and preprocessing.
  loss = 0.0
  for answer in answers:
    found = {p['name']: p['probability'] for p in answer['predictions']}
    assert set(found) == {'cat', 'dog'}
    loss -= math.log(found[pathlib.Path(answer['image']).parent.name]) / 4
  assert loss == pytest.approx(results['val/loss'], rel=1e-4)


def test_a_photo_for_a_model_of_small_grey_images(
  tiny_weights, photos, tmp_path, capsys
):
  weights = tiny_weights(channels=1)
  weights.preprocess['ops'] = ''
  ours.write(weights, tmp_path / 'grey.safetensors')
  argv = [f'--weights={tmp_path / "grey.safetensors"}', str(photos)]
  assert predict.main([*argv, '--format=json']) == 0
  out, error = capsys.readouterr()
  assert len(json.loads(out)) == 3
  assert error.count('resizing images to 16x16, because') == 1


def test_formats_say_the_same(weights, photos, capsys):
  argv = [f'--weights={weights}', '--top_k=2', str(photos)]
  assert predict.main([*argv, '--format=json']) == 0
  answers = json.loads(capsys.readouterr().out)
  names = [str(photos / name) for name in ('a.png', 'b.jpg', 'more/c.png')]
  assert [answer['image'] for answer in answers] == names
  model = vit_jax.load(weights)
  for answer, found in zip(answers, model.predict(names, top_k=2), strict=True):
    ours = [p._asdict() for p in found]
    for theirs, expected in zip(answer['predictions'], ours, strict=True):
      assert theirs.pop('probability') == pytest.approx(
        expected.pop('probability'), abs=1e-5
      )
      assert theirs == expected

  assert predict.main([*argv, '--format=csv']) == 0
  rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
  assert [row['image'] for row in rows] == [n for n in names for _ in '12']
  assert [row['rank'] for row in rows] == ['1', '2'] * 3
  assert rows[0]['class'] == answers[0]['predictions'][0]['name']
  assert rows[0]['label'] == str(answers[0]['predictions'][0]['label'])

  assert predict.main(argv) == 0
  table = capsys.readouterr().out
  assert all(word in table for word in [*names, rows[0]['class'], '%'])
  assert float(rows[0]['probability']) <= 1


def test_files_and_folders_may_be_anywhere_in_the_command(
  weights, photos, capsys
):
  argv = [str(photos / 'b.jpg'), f'--weights={weights}', str(photos / 'more')]
  assert predict.main([*argv, '--format', 'json', '--batch_size=1']) == 0
  answers = json.loads(capsys.readouterr().out)
  found = [pathlib.Path(answer['image']).name for answer in answers]
  assert found == ['b.jpg', 'c.png']


def test_broken_images_are_named_counted_and_left_out(weights, photos, capsys):
  (photos / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  (photos / 'empty.jpg').touch()
  for format in ('json', 'csv', 'table'):
    argv = [f'--weights={weights}', str(photos), f'--format={format}']
    assert predict.main(argv) == 1
    out, error = capsys.readouterr()
    assert error.startswith('2 of 5 images could not be read:')
    for name in ('broken.png', 'empty.jpg'):
      assert str(photos / name) in error
      assert name not in out
    for name in ('a.png', 'b.jpg', 'c.png'):
      assert name in out


def test_files_other_than_images_are_counted(weights, photos, capsys):
  for name in ('notes.txt', 'a.heic', 'more/b.heic', 'more/.hidden'):
    (photos / name).touch()
  _write(photos, ['d.avif', 'e.jfif'])
  assert (
    predict.main([f'--weights={weights}', str(photos), '--format=csv']) == 0
  )
  out, error = capsys.readouterr()
  assert f'{photos}: 3 files are left out: 2 .heic, 1 .txt; images' in error
  names = {row['image'] for row in csv.DictReader(io.StringIO(out))}
  assert {os.path.basename(name) for name in names} == {
    *('a.png', 'b.jpg', 'c.png', 'd.avif', 'e.jfif')
  }


def test_nothing_but_broken_images(weights, tmp_path, capsys):
  (tmp_path / 'x.jpg').touch()
  for format, expected in (
    ('json', '[]'),
    ('csv', 'image,rank,label,class,probability'),
    ('table', ''),
  ):
    argv = [f'--weights={weights}', str(tmp_path / 'x.jpg')]
    assert predict.main([*argv, f'--format={format}']) == 1
    assert capsys.readouterr().out.replace('\n', '') == expected


def test_facts_missing_in_weights_can_be_given(
  tiny_weights, photos, tmp_path, capsys
):
  path = tmp_path / 'bare.safetensors'
  bare = dataclasses.replace(tiny_weights(), preprocess={}, class_names=None)
  ours.write(bare, path)
  argv = [f'--weights={path}', str(photos / 'a.png'), '--format=json']
  assert predict.main(argv) == 2
  assert "such as device_ops='" in (error := capsys.readouterr().err)
  assert "(--device_ops='normalize(-1, 1)' on the command line)" in error
  (tmp_path / 'names.txt').write_text('v\nw\nx\ny\nz\n')
  argv += ['--ops=decode|resize(16)', f'--device_ops={_DEVICE_OPS}']
  argv += [f'--class_names={tmp_path / "names.txt"}', '--loss=sigmoid']
  assert predict.main(argv) == 0
  found = json.loads(capsys.readouterr().out)[0]['predictions']
  assert sorted(p['name'] for p in found) == list('vwxyz')
  assert sum(p['probability'] for p in found) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
  ('argv', 'words'),
  [
    (['absent.jpg'], ['no file or folder absent.jpg']),
    (['/dev/zero'], ['/dev/zero is not a regular file']),
    (['.', '--weights=augreg-B/61'], ['augreg-B/16']),
    (['.', '--class_names=absent.txt'], ['absent.txt']),
    (['.', '--ops=resiz(16)'], ["'resiz'", "'resize'"]),
    (['.', '--device_ops=normalise(-1, 1)'], ["'normalise'"]),
    (['.', '--device_ops='], ['floating-point']),
    (['.', '--top_k=0'], ['top_k', '0']),
    (['.', '--model={"num_classes": None}'], ['no output logits', 'head']),
    (['.', '--ema'], ['ema has no effect']),
    (['.', '--entry=teacher'], ['entry has no effect']),
    (['.', '--class_names=../two.txt'], ['2 names for 5', '--class_names=']),
    (['.', '--batch_size=-1'], ['batch_size', '-1']),
    (['.', '--image_size=20'], ['image_size=20', 'are 16 and 24']),
  ],
)
def test_a_mistake_ends_with_one_message(
  weights, photos, capsys, monkeypatch, argv, words
):
  monkeypatch.chdir(photos)
  (photos.parent / 'two.txt').write_text('v\nw\n')
  assert predict.main([f'--weights={weights}', *argv]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and 'JAX' not in error
  for word in words:
    assert word in error
  with pytest.raises(ValueError, match=words[0]):
    predict.main([f'--weights={weights}', *argv, '--traceback'])


def test_images_of_another_size_than_that_of_the_weights(
  weights, photos, capsys
):
  argv = [f'--weights={weights}', str(photos / 'a.png'), '--format=json']
  assert predict.main([*argv, '--image_size=24']) == 0
  captured = capsys.readouterr()
  assert 'for images of 24x24: positions 3x3' in captured.err
  assert "ops 'decode|resize(24)'" in captured.err
  assert json.loads(captured.out)[0]['predictions']


def test_a_mistyped_option_is_refused(capsys):
  for argv in (['--weights=x', 'a', '--top=3'], ['a'], ['--weights=x']):
    assert predict.main(argv) == 2
    assert '--help' in capsys.readouterr().err
  for model in ('{1', '3', '{1:2}'):
    assert predict.main(['--weights=x', 'a', f'--model={model}']) == 2
    assert 'expected a dict' in capsys.readouterr().err


def test_a_reader_may_stop_early(weights, photos):
  root = pathlib.Path(__file__).parents[2]
  command = f'"{sys.executable}" -m vit_jax predict --weights="{weights}"'
  # Long enough for the pipe to be closed while we write.
  files = ' '.join(['a.png'] * 3000)
  done = subprocess.run(
    f'{command} --format=csv --top_k=1 {files} | head -1',
    shell=True,
    cwd=photos,
    env=dict(os.environ, PYTHONPATH=str(root)),
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.stdout == 'image,rank,label,class,probability\n'
  assert done.stderr == ''
