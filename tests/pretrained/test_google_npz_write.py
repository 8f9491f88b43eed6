"""Google's .npz files of any of our ViTs, read by us and by timm."""

import dataclasses
import zipfile

import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog
from vit_jax.pretrained.formats import npz
from vit_jax.pretrained.names import _vit_arrays

DIALECTS = ('pre_linen', 'linen', 'big_vision')
MODELS = {
  'token': dict(pooling='token'),
  'mean': dict(pooling='mean', representation_size=8),
  'map': dict(pooling='map', num_classes=None),
  'dense': dict(pooling='none'),
}


def assert_same(found, expected):
  found, expected = trees.flatten(found), trees.flatten(expected)
  assert set(found) == set(expected)
  for name in expected:
    assert found[name].tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize(
  ('model', 'dialect'),
  [
    (model, dialect)
    for model in MODELS
    for dialect in DIALECTS
    if model != 'map' or dialect == 'big_vision'
  ],
)
def test_a_model_comes_back_as_it_was(model, dialect, make_weights, tmp_path):
  weights = make_weights(**MODELS[model])
  npz.write(weights, tmp_path / 'x.npz', dialect=dialect)
  found = npz.read(tmp_path / 'x.npz')
  assert_same(found.params, weights.params)
  assert found.model | weights.model == found.model


def test_facts_that_readers_would_guess_wrong_are_in_the_comment(
  make_weights, tmp_path
):
  weights = make_weights(
    image_shape=(16, 64, 1),
    pooling='none',
    activation='gelu',
    norm_epsilon=1e-5,
    preprocess=dict(
      image_size=(16, 64), ops='decode(1)', device_ops="normalize('clip')"
    ),
  )
  weights = dataclasses.replace(weights, class_names=['a', 'ü', 'c', 'd', 'e'])
  path = tmp_path / 'x.npz'
  npz.write(weights, path, allow_note_only=True)
  found = npz.read(path)
  assert found.model | weights.model == found.model
  assert found.preprocess == weights.preprocess
  assert found.class_names == weights.class_names
  assert_same(found.params, weights.params)
  with np.load(path) as file:  # No other reader sees it.
    assert all(file[name].dtype == np.float32 for name in file.files)


def test_there_is_no_comment_where_readers_guess_right(make_weights, tmp_path):
  weights = make_weights(activation='gelu_tanh')
  npz.write(weights, tmp_path / 'x.npz')
  weights = npz.read(tmp_path / 'x.npz')
  npz.write(weights, tmp_path / 'y.npz')
  with zipfile.ZipFile(tmp_path / 'y.npz') as archive:
    assert archive.comment == b''


def test_class_names_that_are_too_many_are_left_out(make_weights, tmp_path):
  weights = make_weights(activation='gelu')
  weights = dataclasses.replace(weights, class_names=['x' * 20_000] * 5)
  npz.write(weights, tmp_path / 'x.npz', allow_note_only=True)
  found = npz.read(tmp_path / 'x.npz')
  assert found.class_names is None
  assert found.model['activation'] == 'gelu'


def test_parameters_without_a_name_are_refused(make_weights, tmp_path):
  weights = make_weights(num_registers=2, layer_scale=0.1)
  with pytest.raises(UserError) as e:
    npz.write(weights, tmp_path / 'x.npz')
  for name in ('registers', 'block_00/scale_mlp', 'block_02/scale_attention'):
    assert name in str(e.value)
  assert list(tmp_path.iterdir()) == []


def test_a_class_token_that_was_trained_gets_a_row_of_zeros(
  google_file, tmp_path
):
  path = tmp_path / 'x.npz'
  np.savez(path, **google_file())
  weights = npz.read(path)
  weights.params['class_token'] = weights.params['class_token'] + 1
  npz.write(weights, path)
  with np.load(path) as file:
    np.testing.assert_array_equal(file['cls'], weights.params['class_token'])
    row = file['Transformer/posembed_input/pos_embedding'][:, :1]
  np.testing.assert_array_equal(row, np.zeros_like(row))
  assert_same(npz.read(path).params, weights.params)


@pytest.mark.parametrize('position', ['sincos2d', 'sincos2d_moco', 'none'])
@pytest.mark.parametrize('dialect', ['pre_linen', 'big_vision'])
def test_a_fixed_position_table_is_written_out_if_need_be(
  position, dialect, make_weights, outputs, tmp_path
):
  weights = make_weights(pooling='token', position=position)
  npz.write(weights, tmp_path / 'x.npz', dialect=dialect)
  found = npz.read(tmp_path / 'x.npz')
  native = position == 'sincos2d' and dialect == 'big_vision'
  assert ('position_embedding' in found.params) != native
  image = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
  image = image.astype(np.float32)
  np.testing.assert_array_equal(
    outputs(found, image)['logits'], outputs(weights, image)['logits']
  )


def test_a_table_for_images_of_unknown_size_cannot_be_written(
  make_weights, tmp_path
):
  weights = make_weights(position='sincos2d', preprocess={'ops': 'decode'})
  with pytest.raises(UserError, match='image_size'):
    npz.write(weights, tmp_path / 'x.npz')


