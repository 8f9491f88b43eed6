"""Torch weights that are not exactly a ViT of ours, and ViTs they cannot be."""

import json

import numpy as np
import pytest
import safetensors.numpy

from vit_jax.errors import UserError
from vit_jax.pretrained import catalog
from vit_jax.pretrained.formats import huggingface, state_dict

HEADS_OF = dict(num_heads=3)


@pytest.fixture
def arrays(make_weights, tmp_path):
  """Returns a good state dict of timm, of three blocks."""
  catalog.save(make_weights(), tmp_path / 'good', format='timm')
  return safetensors.numpy.load_file(tmp_path / 'good/model.safetensors')


@pytest.fixture
def read(tmp_path):
  """Returns `read(arrays, **options)`, which reads them without a config."""

  def read(arrays, **options):
    path = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file(arrays, path)
    return state_dict.read(path, **dict(model=HEADS_OF) | options)

  return read


def zeros(*shape):
  return np.zeros(shape, np.float32)


def test_all_mismatches_are_in_one_message(arrays, read):
  del arrays['blocks.1.mlp.fc1.bias'], arrays['norm.weight']
  arrays['blocks.2.mlp.fc2.weight'] = zeros(24, 41)
  arrays['blocks.0.attn.qkv.weight'] = zeros(71, 24)
  arrays['head.scale'] = zeros(3)
  with pytest.raises(UserError) as e:
    read(arrays)
  lines = str(e.value).splitlines()
  assert [line.strip() for line in lines[1:]] == [
    'blocks.0.attn.qkv.weight (71, 24): 71 rows are not 3 equal parts',
    'unexpected: head.scale (3,)',
  ]
  arrays['blocks.0.attn.qkv.weight'] = zeros(72, 24)
  arrays['blocks.1.attn.qkv.weight'] = zeros(71, 24)
  with pytest.raises(UserError) as e:
    read(arrays)
  lines = str(e.value).splitlines()
  assert [line.strip() for line in lines[1:]] == [
    'blocks.1.attn.qkv.weight (71, 24): 71 rows are not 3 equal parts',
    'unexpected: head.scale (3,)',
    'missing: blocks.1.mlp.fc1.bias (our encoder/block_01/mlp/up/bias)',
    'missing: norm.weight (our encoder/norm/scale)',
    'blocks.2.mlp.fc2.weight (our encoder/block_02/mlp/down/kernel): expected'
    ' (40, 24) in our layout, got (41, 24)',
  ]


def test_arrays_of_another_kind_are_named(arrays, read):
  arrays |= {'pos_embed': zeros(17, 24), 'cls_token': zeros(24)}
  with pytest.raises(UserError) as e:
    read(arrays)
  assert 'cls_token (24,): expected (1, tokens, width)' in str(e.value)
  assert 'pos_embed (17, 24): expected (1, tokens, width)' in str(e.value)


def test_a_missing_class_token_is_refused(make_weights, read, tmp_path):
  catalog.save(make_weights(), tmp_path / 'x', format='huggingface')
  arrays = safetensors.numpy.load_file(tmp_path / 'x/model.safetensors')
  del arrays['vit.embeddings.cls_token']
  with pytest.raises(UserError, match=r'missing: embeddings.cls_token'):
    read(arrays)


def test_class_names_must_be_as_many_as_classes(make_weights, tmp_path):
  catalog.save(make_weights(), tmp_path / 'model', format='timm')
  path = tmp_path / 'model/config.json'
  config = json.loads(path.read_text()) | dict(label_names=['a', 'b'])
  path.write_text(json.dumps(config))
  with pytest.raises(UserError, match='2 class names for 5 classes'):
    state_dict.read(tmp_path / 'model')


def test_a_model_without_blocks_lacks_the_first(arrays, read):
  arrays = {k: v for k, v in arrays.items() if not k.startswith('blocks.')}
  with pytest.raises(UserError, match=r'missing: encoder/block_00/attention'):
    read(arrays)


def test_a_gap_in_the_numbers_of_blocks_is_an_error(arrays, read):
  arrays = {k: v for k, v in arrays.items() if not k.startswith('blocks.1.')}
  with pytest.raises(UserError, match=r'blocks \[1\] of 0 to 2 are missing'):
    read(arrays)


def test_blocks_that_a_config_has_and_the_file_not_are_missing(
  make_weights, tmp_path
):
  catalog.save(make_weights(), tmp_path / 'model', format='huggingface')
  path = tmp_path / 'model/config.json'
  config = json.loads(path.read_text()) | dict(num_hidden_layers=4)
  path.write_text(json.dumps(config))
  with pytest.raises(
    UserError, match=r'missing: blocks 3 to 3: .* depth=4, and 3 blocks'
  ):
    state_dict.read(tmp_path / 'model')


@pytest.mark.parametrize(
  'name, words',
  [
    ('dist_token', 'distilled DeiT'),
    ('head_dist.weight', 'distilled DeiT'),
    ('deit.embeddings.distillation_token', 'distilled DeiT'),
    ('blocks.0.mlp.w12.weight', 'SwiGLU'),
    ('norm_pre.weight', 'CLIP'),
    ('vision_model.pre_layrnorm.weight', 'CLIP'),
    ('blocks.0.attn.relative_position_bias_table', 'BEiT'),
    ('layers.0.blocks.0.norm1.weight', 'Swin'),
    ('patch_embed.backbone.stem.conv.weight', 'hybrid'),
  ],
)
def test_models_that_ours_is_not_are_named(name, words, arrays, read):
  with pytest.raises(UserError, match=words):
    read(arrays | {name: zeros(1, 1, 24)})


