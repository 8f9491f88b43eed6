"""Preprocessing and models in config files, against the authors' code."""

import json

import jax
import numpy as np
import pytest

from vit_jax import lookup
from vit_jax.data import device_ops_language, ops_language
from vit_jax.errors import UserError
from vit_jax.pretrained import (
  catalog,
  evaluation as evaluation_lib,
  presets,
)
from vit_jax.pretrained.formats import state_dict, timm as timm_format
from vit_jax.pretrained.names import (
  _vit_huggingface as huggingface,
  _vit_timm,
)

# Resized to 36 x 39.6 and 32 x 35.2: the longer side is cut, and half of the
# margin, 3.5 and 1.5, is rounded in another way by timm.
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 66, 3), np.uint8)
PREPROCESS = [
  dict(ops=ops, device_ops=device)
  for ops, device in (
    (
      "decode|resize_small(36, method='bicubic', rounding='down')"
      '|central_crop(32)',
      "normalize('imagenet')",
    ),
    (
      "decode|resize_small(32, method='bilinear', rounding='down')"
      '|central_crop(32)',
      'normalize(-1, 1)',
    ),
    ("decode|resize(32, method='bilinear')", "normalize('clip')"),
    (
      "decode|resize(40, method='lanczos')|central_crop(32)",
      'normalize(mean=[0.1, 0.2, 0.3], std=[0.3, 0.2, 0.1])',
    ),
  )
]


def pixels(preprocess):
  """Returns our [H, W, C] of IMAGE."""
  example = ops_language.parse(preprocess['ops'])(
    {'image': IMAGE}, np.random.default_rng(0)
  )
  batch = {'image': example['image'][None]}
  normalize = device_ops_language.parse(preprocess['device_ops'])
  return np.asarray(normalize(batch, None, train=False)['image'][0])


# timm crops as torchvision does.
OF_TIMM = [
  preprocess
  | dict(ops=preprocess['ops'].replace('crop(32)', "crop(32, rounding='even')"))
  for preprocess in PREPROCESS
]


@pytest.mark.parametrize('preprocess', PREPROCESS + OF_TIMM)
def test_ops_become_numbers_and_ops_again(preprocess):
  evaluation = evaluation_lib.from_ops(preprocess)
  assert evaluation_lib.to_ops(evaluation) == preprocess


def test_how_levels_are_rounded_is_left_out():
  ops = presets.preprocess('big_vision', 32)['ops']
  evaluation = evaluation_lib.from_ops(dict(ops=ops))
  assert evaluation_lib.to_ops(evaluation)['ops'] == (
    "decode|resize_small(37, method='area', rounding='down')|central_crop(32)"
  )


def test_ranges_are_means_and_deviations():
  evaluation = evaluation_lib.from_ops(dict(device_ops='normalize(-1, 1)'))
  assert (evaluation.mean, evaluation.std) == (0.5, 0.5)
  evaluation = evaluation_lib.from_ops(dict(device_ops='normalize(0, 1)'))
  assert (evaluation.mean, evaluation.std) == (0, 1)


def test_means_and_deviations_are_as_many():
  unequal = evaluation_lib.Evaluation(mean=[0.1, 0.2], std=[1, 1, 1])
  with pytest.raises(UserError, match='give as many of one as of the other'):
    evaluation_lib.to_ops(unequal)


@pytest.mark.parametrize(
  'preprocess',
  [
    dict(ops='decode|random_crop(32)'),
    dict(ops='decode|central_crop(9)|resize(32)'),
    dict(device_ops='normalize(0, 1, max_value=65535)'),
    dict(device_ops='normalize(0, 1)|normalize(-1, 1)'),
  ],
)
def test_ops_that_config_files_do_not_know_are_an_error(preprocess):
  with pytest.raises(UserError, match='cannot express'):
    evaluation_lib.from_ops(preprocess)


@pytest.mark.parametrize('preprocess', PREPROCESS)
def test_transformers_makes_the_same_pixels(preprocess, make_weights, tmp_path):
  transformers = pytest.importorskip('transformers')
  weights = make_weights(preprocess=preprocess | dict(image_size=(32, 32)))
  catalog.save(weights, tmp_path, format='huggingface')
  processor = transformers.AutoImageProcessor.from_pretrained(
    tmp_path, use_fast=False
  )
  theirs = processor(IMAGE, return_tensors='np')['pixel_values'][0]
  ours = pixels(preprocess)
  np.testing.assert_allclose(theirs.transpose(1, 2, 0), ours, atol=1e-5)
  again = state_dict.read(tmp_path).preprocess
  assert {k: again[k] for k in preprocess} == preprocess


