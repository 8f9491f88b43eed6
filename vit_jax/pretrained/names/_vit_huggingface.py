"""Reading and writing of the config.json of a Hugging Face model.

Their models that a ViT of ours can be: ViT (class token), SigLIP's vision tower
(mean and map pooling) and DINOv2 (registers and LayerScale).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import json_fields, mapping
from vit_jax.pretrained.evaluation import Facts, pair
from vit_jax.pretrained.formats import huggingface
from vit_jax.pretrained.names import _vit_arrays, _vit_torch
from vit_jax.pretrained.names._dialect import Dialect
from vit_jax.pretrained.weights import Weights

ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
  'quick_gelu': 'gelu_quick',
}
_FIELDS = {
  'hidden_size': 'width',
  'num_hidden_layers': 'depth',
  'num_attention_heads': 'num_heads',
  'intermediate_size': 'mlp_dim',
  'layer_norm_eps': 'norm_epsilon',
  'layerscale_value': 'layer_scale',
}
_ARCHITECTURES = {
  'vit': 'ViT',
  'dinov2': 'Dinov2',
  'dinov2_with_registers': 'Dinov2WithRegisters',
  'siglip_vision_model': 'SiglipVision',
}
# What transformers assumes where a config says nothing.
DEFAULTS = {
  'vit': dict(activation='gelu', norm_epsilon=1e-12),
  'vit_mae': dict(activation='gelu', norm_epsilon=1e-12),
  'dinov2': dict(activation='gelu', norm_epsilon=1e-6),
  'dinov2_with_registers': dict(activation='gelu', norm_epsilon=1e-6),
  'siglip_vision_model': dict(activation='gelu_tanh', norm_epsilon=1e-6),
}
_CONFIG = {
  **dict.fromkeys(_FIELDS, json_fields.POSITIVE),
  **dict.fromkeys(('model_type', 'hidden_act', 'pooler_act'), json_fields.TEXT),
  'num_channels': json_fields.SIZE,
  'image_size': json_fields.SIDE_OR_SIDES,
  'use_swiglu_ffn': json_fields.FLAG,
  'vision_config': json_fields.OBJECT,
}


def read(
  config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None
) -> Facts:
  """Returns what the two JSON files of a model's folder say."""
  json_fields.check(config, _CONFIG, 'config.json')
  names = json_fields.class_names(
    config.get('id2label'), 'id2label in config.json'
  )
  if names == [f'LABEL_{i}' for i in range(len(names or ()))]:
    names = None
  kind = config.get('model_type')
  if kind == 'siglip':
    config, kind = config.get('vision_config') or {}, 'siglip_vision_model'
    json_fields.check(config, _CONFIG, 'vision_config in config.json')
  model = json_fields.choose(kind, DEFAULTS, 'model_type')
  model = model | json_fields.rename(config, _FIELDS)
  if config.get('use_swiglu_ffn'):
    raise UserError('use_swiglu_ffn: models/vit.py has no gated MLP')
  json_fields.choose(
    config.get('pooler_act') or 'tanh', {'tanh': 'tanh'}, 'pooler_act'
  )
  if (activation := config.get('hidden_act')) is not None:
    model['activation'] = json_fields.choose(
      activation, ACTIVATIONS, 'hidden_act'
    )
  size = config.get('image_size')
  return Facts(
    model=model,
    image_size=None if size is None else pair(size),
    preprocess=huggingface.read_preprocessor(
      preprocessor or {}, channels=config.get('num_channels') or 3
    ),
    class_names=names,
  )