def test_a_gated_mlp_under_plain_names_is_recognized(arrays, read):
  arrays['blocks.0.mlp.fc1.weight'] = zeros(80, 24)
  with pytest.raises(UserError, match='SwiGLU'):
    read(arrays)


def test_weights_of_something_else_are_recognized(read):
  with pytest.raises(UserError, match='not the weights of a ViT by timm'):
    read({'conv1.weight': zeros(3, 3), 'fc.weight': zeros(3)})


def test_of_two_models_one_must_be_chosen(arrays, read):
  both = {f'student.backbone.{k}': v + 1 for k, v in arrays.items()}
  both |= {f'teacher.backbone.{k}': v for k, v in arrays.items()}
  with pytest.raises(UserError, match='entry= says which'):
    read(both)
  teacher = read(both, entry='teacher')
  np.testing.assert_array_equal(
    teacher.params['encoder/norm/scale'], arrays['norm.weight']
  )


def test_a_rectangular_grid_must_be_given(arrays, read):
  arrays['pos_embed'] = zeros(1, 15, 24)
  with pytest.raises(
    UserError, match=r'those of 0 squares.*set grid=\(rows, columns\)'
  ):
    read(arrays)
  with pytest.raises(UserError, match='not those of 4x4 patches'):
    read(arrays, grid=(4, 4))
  table = read(arrays, grid=(3, 5)).params['position_embedding']
  assert table.shape == (3, 5, 24)
  # 3x3 patches, or 2x2 and a row for each of the tokens.
  arrays |= {'reg_token': zeros(1, 4, 24), 'pos_embed': zeros(1, 9, 24)}
  with pytest.raises(UserError, match='those of 2 squares of patches'):
    read(arrays)


def test_unknown_heads_must_be_given(arrays, read):
  with pytest.raises(UserError, match=r"set model={'num_heads': \.\.\.}"):
    read(arrays, model=None)


def test_a_bias_that_our_norm_lacks_must_be_zero(make_weights, read, tmp_path):
  catalog.save(make_weights(qk_norm=True), tmp_path / 'x', format='timm')
  arrays = safetensors.numpy.load_file(tmp_path / 'x/model.safetensors')
  assert read(arrays).model['qk_norm']
  arrays['blocks.1.attn.q_norm.bias'][0] = 1e-3
  with pytest.raises(UserError, match=r'blocks.1.attn.q_norm.bias is not zero'):
    read(arrays)


def test_a_head_of_two_features_is_read_only_if_one_counts(
  make_weights, read, tmp_path
):
  weights = make_weights(layer_scale=1.0)
  catalog.save(weights, tmp_path / 'x', format='huggingface')
  arrays = safetensors.numpy.load_file(tmp_path / 'x/model.safetensors')
  head = read(arrays).params['head/kernel']
  np.testing.assert_array_equal(head, weights.params['head/kernel'])
  arrays['classifier.weight'][0, -1] = 1
  with pytest.raises(UserError, match='num_classes=None'):
    read(arrays)
  encoder = read(arrays, model=HEADS_OF | dict(num_classes=None))
  assert 'head/kernel' not in encoder.params


@pytest.mark.parametrize(
  'format, section, words',
  [
    ('timm', dict(norm_epsilon=1e-12), 'norm_epsilon=1e-12'),
    ('timm', dict(representation_size=True), 'representation_size'),
    ('timm', dict(head_hidden_dim=9), 'head_hidden_dim=9'),
    ('timm', dict(pooling='none'), "pooling='none'"),
    ('huggingface', dict(qk_norm=True), 'qk_norm'),
    ('huggingface', dict(final_norm='features'), 'final_norm'),
    ('huggingface', dict(pooling='map'), "pooling='map' with a head"),
    ('huggingface', dict(representation_size=True), 'without a head'),
    ('huggingface', dict(head_hidden_dim=9), 'head_hidden_dim=9'),
    ('huggingface', dict(pooling='mean', layer_scale=1.0), 'no registers'),
    ('google_npz', dict(head_hidden_dim=9), 'head/hidden/kernel'),
    ('big_vision_npz', dict(head_hidden_dim=9), 'head/hidden/kernel'),
  ],
)
def test_options_that_a_format_cannot_express_are_errors(
  format, section, words, make_weights, tmp_path
):
  with pytest.raises(UserError, match=words):
    catalog.save(make_weights(**section), tmp_path / 'x', format=format)
  assert not (tmp_path / 'x').exists()


def test_all_reasons_against_transformers_are_in_one_message(
  make_weights, tmp_path
):
  weights = make_weights(pooling='map', qk_norm=True, num_registers=2)
  with pytest.raises(UserError, match=r"qk_norm; pooling='map' with registers"):
    huggingface.write(weights, tmp_path / 'x')


def test_transformers_takes_square_images_where_it_does(make_weights, tmp_path):
  wide = make_weights(image_shape=(16, 32, 3), num_registers=2)
  with pytest.raises(UserError, match='square images only'):
    huggingface.write(wide, tmp_path / 'x')