@pytest.mark.parametrize('preprocess', OF_TIMM)
def test_timm_makes_the_same_pixels(preprocess, make_weights, tmp_path):
  timm = pytest.importorskip('timm')
  from PIL import Image

  weights = make_weights(preprocess=preprocess | dict(image_size=(32, 32)))
  catalog.save(weights, tmp_path, format='timm')
  model = timm.create_model(f'local-dir:{tmp_path}')
  transform = timm.data.create_transform(
    **timm.data.resolve_model_data_config(model)
  )
  theirs = transform(Image.fromarray(IMAGE)).numpy().transpose(1, 2, 0)
  np.testing.assert_allclose(theirs, pixels(preprocess), atol=1e-5)
  again = state_dict.read(tmp_path).preprocess
  assert {k: again[k] for k in preprocess} == preprocess


def test_unknown_preprocessing_is_not_made_up(make_weights, tmp_path):
  catalog.save(make_weights(), tmp_path / 'hf', format='huggingface')
  assert not (tmp_path / 'hf/preprocessor_config.json').exists()
  catalog.save(make_weights(), tmp_path / 'timm', format='timm')
  config = json.loads((tmp_path / 'timm/config.json').read_text())
  assert not {'mean', 'crop_pct'} & config['pretrained_cfg'].keys()
  assert state_dict.read(tmp_path / 'timm').preprocess == dict(
    image_size=(32, 32)
  )


@pytest.mark.parametrize(
  'ops',
  [
    'decode|central_crop(32)',  # timm always resizes,
    'decode|resize_small(64)|central_crop(48)',  # to the size of the table,
    'decode|resize((40, 50))|central_crop(32)',  # and both sides alike.
  ],
)
def test_preprocessing_that_timm_does_not_do_is_an_error(
  ops, make_weights, tmp_path
):
  weights = make_weights(preprocess=dict(image_size=(32, 32), ops=ops))
  with pytest.raises(UserError, match='timm cannot make images of 32x32'):
    catalog.save(weights, tmp_path / 'x', format='timm')


def test_timm_configs_of_the_hub_are_understood():
  """The older form, of one dict, and the newer."""
  cfg = dict(
    num_classes=3,
    input_size=[3, 224, 224],
    crop_pct=0.9,
    interpolation='bicubic',
    mean=[0.5, 0.5, 0.5],
    std=[0.5, 0.5, 0.5],
  )
  ops = (
    "decode|resize_small(248, method='bicubic', rounding='down')"
    "|central_crop(224, rounding='even')"
  )
  names = dict(label_names=['a', 'b', 'c'])
  for config in (
    dict(architecture='vit_base_patch16_224', **cfg, **names),
    dict(architecture='vit_base_patch16_224', pretrained_cfg=cfg, **names),
  ):
    facts = _vit_timm.read(config)
    assert facts.preprocess == dict(ops=ops, device_ops='normalize(-1, 1)')
    assert facts.image_size == (224, 224)
    assert facts.class_names == ['a', 'b', 'c']
    assert facts.model == dict(activation='gelu', norm_epsilon=1e-6)
  # timm fits both sides of a rectangle, which none of our ops does.
  wide = dict(architecture='x', **cfg | dict(input_size=[3, 32, 64]))
  assert _vit_timm.read(wide).preprocess.keys() == {'device_ops'}


@pytest.mark.parametrize(
  'processor, ops',
  [
    (
      dict(size=dict(height=224, width=224), resample=2),
      "decode|resize(224, method='bilinear')",
    ),
    (
      dict(size=dict(shortest_edge=256), resample=3, crop_size=224),
      "decode|resize_small(256, method='bicubic', rounding='down')",
    ),
    (
      dict(
        size=dict(shortest_edge=256),
        resample=3,
        do_center_crop=True,
        crop_size=dict(height=224, width=224),
      ),
      "decode|resize_small(256, method='bicubic', rounding='down')"
      '|central_crop(224)',
    ),
    (dict(size=224), "decode|resize(224, method='bilinear')"),
    (
      dict(size=256, do_center_crop=True, crop_size=224, resample=3),
      "decode|resize_small(256, method='bicubic', rounding='down')"
      '|central_crop(224)',
    ),
  ],
)
def test_hugging_face_processors_of_the_hub_are_understood(processor, ops):
  facts = huggingface.read(
    dict(model_type='vit', id2label={'1': 'b', '0': 'a'}),
    processor | dict(image_mean=[0.5] * 3, image_std=[0.5] * 3),
  )
  assert facts.preprocess == dict(ops=ops, device_ops='normalize(-1, 1)')
  assert facts.class_names == ['a', 'b']
  # transformers' own default, far from what others use.
  assert facts.model['norm_epsilon'] == 1e-12


