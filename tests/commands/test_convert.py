"""`python -m vit_jax convert`: all of it or an error, and it says what."""

import dataclasses

import numpy as np
import pytest

from vit_jax import trees
from vit_jax.commands import convert
from vit_jax.pretrained import catalog
from vit_jax.pretrained.formats import vit_jax as ours


@pytest.fixture
def source(tiny_weights, tmp_path):
  """Returns a function that writes our file and returns its path."""

  def write(changes=None, **section):
    path = tmp_path / 'source.safetensors'
    weights = dataclasses.replace(tiny_weights(**section), **changes or {})
    ours.write(weights, path)
    return str(path)

  return write


@pytest.mark.parametrize(
  ('target', 'format', 'pooling'),
  [
    ('x.safetensors', None, 'token'),
    ('x.npz', None, 'token'),
    ('x.npz', 'big_vision_npz', 'map'),
    ('x', 'timm', 'token'),
    ('x', 'huggingface', 'token'),
  ],
)
def test_every_format_gets_all_and_gives_it_back(
  source, tmp_path, capsys, target, format, pooling
):
  path, target = source(pooling=pooling), tmp_path / target
  # What the format expects, so that nothing is left to be said.
  assert (
    convert.main([path, str(target), f'--format={format}'][: 2 + bool(format)])
    == 0
  )
  out = capsys.readouterr().out
  before, after = catalog.load(path), catalog.load(target)
  named = trees.flatten(after.params)
  for name, array in trees.flatten(before.params).items():
    np.testing.assert_array_equal(named[name], array, err_msg=name)
  for word in (
    f'read     {path}: vit_jax',
    'variant=mu/8',
    f'pooling={pooling}',
    'decode|resize(16)',
    'normalize(-1, 1)',
    'classes  5: ant, bee, cat, ...',
    f'written  {target}: {format or target.suffix}',
    f'{len(named)} arrays have the same bits',
  ):
    assert word in out


def test_few_classes_are_all_named(source, tmp_path, capsys):
  names = ['cat', 'dog', 'ship']
  path = source(dict(class_names=names), num_classes=3)
  assert convert.main([path, str(tmp_path / 'x.safetensors')]) == 0
  assert 'classes  3: cat, dog, ship\n' in capsys.readouterr().out


def test_there_and_back_is_the_same_file(source, tmp_path):
  path = source()
  weights = catalog.load(path)
  here = path
  for i, format in enumerate(('timm', 'google_npz', 'huggingface', 'vit_jax')):
    # Folders named by numbers are no checkpoints.
    there = str(tmp_path / f'{i}{".npz" if format == "google_npz" else ""}')
    there += '.safetensors' if format == 'vit_jax' else ''
    assert convert.main([here, there, f'--format={format}']) == 0
    here = there
  after = trees.flatten(catalog.load(here).params)
  for name, array in trees.flatten(weights.params).items():
    assert after[name].tobytes() == array.tobytes(), name


def test_facts_that_the_target_cannot_hold_are_reported(
  source, tmp_path, capsys
):
  path = source(dict(source=dict(loss='sigmoid')))
  assert convert.main([path, str(tmp_path / 'x'), '--format=timm']) == 0
  out = capsys.readouterr().out
  notes = [line for line in out.splitlines() if line.startswith('note')]
  assert len(notes) == 2
  # timm always names a method of interpolation; ours has a default.
  assert "bilinear')\": it was 'decode|resize(16)'" in notes[0]
  assert "load it with loss='sigmoid'" in notes[1]


def test_facts_of_the_note_alone_are_written_on_request(
  source, tmp_path, capsys
):
  path, target = source(activation='gelu'), str(tmp_path / 'x.npz')
  assert convert.main([path, target]) == 2
  error = capsys.readouterr().err
  assert "activation='gelu', where Google computes 'gelu_tanh'" in error
  assert '--allow_note_only' in error and not (tmp_path / 'x.npz').exists()
  assert convert.main([path, target, '--allow_note_only']) == 0
  assert catalog.load(target).model['activation'] == 'gelu'
  other = str(tmp_path / 'y.safetensors')
  assert convert.main([path, other, '--allow_note_only']) == 2


def test_meaning_that_shows_in_no_array_is_compared(tiny_weights):
  before = tiny_weights(activation='gelu', norm_epsilon=1e-5)
  after = dataclasses.replace(tiny_weights(), class_names=None)
  lines = convert._unsaid(before, after)
  assert len(lines) == 3
  assert "activation='gelu_tanh'" in lines[0]
  assert "model={'activation': 'gelu'}" in lines[0]
  assert "model={'norm_epsilon': 1e-05}" in lines[1]
  assert 'names of the classes' in lines[2]


def test_options_choose_the_weights(source, tmp_path, capsys):
  target = str(tmp_path / 'x.npz')
  model = "--model={'num_classes': None}"
  assert convert.main([source(), target, model]) == 0
  assert 'num_classes=None' in capsys.readouterr().out
  assert 'head/bias' not in catalog.load(target).params


def test_a_target_that_differs_is_an_error(
  source, tmp_path, capsys, monkeypatch
):
  def save(weights, path, **options):
    bias = weights.params['head/bias']
    params = weights.params | {'head/bias': bias + 1}
    ours.write(dataclasses.replace(weights, params=params), path)

  monkeypatch.setattr(catalog, 'save', save)
  assert convert.main([source(), str(tmp_path / 'x.safetensors')]) == 1
  error = capsys.readouterr().err
  assert (
    'not what was read' in error and 'head/bias: differs by up to 1' in error
  )


def test_a_target_that_cannot_be_read_is_an_error(
  source, tmp_path, capsys, monkeypatch
):
  def save(weights, path, **options):
    tmp_path.joinpath('x.safetensors').write_bytes(b'no')

  monkeypatch.setattr(catalog, 'save', save)
  assert convert.main([source(), str(tmp_path / 'x.safetensors')]) == 1
  assert 'cannot be read again' in capsys.readouterr().err


def test_mistakes_end_with_one_message_before_anything_is_read(
  source, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(catalog, 'load', None)
  for target, more in (('x', []), ('x.foo', []), ('x.npz', ['--format=tim'])):
    assert convert.main(['source', str(tmp_path / target), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    for word in (target, 'google_npz', 'huggingface'):
      assert word in error


def test_a_model_that_the_format_lacks_writes_nothing(source, tmp_path, capsys):
  target = tmp_path / 'x'
  code = convert.main(
    [source(representation_size=8), str(target), '--format=timm']
  )
  assert code == 2
  assert 'representation_size' in capsys.readouterr().err
  assert not target.exists()
