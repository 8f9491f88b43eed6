"""Names of timm and of the Hugging Face Hub, served by this machine."""

import dataclasses

import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.inference import classes
from vit_jax.pretrained import catalog, download, published
from vit_jax.pretrained.formats import vit_jax as ours


@pytest.fixture
def load(hub, tmp_path, monkeypatch):
  """Returns `load(name)` from a hub that is empty at first."""
  hub[0].files = {'/': b''}
  monkeypatch.setenv(download.FOLDER_VARIABLE, str(tmp_path / 'weights'))
  return lambda name, **more: catalog.load(name, on_log=lambda _: None, **more)


@pytest.fixture
def publish(hub, make_weights, tmp_path):
  """Returns `publish(repository, format, **section)`, which gives weights."""

  def put(repository, format, **section):
    weights = make_weights(activation='gelu', **section)
    folder = tmp_path / 'published' / repository
    if format == 'vit_jax':
      ours.write(weights, folder / 'model.safetensors')
      (folder / 'config.json').write_text('{}')
    else:
      catalog.save(weights, folder, format=format)
    for path in folder.iterdir():
      at = f'/{repository}/resolve/main/{path.name}'
      hub[0].files[at] = path.read_bytes()
    return weights

  return put


def assert_same(found, expected):
  found, expected = trees.flatten(found.params), trees.flatten(expected.params)
  assert set(found) == set(expected)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
  'name',
  [
    'vit_base_patch16_224',
    'timm/vit_base_patch16_224',
    'vit_base_patch16_224.augreg2_in21k_ft_in1k',
    'hf_hub:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k',
    'hf://timm/vit_base_patch16_224.augreg2_in21k_ft_in1k',
  ],
)
def test_names_of_timm(name, load, publish, tmp_path):
  repository = 'timm/vit_base_patch16_224.augreg2_in21k_ft_in1k'
  expected = publish(repository, 'timm', num_classes=1000)
  found = load(name)
  assert_same(found, expected)
  assert found.source['path'] == str(
    tmp_path / 'weights' / repository.replace('/', '--')
  )
  # timm's models with 1,000 classes are of ImageNet.
  assert classes.names_of(found, None)[0] == 'tench'


@pytest.mark.parametrize(
  ('name', 'format'),
  [
    ('google/vit-base-patch16-224', 'huggingface'),
    ('hf://google/vit-base-patch16-224', 'huggingface'),
    ('hf://someone/else', 'huggingface'),
    ('hf://someone/else/', 'vit_jax'),
    ('{hub}/someone/else', 'timm'),
  ],
)
def test_repositories_of_the_hub(name, format, hub, load, publish):
  repository = 'someone/else' if 'else' in name else name.split('//')[-1]
  expected = publish(repository, format)
  found = load(name.format(hub=hub[1]), model=dict(num_classes=None))
  for leaf in ('kernel', 'bias'):
    expected.params.pop(f'head/{leaf}')
  assert_same(found, expected)
  assert 'name' not in found.source


def test_a_file_of_a_repository(hub, load, publish):
  expected = publish('someone/else', 'timm', width=64, num_heads=1)
  assert_same(load('hf://someone/else/model.safetensors'), expected)
  assert len(hub[0].requests) == 1


@pytest.mark.parametrize(
  ('name', 'short'),
  [
    ('deit_small_patch16_224', 'deit-S/16'),
    ('vit_base_patch16_224.augreg_in21k', 'augreg-B/16'),
    ('timm/vit_small_patch14_dinov2.lvd142m', 'dinov2-S/14'),
    ('deit3_base_patch16_384.fb_in22k_ft_in1k', 'deit3-B/16-384-21k'),
  ],
)
def test_names_of_timm_whose_weights_have_a_short_name(
  name, short, load, make_weights, tmp_path, monkeypatch
):
  """They get what is known of these weights beyond timm's config."""
  assert published.PUBLISHED[short]
  weights = make_weights(width=32, depth=1, mlp_dim=128, num_heads=2)
  entry = published.PUBLISHED[short]
  tiny = dataclasses.replace(
    entry,
    model=dict(
      published.PUBLISHED['deit-S/16'].model, variant='mu/8', num_classes=5
    ),
  )
  monkeypatch.setitem(catalog.PUBLISHED, short, tiny)
  (tmp_path / 'weights').mkdir()
  file = next(r.file_name for r in entry.remotes if r.url.startswith('hf://'))
  catalog.save(weights, tmp_path / 'weights' / file, format='timm')
  found = load(name)
  assert_same(found, weights)
  assert found.source['name'] == short
  assert entry.preprocess.items() <= found.preprocess.items()