@pytest.mark.parametrize(
  ('ops', 'size'),
  [
    ('decode|resize_small(37)|central_crop(32)', (32, 32)),
    ('decode|resize((32, 48))', (32, 48)),
    ('decode|resize(size=16)', (16, 16)),
    ('decode|resize_small(37)', None),
    ('decode|resize(1000000000)', None),
    ("decode|resize('32')", None),
    ('', None),
  ],
)
def test_the_size_of_a_fixed_table_is_that_of_the_images(
  ops, size, make_weights
):
  weights = make_weights(position='sincos2d', preprocess={'ops': ops})
  if size is None:
    with pytest.raises(UserError, match='load the weights with image_size'):
      _vit_arrays._image_size(weights)
  else:
    assert _vit_arrays._image_size(weights) == size


@pytest.mark.parametrize(
  ('section', 'format', 'words'),
  [
    (dict(pooling='map'), 'google_npz', "format='big_vision_npz'"),
    (dict(qkv_bias=False), 'google_npz', 'qkv_bias=False'),
    (dict(qkv_bias=False), 'big_vision_npz', 'qkv_bias=False'),
  ],
)
def test_models_that_googles_code_has_not_are_refused(
  section, format, words, make_weights, tmp_path
):
  for allow in (False, True):
    with pytest.raises(UserError, match=words):
      catalog.save(
        make_weights(**section),
        tmp_path / 'x.npz',
        format=format,
        allow_note_only=allow,
      )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('format', [None, 'google_npz', 'big_vision_npz'])
@pytest.mark.parametrize(
  'section', [dict(activation='gelu'), dict(norm_epsilon=1e-12)]
)
def test_facts_of_the_note_alone_are_written_if_asked_for(
  section, format, make_weights, tmp_path
):
  weights, path = make_weights(**section), tmp_path / 'x.npz'
  with pytest.raises(UserError, match='allow_note_only=True'):
    catalog.save(weights, path, format=format)
  catalog.save(weights, path, format=format, allow_note_only=True)
  assert catalog.load(path).model | section == catalog.load(path).model
  with pytest.raises(UserError, match='allow_note_only is for'):
    catalog.save(weights, tmp_path / 'y.safetensors', allow_note_only=True)


def test_map_pooling_goes_to_big_vision_where_no_dialect_is_said(
  make_weights, tmp_path
):
  catalog.save(make_weights(pooling='map'), tmp_path / 'x.npz')
  found = npz.read(tmp_path / 'x.npz')
  assert found.source['dialect'] == 'big_vision'


def test_a_source_that_a_file_made_up_is_no_dialect(make_weights, tmp_path):
  source = dict(format='google_npz', dialect='x')
  weights = dataclasses.replace(make_weights(), source=source)
  with pytest.raises(UserError, match="unknown dialect 'x'"):
    npz.write(weights, tmp_path / 'x.npz')
  # Older files of ours have more of it, which is not used.
  source = dict(format='google_npz', dialect={'prefix': 'opt/target/'})
  weights = dataclasses.replace(make_weights(), source=source)
  npz.write(weights, tmp_path / 'x.npz')
  assert npz.read(tmp_path / 'x.npz').source['dialect'] == 'pre_linen'


def test_weights_of_one_dialect_can_be_written_in_another(
  google_file, outputs, tmp_path
):
  np.savez(tmp_path / 'old.npz', **google_file())
  old = npz.read(tmp_path / 'old.npz')
  npz.write(old, tmp_path / 'new.npz', dialect='big_vision')
  new = npz.read(tmp_path / 'new.npz')
  assert_same(new.params, old.params)
  with np.load(tmp_path / 'new.npz') as file:
    assert file['params/pos_embedding'].shape == (1, 16, 24)
  with pytest.raises(UserError, match='pre_linen, linen, big_vision'):
    npz.write(old, tmp_path / 'new.npz', dialect='torch')


@pytest.mark.parametrize(
  ('pooling', 'dialect'),
  [
    ('token', 'pre_linen'),
    ('mean', 'pre_linen'),
    ('token', 'big_vision'),
    ('mean', 'big_vision'),
    ('map', 'big_vision'),
  ],
)
def test_timm_reads_our_files_and_computes_the_same(
  pooling, dialect, timm, make_weights, outputs, tmp_path
):
  import torch
  from timm.models.vision_transformer import VisionTransformer

  weights = make_weights(pooling=pooling, activation='gelu')
  npz.write(weights, tmp_path / 'x.npz', dialect=dialect, allow_note_only=True)
  model = VisionTransformer(
    img_size=32,
    patch_size=8,
    embed_dim=24,
    depth=3,
    num_heads=3,
    mlp_ratio=40 / 24,
    num_classes=5,
    class_token=pooling == 'token',
    # big_vision adds positions before the class token is there.
    no_embed_class=dialect == 'big_vision',
    global_pool={'mean': 'avg'}.get(pooling, pooling),
    fc_norm=False,
  ).eval()
  model.load_pretrained(str(tmp_path / 'x.npz'))
  image = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
  image = image.astype(np.float32)
  with torch.no_grad():
    theirs = model(torch.from_numpy(image).permute(0, 3, 1, 2)).numpy()
  ours = outputs(weights, image)['logits']
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
