"""Torch files in and out, name by name; what is not a ViT of ours says so.

The names of each code base are spelled out here once more.
"""

import dataclasses
import re

import numpy as np
import pytest
import safetensors.numpy

from vit_jax import trees
from vit_jax.pretrained import catalog, mapping
from vit_jax.pretrained.formats import state_dict
from vit_jax.pretrained.names import _vit_torch

DIALECTS = {
  value.name: value
  for value in vars(_vit_torch).values()
  if isinstance(value, _vit_torch.Dialect)
}
WIDTH, HEADS, MLP, PATCH, GRID, CLASSES, DEPTH = 24, 3, 40, 8, 4, 5, 2
HEADS_OF = dict(num_heads=HEADS)


def layer(name, *shape):
  return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def draw(shapes):
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(0, 0.2, shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def timm(rows=1, registers=0, register_name='reg_token', scales=(), head=True):
  """Returns a state dict of timm, DeiT, DeiT III, DINO, DINOv2 or MAE."""
  shapes = {
    'cls_token': (1, 1, WIDTH),
    'pos_embed': (1, rows + GRID**2, WIDTH),
    **layer('patch_embed.proj', WIDTH, 3, PATCH, PATCH),
    **layer('norm', WIDTH),
  }
  if registers:
    shapes[register_name] = (1, registers, WIDTH)
  if head:
    shapes |= layer('head', CLASSES, WIDTH)
  for i in range(DEPTH):
    shapes |= {
      **layer(f'blocks.{i}.norm1', WIDTH),
      **layer(f'blocks.{i}.attn.qkv', 3 * WIDTH, WIDTH),
      **layer(f'blocks.{i}.attn.proj', WIDTH, WIDTH),
      **layer(f'blocks.{i}.norm2', WIDTH),
      **layer(f'blocks.{i}.mlp.fc1', MLP, WIDTH),
      **layer(f'blocks.{i}.mlp.fc2', WIDTH, MLP),
      **{f'blocks.{i}.{name}': (WIDTH,) for name in scales},
    }
  return draw(shapes)


def timm_map():
  arrays = timm(rows=0, head=False)
  del arrays['cls_token']
  return arrays | draw(
    {
      'attn_pool.latent': (1, 1, WIDTH),
      **layer('attn_pool.q', WIDTH, WIDTH),
      **layer('attn_pool.kv', 2 * WIDTH, WIDTH),
      **layer('attn_pool.proj', WIDTH, WIDTH),
      **layer('attn_pool.norm', WIDTH),
      **layer('attn_pool.mlp.fc1', MLP, WIDTH),
      **layer('attn_pool.mlp.fc2', WIDTH, MLP),
    }
  )


def timm_gap():
  """As MAE fine-tunes: the class token is there, but nobody reads it."""
  arrays = timm()
  for kind in ('weight', 'bias'):
    arrays[f'fc_norm.{kind}'] = arrays.pop(f'norm.{kind}')
  return arrays


def huggingface(norms, mlp, kind='vit', head_in=WIDTH, registers=0):
  p = f'{kind}.'
  shapes = {
    f'{p}embeddings.cls_token': (1, 1, WIDTH),
    f'{p}embeddings.position_embeddings': (1, 1 + GRID**2, WIDTH),
    **layer(
      f'{p}embeddings.patch_embeddings.projection', WIDTH, 3, PATCH, PATCH
    ),
    **layer(f'{p}layernorm', WIDTH),
    **layer('classifier', CLASSES, head_in),
  }
  if kind.startswith('dinov2'):
    shapes[f'{p}embeddings.mask_token'] = (1, WIDTH)
  if registers:
    shapes[f'{p}embeddings.register_tokens'] = (1, registers, WIDTH)
  for i in range(DEPTH):
    block = f'{p}encoder.layer.{i}'
    for part in ('query', 'key', 'value'):
      shapes |= layer(f'{block}.attention.attention.{part}', WIDTH, WIDTH)
    shapes |= {
      **layer(f'{block}.{norms[0]}', WIDTH),
      **layer(f'{block}.attention.output.dense', WIDTH, WIDTH),
      **layer(f'{block}.{norms[1]}', WIDTH),
      **layer(f'{block}.{mlp[0]}', MLP, WIDTH),
      **layer(f'{block}.{mlp[1]}', WIDTH, MLP),
    }
    if kind.startswith('dinov2'):
      for n in '12':
        shapes[f'{block}.layer_scale{n}.lambda1'] = (WIDTH,)
  arrays = draw(shapes)
  if head_in == 2 * WIDTH:
    arrays['classifier.weight'][:, WIDTH:] = 0  # Reads the class token alone.
  return arrays


def hf_vit():
  return huggingface(
    ('layernorm_before', 'layernorm_after'),
    ('intermediate.dense', 'output.dense'),
  )


def hf_dinov2(kind='dinov2', **options):
  return huggingface(
    ('norm1', 'norm2'),
    ('mlp.fc1', 'mlp.fc2'),
    kind=kind,
    head_in=2 * WIDTH,
    **options,
  )


def hf_siglip():
  p = 'vision_model.'
  shapes = {
    f'{p}embeddings.position_embedding.weight': (GRID**2, WIDTH),
    **layer(f'{p}embeddings.patch_embedding', WIDTH, 3, PATCH, PATCH),
    **layer(f'{p}post_layernorm', WIDTH),
    f'{p}head.probe': (1, 1, WIDTH),
    f'{p}head.attention.in_proj_weight': (3 * WIDTH, WIDTH),
    f'{p}head.attention.in_proj_bias': (3 * WIDTH,),
    **layer(f'{p}head.attention.out_proj', WIDTH, WIDTH),
    **layer(f'{p}head.layernorm', WIDTH),
    **layer(f'{p}head.mlp.fc1', MLP, WIDTH),
    **layer(f'{p}head.mlp.fc2', WIDTH, MLP),
  }
  for i in range(DEPTH):
    block = f'{p}encoder.layers.{i}'
    for part in ('q_proj', 'k_proj', 'v_proj', 'out_proj'):
      shapes |= layer(f'{block}.self_attn.{part}', WIDTH, WIDTH)
    shapes |= {
      **layer(f'{block}.layer_norm1', WIDTH),
      **layer(f'{block}.layer_norm2', WIDTH),
      **layer(f'{block}.mlp.fc1', MLP, WIDTH),
      **layer(f'{block}.mlp.fc2', WIDTH, MLP),
    }
  return draw(shapes)


LS, GAMMAS = ('ls1.gamma', 'ls2.gamma'), ('gamma_1', 'gamma_2')
MASK = {'mask_token': np.ones((1, WIDTH), np.float32)}
# What files of each kind hold, and the dialect that we take it for.
FILES = {
  'timm': (timm(), 'timm'),
  'timm, no position for tokens': (timm(rows=0), 'timm'),
  'timm, registers with positions': (timm(rows=4, registers=3), 'timm'),
  'timm, map pooling': (timm_map(), 'timm'),
  'MAE, fine-tuned': (timm_gap(), 'timm'),
  'DINO': (timm(head=False), 'timm'),
  'DeiT III': (timm(rows=0, scales=GAMMAS), 'deit3'),
  'DINOv2': (timm(scales=LS, head=False) | MASK, 'dinov2'),
  'DINOv2, registers': (
    timm(scales=LS, head=False, registers=3, register_name='register_tokens')
    | MASK,
    'dinov2',
  ),
  'HF ViT': (hf_vit(), 'huggingface_vit'),
  'HF DINOv2': (hf_dinov2(), 'huggingface_dinov2'),
  'HF DINOv2, registers': (
    hf_dinov2('dinov2_with_registers', registers=3),
    'huggingface_dinov2',
  ),
  'HF SigLIP': (hf_siglip(), 'huggingface_siglip'),
}


def read(tmp_path, arrays, **options):
  path = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file(arrays, path)
  return state_dict.read(path, **dict(model=HEADS_OF) | options)


def bits(arrays):
  return {k: (a.dtype.name, a.shape, a.tobytes()) for k, a in arrays.items()}


# Rows of position tables go into tokens, and no mask token is kept.
TOKENS = re.compile(r'.*(token.?|pos_embed|embeddings)')


def but_tokens(arrays):
  return bits({k: a for k, a in arrays.items() if not TOKENS.fullmatch(k)})


@pytest.mark.parametrize('kind', FILES)
def test_a_round_trip_is_exact_name_by_name(kind, tmp_path):
  arrays, dialect = FILES[kind]
  weights = read(tmp_path, arrays)
  assert weights.source['dialect'] == dialect
  back = mapping.write(
    trees.flatten(weights.params),
    DIALECTS[dialect],
    pooling=weights.model.get('pooling', 'token'),
  )
  first = ('vit.', 'dinov2.', 'dinov2_with_registers.', 'vision_model.')
  prefix = next((p for p in first if p in next(iter(arrays))), '')
  arrays = {name.removeprefix(prefix): x for name, x in arrays.items()}
  assert but_tokens(back) == but_tokens(arrays)
  again = read(tmp_path, back)
  assert again.source['dialect'] == dialect
  assert bits(again.params) == bits(weights.params)


@pytest.mark.parametrize(
  ('kind', 'method'),
  [
    ('DINOv2', 'dino'),
    # Trained with antialiasing and without DINO's offset.
    ('DINOv2, registers', 'timm'),
    ('HF DINOv2', 'torch'),
    ('HF DINOv2, registers', 'timm'),
  ],
)
def test_registers_say_how_dinov2_resizes_positions(kind, method, tmp_path):
  arrays, _ = FILES[kind]
  assert read(tmp_path, arrays).source['resize'] == method


@pytest.mark.parametrize(
  'kind, format',
  [
    (kind, 'huggingface' if dialect.startswith('hugging') else 'timm')
    for kind, (_, dialect) in FILES.items()
    if dialect not in ('deit3', 'dinov2')
  ],
)
def test_a_file_is_written_as_it_was_read(kind, format, tmp_path):
  arrays, _ = FILES[kind]
  model = HEADS_OF | dict(norm_epsilon=1e-6)
  weights = read(tmp_path, arrays, model=model)
  catalog.save(weights, tmp_path / 'out', format=format)
  again = safetensors.numpy.load_file(tmp_path / 'out/model.safetensors')
  assert but_tokens(again) == but_tokens(arrays)
  assert bits(state_dict.read(tmp_path / 'out').params) == bits(weights.params)


@pytest.mark.parametrize('format', ['timm', 'huggingface'])
@pytest.mark.parametrize('target', ['out', 'out.safetensors'])
def test_a_folder_and_a_single_file_give_the_same_model_back(
  target, format, make_weights, tmp_path
):
  rounding = ", rounding='even'" if format == 'timm' else ''
  preprocess = dict(
    image_size=(32, 32),
    ops="decode|resize_small(36, method='bicubic', rounding='down')"
    f'|central_crop(32{rounding})',
    device_ops="normalize('imagenet')",
  )
  weights = make_weights(
    pooling='token',
    activation='gelu_tanh',
    norm_epsilon=1e-5,
    preprocess=preprocess,
  )
  weights = dataclasses.replace(weights, class_names=list('abcde'))
  catalog.save(weights, tmp_path / target, format=format)
  again = state_dict.read(tmp_path / target)
  assert bits(trees.flatten(again.params)) == bits(
    trees.flatten(weights.params)
  )
  assert again.preprocess == weights.preprocess
  assert again.class_names == weights.class_names
  for key in ('width', 'num_heads', 'pooling', 'num_classes'):
    assert again.model[key] == weights.model[key]
  assert again.model['activation'] == 'gelu_tanh'
  assert again.model['norm_epsilon'] == 1e-5


def test_rows_of_the_position_table_go_into_the_tokens(tmp_path):
  arrays = timm(rows=4, registers=3)
  params = read(tmp_path, arrays).params
  rows = arrays['pos_embed'][:, :4]
  np.testing.assert_array_equal(
    params['class_token'], arrays['cls_token'] + rows[:, :1]
  )
  np.testing.assert_array_equal(
    params['registers'], arrays['reg_token'] + rows[:, 1:]
  )
  np.testing.assert_array_equal(
    params['position_embedding'].reshape(GRID**2, WIDTH),
    arrays['pos_embed'][0, 4:],
  )


def test_a_changed_class_token_is_written_with_a_row_of_zeros(tmp_path):
  weights = read(tmp_path, hf_vit())
  weights.params['class_token'] = weights.params['class_token'] + 1
  catalog.save(weights, tmp_path / 'out', format='huggingface')
  again = safetensors.numpy.load_file(tmp_path / 'out/model.safetensors')
  np.testing.assert_array_equal(
    again['vit.embeddings.cls_token'], weights.params['class_token']
  )
  row = again['vit.embeddings.position_embeddings'][0, 0]
  np.testing.assert_array_equal(row, np.zeros(WIDTH))


def test_an_unread_class_token_becomes_a_register(tmp_path):
  weights = read(tmp_path, timm_gap())
  assert weights.model['pooling'] == 'mean'
  assert weights.model['final_norm'] == 'features'
  assert weights.model['num_registers'] == 1
  assert 'class_token' not in weights.params


def test_an_unwanted_head_is_left_out(tmp_path):
  model = HEADS_OF | dict(num_classes=None)
  weights = read(tmp_path, timm(), model=model)
  assert weights.model['num_classes'] is None
  assert 'head/kernel' not in weights.params


def test_a_fixed_position_table_is_written_out(make_weights, tmp_path):
  weights = make_weights(position='sincos2d_moco')
  catalog.save(weights, tmp_path / 'out', format='huggingface')
  again = state_dict.read(tmp_path / 'out')
  assert again.model.get('position', 'learned') == 'learned'
  assert np.ptp(again.params['position_embedding']) > 1
