"""One line to load anything, and one to save it."""

import importlib.util

import numpy as np
import pytest

from vit_jax import trees
from vit_jax.data import device_ops_language, ops_language
from vit_jax.errors import UserError
from vit_jax.models import _position, vit
from vit_jax.pretrained import (
  catalog,
  download,
  presets,
  published,
  transfer,
)
from vit_jax.pretrained.formats import npz, vit_jax as ours

NAME = 'mu_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'


def assert_same(found, expected):
  found, expected = trees.flatten(found.params), trees.flatten(expected.params)
  assert set(found) == set(expected)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name])


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
  def refuse(url, part, **limits):
    raise transfer.FailedError('no network')

  monkeypatch.setattr(transfer, 'copy', refuse)
  monkeypatch.setenv(download.FOLDER_VARIABLE, str(tmp_path / 'weights'))


@pytest.fixture
def shelf(tmp_path):
  """Returns the folder of weights."""
  (tmp_path / 'weights').mkdir()
  return tmp_path / 'weights'


def test_the_suffix_says_the_format(make_weights, google_file, tmp_path):
  weights = make_weights()
  catalog.save(weights, tmp_path / 'x.safetensors')
  assert ours.matches(tmp_path / 'x.safetensors')
  # What was read from .npz goes back in its own dialect.
  arrays = google_file(prefix='params/', position='pos_embedding')
  np.savez(tmp_path / 'in.npz', **arrays)
  catalog.save(catalog.load(tmp_path / 'in.npz'), tmp_path / 'out.npz')
  with np.load(tmp_path / 'out.npz') as file:
    assert 'params/cls' in file.files
  for path, format in (('x', None), ('x.npz', 'nump'), ('x.bin', None)):
    with pytest.raises(UserError, match='timm, vit_jax'):
      catalog.save(weights, tmp_path / path, format=format)


def test_names_are_found_in_the_folder_of_weights(make_weights, shelf):
  weights = make_weights()
  npz.write(weights, shelf / 'mine.npz')
  assert_same(catalog.load('mine.npz'), weights)
  npz.write(weights, shelf / f'{NAME}.npz')
  assert_same(catalog.load(NAME), weights)
  assert_same(catalog.load(f'gs://bucket/folder/{NAME}.npz'), weights)


def test_a_path_comes_before_the_folder(
  make_weights, shelf, tmp_path, monkeypatch
):
  npz.write(make_weights(num_classes=3), shelf / 'x.npz')
  npz.write(make_weights(num_classes=4), tmp_path / 'x.npz')
  assert catalog.load(tmp_path / 'x.npz').model['num_classes'] == 4
  assert catalog.load('x.npz').model['num_classes'] == 3
  assert catalog.load('x.npz', weights_dir=tmp_path).model['num_classes'] == 4
  monkeypatch.chdir(tmp_path)
  assert catalog.load('x.npz').model['num_classes'] == 4


@pytest.fixture
def tiny(monkeypatch, make_weights, shelf):
  """Publishes a tiny model, whose mirror lies in the folder of weights."""
  weights = make_weights(width=32, depth=1, mlp_dim=128, num_heads=2)
  catalog.save(weights, shelf / 'mirror.safetensors', format='timm')
  entry = published.Published(
    remotes=(
      download.Remote('http://127.0.0.1:9/mu.npz'),
      download.Remote('hf://timm/mirror/model.safetensors'),
    ),
    model=dict(
      published.PUBLISHED['augreg-B/16'].model, variant='mu/8', num_classes=5
    ),
    preprocess=presets.preprocess('vision_transformer', 32),
    resize='google',
  )
  monkeypatch.setitem(catalog.PUBLISHED, 'tiny-mu/8', entry)
  return weights


def test_a_short_name_knows_facts_that_are_not_in_the_file(tiny):
  found = catalog.load('tiny-mu/8')
  assert_same(found, tiny)
  assert found.model['activation'] == 'gelu_tanh'  # timm's would be 'gelu'.
  assert found.preprocess == dict(
    image_size=(32, 32),
    ops="decode(dct='fast')|resize(32, antialias=False)",
    device_ops='normalize(-1, 1)',
  )
  assert found.source['resize'] == 'google'
  assert found.source['name'] == 'tiny-mu/8'


def test_the_user_wins_over_the_catalog(tiny):
  found = catalog.load(
    'tiny-mu/8', model=dict(activation='gelu', num_classes=None)
  )
  assert found.model['activation'] == 'gelu'
  assert 'head' not in found.params