def test_a_path_comes_before_a_name(load, make_weights, tmp_path, monkeypatch):
  weights = make_weights(activation='gelu')
  monkeypatch.chdir(tmp_path)
  for name in ('google/vit-base-patch16-224', 'vit_base_patch16_224'):
    catalog.save(weights, name, format='timm')
    assert_same(load(name), weights)


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('vit_base_patch16_225', ['vit_base_patch16_224', '? With its tag']),
    ('vit-base-patch16-224', ["'vit-base-patch16-224'", 'mean vit_base_patch']),
    ('vit_b_16', ['did you mean vit-B/16']),
    ('ViT-B_16', ['did you mean vit-B/16']),
    ('dinov2_vits14', ['dinov2-S/14']),
    ('deit_small_patch16', ['deit_small_patch16_224']),
    (
      'somebody/something',
      ['no file or folder', 'write hf://somebody/something'],
    ),
    ('google/vit-absent', ['HF_TOKEN', '/google/vit-absent a public', '404']),
    ('hf://a', ['hf://owner/repository or hf://owner/repository/file']),
    ('hf://datasets/a/b', ['hf://owner/repository']),
    ('hf://a/b/readme.md', ['expected one that ends in .npz']),
    ('https://127.0.0.1:9/models/x', ['expected one that ends in .npz']),
    ('', ['empty']),
    ('x' * 5000, ['neither an existing path nor the name of published']),
    ('vit_base_patch16_clip_224', ['name of timm', "CLIP's norm before"]),
    ('timm/vit_base_patch16_clip_224.openai', ["CLIP's norm before"]),
    ('beit_base_patch16_224', ["BEiT's relative positions"]),
    ('eva02_base_patch14_224', ["EVA's rotary positions"]),
    ('deit_base_distilled_patch16_224', ["DeiT's distillation token"]),
    ('vit_giant_patch14_reg4_dinov2', ['gated MLPs']),
  ],
)
def test_names_that_cannot_be_resolved(name, words, load, hub):
  with pytest.raises(UserError) as e:
    load(name)
  for word in words:
    assert word in str(e.value)
  assert 'siglip' not in str(e.value).partition('list_models()')[0]
  asks = name.startswith('google/')
  assert bool(hub[0].requests) == asks


def test_names_are_listed():
  assert catalog.names('augreg-B/16*') == ['augreg-B/16', 'augreg-B/16-i1k-384']
  assert catalog.names('AUGREG-b/16*') == catalog.names('augreg-B/16*')
  assert 'vit_base_patch16_siglip_224' in catalog.names('vit_base*')
  found = catalog.names()
  assert len(set(found)) == len(found)
  assert found[: len(published.PUBLISHED)] == list(published.PUBLISHED)


def test_default_tags_are_timm_s():
  timm = pytest.importorskip('timm')
  ours = published.DEFAULT_TAGS
  theirs = {
    name: timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    for name in ours
  }
  assert ours == {name: cfg.tag for name, cfg in theirs.items()}
  assert not [name for name in ours if published.timm_refusal(name)]
  # The repository has the name that ours is made of.
  for name, cfg in theirs.items():
    assert cfg.hf_hub_id == f'timm/{published.timm_name(name)}'


@pytest.mark.parametrize(
  'name',
  ['vit_x.npz', 'vit_small.pth', 'resnet50', 'vit_x', 'google/vit', 'a.b'],
)
def test_names_that_are_not_of_timm(name):
  assert published.timm_name(name) is None


@pytest.mark.parametrize('name', ['beit_base.npz', 'runs/eva_1', 'eva'])
def test_a_refused_name_of_timm_looks_like_one(name):
  assert published.timm_refusal(name) is None