def test_models_that_a_config_speaks_of_and_ours_is_not_are_named():
  for config, words in (
    (dict(model_type='swin'), "model_type='swin'"),
    (dict(model_type='dinov2', use_swiglu_ffn=True), 'gated MLP'),
    (dict(model_type='vit', hidden_act='relu'), "hidden_act='relu'"),
    (dict(model_type='vit', pooler_act='relu'), "pooler_act='relu'"),
  ):
    with pytest.raises(UserError, match=words):
      huggingface.read(config, None)
  for config, words in (
    (dict(architecture='vit_base_patch16_rpn_224'), 'norms after attention'),
    (dict(architecture='x', model_args=dict(act_layer='silu')), 'act_layer'),
    (dict(architecture='x', global_pool='avgmax'), "global_pool='avgmax'"),
    (dict(architecture='x', model_args=dict(pre_norm=True)), 'pre_norm'),
  ):
    with pytest.raises(UserError, match=words):
      _vit_timm.read(config)


@pytest.mark.parametrize(
  'crop, large', [(224, 248), (224, 256), (32, 32), (518, 592), (378, 384)]
)
def test_timms_crop_share_gives_the_size_back(crop, large):
  share = timm_format._share(crop, large)
  assert int(crop / share) == large
  assert len(str(share)) <= 6


ARCHITECTURES = (
  'deit3_small_patch16_224',
  'flexivit_small',
  'test_vit2',
  'vit_base_patch16_224_miil',
  'vit_base_patch16_gap_224',
  'vit_base_patch16_siglip_224',
  'vit_base_patch32_siglip_256',
  'vit_little_patch16_reg4_gap_256',
  'vit_so400m_patch16_siglip_256',
  'vit_small_patch14_reg4_dinov2',
)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_names_of_timm_are_known(name, tmp_path):
  timm = pytest.importorskip('timm')
  import torch

  model = timm.create_model(name, depth=2)
  timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
  path = tmp_path / 'config.json'
  config = json.loads(path.read_text())
  del config['model_args']  # As most of the hub's are.
  path.write_text(json.dumps(config))
  ours = lookup.build('models', state_dict.read(tmp_path).model, 'Model')
  block = model.blocks[0]
  assert ours.num_heads == block.attn.num_heads
  assert ours.norm_epsilon == block.norm1.eps
  x = torch.linspace(-3, 3, 7)
  activation = dict(
    gelu=lambda x: jax.nn.gelu(x, approximate=False),
    gelu_tanh=lambda x: jax.nn.gelu(x, approximate=True),
  )[ours.activation]
  np.testing.assert_allclose(
    activation(x.numpy()), block.mlp.act(x).numpy(), atol=1e-6
  )
  pooling = dict(avg='mean', token='token', map='map')
  assert ours.pooling == pooling[model.global_pool]


def test_timm_resizes_by_bicubic_where_a_config_does_not_say():
  config = dict(input_size=[3, 224, 224], crop_pct=0.9)
  config |= dict(mean=[0.5] * 3, std=[0.5] * 3)
  found = _vit_timm.read(
    dict(architecture='vit_base_patch16_224', pretrained_cfg=config)
  )
  assert found.preprocess['ops'] == (
    "decode|resize_small(248, method='bicubic', rounding='down')"
    "|central_crop(224, rounding='even')"
  )


def test_missing_keys_of_a_config_are_as_in_timm():
  timm = pytest.importorskip('timm')
  config = dict(input_size=(3, 224, 224), crop_pct=0.9)
  theirs = timm.data.resolve_data_config({}, pretrained_cfg=config)
  found = _vit_timm.read(dict(architecture='x', pretrained_cfg=config))
  method = evaluation_lib.METHODS[theirs['interpolation']]
  assert f'method={method!r}' in found.preprocess['ops']