def test_a_file_of_another_model_is_not_taken_for_it(tiny, make_weights, shelf):
  npz.write(make_weights(num_classes=4), shelf / 'mu.npz')
  with pytest.raises(UserError) as e:
    catalog.load('tiny-mu/8')
  assert 'mu.npz is not tiny-mu/8' in str(e.value)
  assert 'num_classes=4, expected 5' in str(e.value)
  assert "variant=None, expected 'mu/8'" in str(e.value)


def test_offline_the_error_says_which_file_to_put_where(shelf):
  with pytest.raises(UserError) as e:
    catalog.load('augreg-B/16', on_log=lambda line: None)
  file = 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz'
  assert (
    f'put {file} (from https://storage.googleapis.com/vit_models/augreg/{file})'
    ' or vit_base_patch16_224.augreg_in21k.safetensors (from'
    ' https://huggingface.co/timm/vit_base_patch16_224.augreg_in21k/resolve/'
    f'main/model.safetensors) into {shelf}'
  ) in str(e.value)
  with pytest.raises(UserError, match=f'put {NAME}.npz'):
    catalog.load(NAME, on_log=lambda line: None)


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('augreg-B16', 'did you mean augreg-B/16'),
    ('dino-S/9', 'did you mean dino-S/'),
    ('something', 'the names, which start with augreg, bv, '),
    ('runs/absent/x.npz', 'there is no file or folder runs/absent/x.npz$'),
    ('augrg-B/16', 'no file or folder augrg-B/16; did you mean augreg-B/16'),
  ],
)
def test_unknown_names_are_errors(source, message):
  with pytest.raises(UserError, match=message):
    catalog.load(source)


def test_a_run_in_a_cloud_without_its_client_is_an_error_that_says_so():
  pytest.importorskip('fsspec')
  if importlib.util.find_spec('gcsfs') is not None:
    pytest.skip('the client is installed')
  with pytest.raises(UserError, match=r'gs://bucket/runs/x.*install gcsfs'):
    catalog.load('gs://bucket/runs/x')


def test_options_without_effect_are_refused(make_weights, tmp_path):
  catalog.save(make_weights(), tmp_path / 'x.npz')
  with pytest.raises(UserError, match='ema, step has no effect'):
    catalog.load(tmp_path / 'x.npz', step=3, ema=True)
  assert catalog.load(tmp_path / 'x.npz', step=None, grid=(4, 4))


@pytest.mark.parametrize('name', published.PUBLISHED)
def test_published_weights_are_described_completely(name):
  entry = published.PUBLISHED[name]
  section = dict(entry.model)
  assert section.pop('name') == 'vit'
  model = vit.Model(**section)
  assert name.split('-')[1] == section['variant']
  files = [remote.file_name for remote in entry.remotes]
  assert len(set(files)) == len(files)
  for remote in entry.remotes:
    suffixes = ('.npz', '.pth', '.safetensors')
    assert remote.file_name.endswith(suffixes)
    scheme = remote.url.split('://')[0]
    assert scheme in ('https', 'hf')
  assert entry.resize in _position.RESIZE
  ops_language.parse(entry.preprocess.get('ops', ''))
  device_ops_language.parse(entry.preprocess.get('device_ops', ''))
  assert {'activation', 'norm_epsilon'} <= set(entry.model)
  assert model.pooling == section['pooling']


def test_files_of_different_models_have_different_names():
  seen = {}
  for name, entry in published.PUBLISHED.items():
    for remote in entry.remotes:
      assert seen.setdefault(remote.file_name, name) == name
  assert seen['imagenet21k/ViT-B_16.npz'] == 'vit-B/16'


def test_augregs_names_follow_its_grammar():
  names = [
    entry.remotes[0].file_name
    for name, entry in published.PUBLISHED.items()
    if name.startswith('augreg')
  ]
  assert len(names) == 12 and all(map(published.is_augreg_name, names))
  pre_trained = names[0].removesuffix('.npz')
  for other in (
    'B_16',
    'augreg-B/16',
    pre_trained.replace('-sd_0.0', ''),
    pre_trained.replace('300ep', '300'),
    f'{pre_trained}--imagenet2012',
    f'{pre_trained}-imagenet2012-steps_20k-lr_0.03-res_384',
    f'{pre_trained}.pth',
  ):
    assert not published.is_augreg_name(other)
