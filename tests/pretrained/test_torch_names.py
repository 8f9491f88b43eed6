"""The name tables are one to one, and the dialect of a file is recognized."""

import collections

import numpy as np
import pytest

from vit_jax.pretrained import catalog
from vit_jax.pretrained.formats import state_dict
from vit_jax.pretrained.names import _vit_torch
from vit_jax.pretrained.names._vit_torch import TIMM

DIALECTS = {
  value.name: value
  for value in vars(_vit_torch).values()
  if isinstance(value, _vit_torch.Dialect)
}


@pytest.mark.parametrize('name', DIALECTS)
def test_tables_are_one_to_one(name):
  table = DIALECTS[name].table(12)
  ours = collections.Counter(n for names in table.values() for n in names)
  assert set(ours.values()) == {1}
  # Of a block: 2 norms, query, key, value, out, up and down, weight and bias.
  block = [n for n in ours if n.startswith('encoder/block_11/')]
  extra = [n for n in block if 'scale_' in n or '_norm/' in n]
  assert len(block) - len(extra) == 16


def test_timm_has_a_name_for_all_that_a_vit_can_have(make_weights):
  from vit_jax import trees

  known = {ours for names in TIMM.table(3).values() for ours in names} | {
    'class_token',
    'registers',
    'position_embedding',
  }
  options = dict(num_registers=2, layer_scale=1.0, qk_norm=True)
  for more in (
    dict(pooling='token', representation_size=True),
    dict(pooling='mean', final_norm='features'),
    dict(pooling='map'),
  ):
    params = make_weights(**options, **more).params
    assert set(trees.flatten(params)) <= known


def test_a_table_reads_as_it_was_written():
  table = TIMM.table(2)
  block = 'encoder/block_01'
  assert table['blocks.1.attn.qkv.weight'] == (
    f'{block}/attention/query/kernel',
    f'{block}/attention/key/kernel',
    f'{block}/attention/value/kernel',
  )
  assert table['blocks.1.norm2.weight'] == (f'{block}/norm_mlp/scale',)
  assert table['blocks.1.ls2.gamma'] == (f'{block}/scale_mlp',)
  assert table['fc_norm.bias'] == ('norm/bias',)
  assert table['head.weight'] == ('head/kernel',)


def names(*names):
  return dict.fromkeys(names, np.zeros((1, 1)))


PATCHES = 'patch_embed.proj.weight'
HUGGINGFACE = 'embeddings.patch_embeddings.projection.weight'


@pytest.mark.parametrize(
  'arrays, dialect, prefix',
  [
    (names(PATCHES), 'timm', ''),
    (names(f'module.{PATCHES}'), 'timm', 'module.'),
    (names(f'module.backbone.{PATCHES}'), 'timm', 'module.backbone.'),
    (names(f'_orig_mod.{PATCHES}'), 'timm', '_orig_mod.'),
    (names(PATCHES, 'blocks.0.gamma_1'), 'deit3', ''),
    (names(PATCHES, 'register_tokens'), 'dinov2', ''),
    (names(PATCHES, 'mask_token', 'blocks.0.ls1.gamma'), 'dinov2', ''),
    (names(PATCHES, 'mask_token'), 'timm', ''),  # MAE.
    (
      names(HUGGINGFACE, 'encoder.layer.0.layernorm_before.weight'),
      'huggingface_vit',
      '',
    ),
    (
      names(f'dinov2.{HUGGINGFACE}', 'dinov2.encoder.layer.0.norm1.weight'),
      'huggingface_dinov2',
      'dinov2.',
    ),
    (
      names('vision_model.embeddings.patch_embedding.weight'),
      'huggingface_siglip',
      'vision_model.',
    ),
  ],
)
def test_the_dialect_and_its_prefix_are_recognized(arrays, dialect, prefix):
  found, found_prefix = _vit_torch.detect(arrays)
  assert (found.name, found_prefix) == (dialect, prefix)


def test_parameters_outside_the_encoder_are_left_out(make_weights, tmp_path):
  import safetensors.numpy

  catalog.save(make_weights(), tmp_path / 'x', format='timm')
  arrays = safetensors.numpy.load_file(tmp_path / 'x/model.safetensors')
  encoder = {f'module.backbone.{k}': v for k, v in arrays.items()}
  # DINOv2 trains with blocks in chunks, here of two.
  encoder = {
    k.replace('blocks.0.', 'blocks.0.0.')
    .replace('blocks.1.', 'blocks.0.1.')
    .replace('blocks.2.', 'blocks.1.2.'): v
    for k, v in encoder.items()
  }
  beside = {
    'module.head.mlp.0.weight',
    'module.head.last_layer.weight_v',
    'module.dino_head.mlp.0.weight',
    'mask_token',
    'decoder_embed.weight',
    'decoder_blocks.0.norm1.weight',
  }
  path = tmp_path / 'all.safetensors'
  safetensors.numpy.save_file(encoder | names(*beside), path)
  weights = state_dict.read(path, model=dict(num_heads=3))
  assert set(weights.source['unused']) == beside
  np.testing.assert_array_equal(
    weights.params['encoder/block_02/mlp/down/kernel'],
    arrays['blocks.2.mlp.fc2.weight'].T,
  )
  # All that have such parts take images as torchvision normalizes them.
  assert weights.preprocess['device_ops'] == "normalize('imagenet')"
