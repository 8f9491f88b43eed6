"""No text from a file or an address controls the terminal of who runs us."""

import csv
import dataclasses
import io
import json
import sys
import tarfile
import unicodedata

import numpy as np
import PIL.Image
import pytest

from vit_jax import errors
from vit_jax.commands import _cli, convert, predict, preflight, prepare
from vit_jax.pretrained.formats import vit_jax as ours
from vit_jax.reporting import progress, tables
from vit_jax.visualize import predictions

# Red, a title for the window, the one-byte form of an escape, right to left.
NASTY = 'a\x1b[31mb\x1b]0;owned\x07c\x9b2Jd\u202egpj'
SAFE = r'a\x1b[31mb\x1b]0;owned\x07c\x9b2Jd\u202egpj'


def assert_harmless(*texts):
  for text in texts:
    found = {c for c in text if unicodedata.category(c) in ('Cc', 'Cf')}
    assert found <= {'\n'}, text


@pytest.fixture
def weights(tiny_weights, tmp_path):
  """Returns the path of weights whose classes have such names."""
  names = [NASTY + letter for letter in 'vwxyz']
  path = tmp_path / 'weights.safetensors'
  ours.write(dataclasses.replace(tiny_weights(), class_names=names), path)
  return str(path)


@pytest.fixture
def photo(tmp_path):
  path = tmp_path / f'{NASTY}.png'
  PIL.Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(path)
  return str(path)


def test_names_of_classes_and_images_in_predictions(weights, photo, capsys):
  printed = {}
  for kind in ('table', 'csv', 'json'):
    argv = [f'--weights={weights}', photo, f'--format={kind}', '--top_k=1']
    assert predict.main(argv) == 0
    printed[kind], error = capsys.readouterr()
    assert_harmless(printed[kind], error)
  assert SAFE in printed['table']
  row = next(csv.DictReader(io.StringIO(printed['csv'])))
  assert row['class'][:-1] == SAFE and row['image'].endswith(f'{SAFE}.png')
  # JSON has escapes of its own: what is read is the name itself.
  answer = json.loads(printed['json'])[0]
  assert answer['image'] == photo
  assert answer['predictions'][0]['name'][:-1] == NASTY


def test_names_of_images_that_cannot_be_read(weights, tmp_path, capsys):
  (tmp_path / f'{NASTY}.jpg').touch()
  argv = [f'--weights={weights}', str(tmp_path / f'{NASTY}.jpg')]
  assert predict.main(argv) == 1
  out, error = capsys.readouterr()
  assert_harmless(out, error)
  assert SAFE in error


def test_facts_about_weights(weights, tmp_path, capsys):
  assert convert.main([weights, str(tmp_path / 'x.npz')]) == 0
  out, error = capsys.readouterr()
  assert_harmless(out, error)
  assert f'5: {SAFE}v, ' in out


@pytest.mark.parametrize('address', ['http://127.0.0.1:9/', 'hf://a/b/', ''])
def test_addresses(address, photo, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
  argv = [f'--weights={address}{NASTY}.npz', f'--weights_dir={tmp_path}', photo]
  assert predict.main(argv) == 2
  out, error = capsys.readouterr()
  assert_harmless(out, error)
  assert 'owned' in error


def test_names_in_tars(tmp_path, capsys):
  with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
    for name, content in (('x', b'broken'), ('y', b'as broken')):
      for suffix, data in (('jpg', content), ('cls', b'0')):
        info = tarfile.TarInfo(f'{name}{NASTY}.{suffix}')
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  source = f"tar_shards(paths='{tmp_path}/{{split}}.tar', num_classes=2)"
  for format in ('table', 'json'):
    assert preflight.main([source, f'--format={format}']) == 1
    out, error = capsys.readouterr()
    assert_harmless(out, error)
    assert 'owned' in out
  argv = [source, str(tmp_path / 'out'), '--split=train', '--resize_small=8']
  prepare.main([*argv, '--on_error=skip'])
  out, error = capsys.readouterr()
  assert_harmless(out, error)
  assert 'owned' in out + error


def test_names_of_folders(tmp_path, capsys):
  for name in (NASTY, 'dog'):
    (tmp_path / 'train' / name).mkdir(parents=True)
    image = PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    image.save(tmp_path / 'train' / name / f'{NASTY}.png')
  assert preflight.main([f'folder:{tmp_path}']) == 0
  out, error = capsys.readouterr()
  assert_harmless(out, error)
  assert SAFE in out


def test_the_target_of_prepared_data(tmp_path, capsys):
  source = 'synthetic(image_size=8, num_classes=2, num_examples=4)'
  argv = [source, str(tmp_path / NASTY), '--split=train']
  assert prepare.main(argv) == 0
  out, error = capsys.readouterr()
  assert_harmless(out, error)
  assert f'target   {tmp_path}/{SAFE}/train: ' in out


def test_tables_and_lines_of_a_run(capsys):
  tables.print_metrics(NASTY, {NASTY: {NASTY: 0.5}})
  with progress.Progress(3, live=False) as shown:
    shown.log(f'skipped {NASTY}\nand {NASTY}')
    shown.update(3, {NASTY: 0.5})
  out = capsys.readouterr().out
  assert_harmless(out)
  assert f'skipped {SAFE}\nand {SAFE}\n' in out


def test_the_live_bar_shows_messages_as_text():
  file = io.StringIO()
  with progress.Progress(3, live=True, file=file) as shown:
    shown.log(f'skipped {NASTY} :cat: [red]')
  assert f'skipped {SAFE} :cat: [red]' in file.getvalue()
  assert '\x1b]0;owned' not in file.getvalue()


@pytest.mark.parametrize('kind', [errors.UserError, errors.RunError])
def test_errors_and_their_notes(kind, capsys):
  error = kind(f'one {NASTY}\ntwo')
  assert str(error) == f'one {SAFE}\ntwo'
  error.add_note(f'in {NASTY}')

  def fail(argv):
    raise error

  assert _cli.run(fail, []) in (1, 2)
  assert capsys.readouterr().err == f'error: one {SAFE}\ntwo\nin {SAFE}\n'


def test_stack_traces_and_values_at_a_prompt(tiny_weights, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)
  _cli.run(lambda argv: None, [])
  try:
    raise KeyError(0) from RuntimeError(NASTY)
  except KeyError as e:
    sys.excepthook(type(e), e, e.__traceback__)
  error = capsys.readouterr().err
  assert_harmless(error)
  assert f'RuntimeError: {SAFE}\n' in error and 'KeyError: 0\n' in error
  weights = dataclasses.replace(tiny_weights(), source=dict(path=NASTY))
  assert f'from {SAFE})' in repr(weights)


def test_titles_of_pictures():
  assert predictions._name(0, [NASTY]) == SAFE