def write(
  weights: Weights, model: vit.ViT
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the state dict, and JSON files by name without suffix."""
  named, image_size = _vit_arrays.for_torch(
    weights, model, "Hugging Face's ViT", positions=True
  )
  dialect, kind = _choose(model)
  channels = named['patch_embedding/kernel'].shape[2]
  theirs = mapping.write(_complete(named, kind), dialect, pooling=model.pooling)
  config = _config(model, kind, channels, image_size, weights.class_names)
  configs = dict(config=config)
  if {'ops', 'device_ops'} <= weights.preprocess.keys():
    configs['preprocessor_config'] = huggingface.write_preprocessor(
      weights.preprocess, channels, image_size
    )
  prefix = f'{kind}.' if model.num_classes else ''
  if kind == 'siglip_vision_model':
    prefix = 'vision_model.'
  outside = (f'{dialect.head}.weight', f'{dialect.head}.bias')
  theirs = {k if k in outside else prefix + k: v for k, v in theirs.items()}
  return theirs, configs


def _choose(model: vit.ViT) -> tuple[Dialect, str]:
  """Returns the dialect to write a model in, and its model_type."""
  plain = model.layer_scale is None and not model.num_registers
  problems = []
  if model.qk_norm:
    problems.append('qk_norm')
  if model.final_norm != 'tokens':
    problems.append(f'final_norm={model.final_norm!r}')
  if model.pooling == 'none':
    problems.append("pooling='none'")
  if model.pooling == 'map' and not plain:
    problems.append("pooling='map' with registers or layer_scale")
  if model.pooling == 'map' and model.num_classes:
    problems.append("pooling='map' with a head")
  if model.pooling == 'mean' and not plain and not model.num_registers:
    problems.append("pooling='mean' with layer_scale and no registers")
  is_vit = model.pooling == 'token' and plain
  if model.representation_size and (model.num_classes or not is_vit):
    problems.append('representation_size, but in a ViT without a head')
  if model.head_hidden_dim and model.num_classes:
    problems.append(f'head_hidden_dim={model.head_hidden_dim}')
  if model.patch_size[0] != model.patch_size[1] and not is_vit:
    problems.append(f'patch_size={model.patch_size} in other models than ViT')
  if problems:
    raise UserError('transformers has no model with ' + '; '.join(problems))
  if is_vit:
    return _vit_torch.HUGGINGFACE_VIT, 'vit'
  if plain:
    return _vit_torch.HUGGINGFACE_SIGLIP, 'siglip_vision_model'
  if model.num_registers > (model.pooling == 'mean'):
    return _vit_torch.HUGGINGFACE_DINOV2, 'dinov2_with_registers'
  return _vit_torch.HUGGINGFACE_DINOV2, 'dinov2'


def _complete(
  ours: Mapping[str, np.ndarray], kind: str
) -> dict[str, np.ndarray]:
  """Returns arrays with those that `kind` has and that change nothing."""
  added = {}
  for name, array in ours.items():
    layer, _, leaf = name.rpartition('/')
    block = layer.removesuffix('/norm_mlp')
    if kind.startswith('dinov2') and leaf == 'scale' and block != layer:
      for scale in ('scale_attention', 'scale_mlp'):
        added[f'{block}/{scale}'] = np.ones(len(array), np.float32)
    if kind == 'siglip_vision_model' and leaf == 'kernel':
      if layer.endswith(('/query', '/key', '/value')):
        added[f'{layer}/bias'] = np.zeros(array.shape[1:], np.float32)
  return added | ours


def _config(
  model: vit.ViT, kind: str, channels: int, image_size, class_names
) -> dict[str, Any]:
  """Returns the config.json with which `from_pretrained` builds the model."""
  if kind != 'vit' and image_size[0] != image_size[1]:
    raise UserError(
      f"transformers' {kind} takes square images only; the position table is"
      f' for {image_size[0]}x{image_size[1]}: resample it first'
    )
  activations = {ours: name for name, ours in reversed(ACTIVATIONS.items())}
  config = dict(
    {k: getattr(model, ours) for k, ours in _FIELDS.items()},
    model_type=kind,
    hidden_act=activations[model.activation],
    image_size=_square(image_size),
    patch_size=_square(model.patch_size),
    num_channels=channels,
    torch_dtype='float32',
  )
  if kind.startswith('dinov2'):
    del config['intermediate_size']
    config |= dict(
      mlp_ratio=model.mlp_dim / model.width,
      qkv_bias=model.qkv_bias,
      layerscale_value=model.layer_scale or 1.0,
    )
    if kind == 'dinov2_with_registers':
      registers = model.num_registers - (model.pooling == 'mean')
      config['num_register_tokens'] = registers
  else:
    del config['layerscale_value']
  if kind == 'vit':
    config['qkv_bias'] = model.qkv_bias
    if model.representation_size:
      size = model.representation_size
      config['pooler_output_size'] = model.width if size is True else size
  if kind == 'siglip_vision_model':
    config['vision_use_head'] = model.pooling == 'map'
    if model.num_classes:
      config = dict(model_type='siglip', vision_config=config, text_config={})
  name = _ARCHITECTURES[kind]
  config['architectures'] = [f'{name}Model']
  if model.num_classes:
    name = name.removesuffix('Vision')
    config['architectures'] = [f'{name}ForImageClassification']
    names = class_names or [f'LABEL_{i}' for i in range(model.num_classes)]
    config['id2label'] = {str(i): name for i, name in enumerate(names)}
    config['label2id'] = {name: i for i, name in enumerate(names)}
  return config


def _square(size: tuple[int, int]) -> int | list[int]:
  return size[0] if size[0] == size[1] else list(size)
