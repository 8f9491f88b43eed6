"""Reading and writing of the config.json of a timm model.

timm keeps the architecture's name there, constructor arguments that differ from
that architecture, and the preprocessing. What an architecture's name means is
in timm's code: the table here has what our ViT must know of it and the arrays
do not show.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import json_fields, mapping
from vit_jax.pretrained.evaluation import Facts, pair
from vit_jax.pretrained.formats import timm
from vit_jax.pretrained.names import _vit_arrays, _vit_torch
from vit_jax.pretrained.weights import Weights

DEFAULTS = {'activation': 'gelu', 'norm_epsilon': 1e-6}
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_tanh': 'gelu_tanh',
  'quick_gelu': 'gelu_quick',
}
_POOLINGS = {'token': 'token', 'avg': 'mean', 'map': 'map'}

_FIELDS = {
  'embed_dim': 'width',
  'depth': 'depth',
  'num_heads': 'num_heads',
  'init_values': 'layer_scale',
}
_ARGUMENTS = {
  **dict.fromkeys(_FIELDS, json_fields.POSITIVE),
  **dict.fromkeys(('act_layer', 'global_pool'), json_fields.TEXT),
  'img_size': json_fields.SIDE_OR_SIDES,
}
_CONFIG = {
  **dict.fromkeys(('architecture', 'global_pool'), json_fields.TEXT),
  **dict.fromkeys(('pretrained_cfg', 'model_args'), json_fields.OBJECT),
}
# The first of these whose regex matches an architecture's name is used.
_ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
  (r'vit_.*quickgelu_.*', dict(activation='gelu_quick', norm_epsilon=1e-5)),
  (r'vit_.*_clip_.*', dict(norm_epsilon=1e-5)),
  # Those that timm gives the GELU of the code that trained them.
  (
    r'vit_(base_patch32_siglip(_gap)?_256|large_patch16_siglip(_gap)?_512'
    r'|so400m_patch16_siglip.*|giantopt_patch16_siglip.*)',
    dict(activation='gelu_tanh'),
  ),
  # Where heads do not have 64 channels.
  (r'vit_base_patch16_gap_224', dict(num_heads=16)),
  (r'test_vit2?', dict(num_heads=2)),
  (r'test_vit[34]', dict(num_heads=3)),
)
# Models with blocks that are not ours, though some have the same names, and
# arguments that make such models.
_OTHER_BLOCKS = (
  (r'.*_rpn_.*', 'norms after attention and MLP'),
  (r'.*_xp_.*|.*(pwee|pd?little|dpwee|dwee|dlittle).*', 'parallel blocks'),
)
_OTHER_ARGUMENTS = (
  'block_fn mlp_layer attn_layer embed_layer norm_layer pre_norm'
  ' pool_include_prefix'
).split()


def read(config: Mapping[str, Any]) -> Facts:
  """Returns what a timm config.json says."""
  json_fields.check(config, _CONFIG, 'config.json')
  name = config.get('architecture') or ''
  arguments = config.get('model_args') or {}
  evaluation = config.get('pretrained_cfg') or config
  json_fields.check(arguments, _ARGUMENTS, 'model_args in config.json')
  json_fields.check(evaluation, _CONFIG, 'pretrained_cfg in config.json')
  preprocess = timm.read_preprocessing(evaluation)
  _check_supported(name, arguments)
  model = dict(DEFAULTS)
  model |= next((v for k, v in _ARCHITECTURES if re.fullmatch(k, name)), {})
  model |= json_fields.rename(arguments, _FIELDS)
  if (activation := arguments.get('act_layer')) is not None:
    model['activation'] = json_fields.choose(
      activation, ACTIVATIONS, 'act_layer'
    )
  pools = [c.get('global_pool') for c in (arguments, config, evaluation)]
  if pool := next(filter(None, pools), None):
    model['pooling'] = json_fields.choose(pool, _POOLINGS, 'global_pool')
  size = arguments.get('img_size') or evaluation.get('input_size')
  names = config.get('label_names', evaluation.get('label_names'))
  return Facts(
    model=model,
    image_size=None if size is None else pair(size)[-2:],
    preprocess=preprocess,
    class_names=json_fields.class_names(names, 'label_names in config.json'),
  )


def write(
  weights: Weights, model: vit.ViT
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the state dict, and JSON files by name without suffix."""
  named, image_size = _vit_arrays.for_torch(
    weights, model, "timm's ViT", positions=model.position != 'none'
  )
  _check_writable(model)
  theirs = mapping.write(named, _vit_torch.TIMM, pooling=model.pooling)
  channels = theirs['patch_embed.proj.weight'].shape[1]
  activations = {ours: name for name, ours in ACTIVATIONS.items()}
  arguments = dict(
    {theirs: getattr(model, ours) for theirs, ours in _FIELDS.items()},
    img_size=list(image_size),
    patch_size=list(model.patch_size),
    in_chans=channels,
    mlp_ratio=_ratio(model.mlp_dim, model.width),
    qkv_bias=model.qkv_bias,
    qk_norm=model.qk_norm,
    class_token='cls_token' in theirs,
    reg_tokens=theirs.get('reg_token', np.zeros((1, 0))).shape[1],
    pos_embed='learn' if 'pos_embed' in theirs else 'none',
    no_embed_class='pos_embed' in theirs,  # Its rows are patches.
    global_pool={v: k for k, v in _POOLINGS.items()}[model.pooling],
    fc_norm=model.final_norm == 'features',
    act_layer=activations[model.activation],
    pre_norm=False,
  )
  # The one way to say another epsilon is another architecture.
  clip = model.norm_epsilon == 1e-5
  config = dict(
    architecture='vit_base_patch16_' + ('clip_224' if clip else '224'),
    num_classes=model.num_classes or 0,
    num_features=model.width,
    global_pool=arguments['global_pool'],
    model_args={k: v for k, v in arguments.items() if v is not None},
    pretrained_cfg=timm.write_preprocessing(
      weights.preprocess, channels, image_size
    )
    | dict(
      num_classes=model.num_classes or 0,
      fixed_input_size=True,
      pool_size=None,
      first_conv='patch_embed.proj',
      classifier='head',
    ),
  )
  if weights.class_names is not None:
    config['label_names'] = weights.class_names
  return theirs, dict(config=config)


def _check_writable(model: vit.ViT) -> None:
  """Raises UserError for options that timm's ViT does not have."""
  problems = []
  if model.pooling not in _POOLINGS.values():
    problems.append(f'pooling={model.pooling!r}')
  if model.representation_size:
    problems.append(f'representation_size={model.representation_size}')
  if model.head_hidden_dim and model.num_classes:
    problems.append(f'head_hidden_dim={model.head_hidden_dim}')
  if model.norm_epsilon not in (1e-6, 1e-5):
    problems.append(
      f'norm_epsilon={model.norm_epsilon:g} (timm knows 1e-6 and 1e-5; give'
      " model={'norm_epsilon': 1e-6} when loading, if so small a difference"
      ' does not matter)'
    )
  if problems:
    raise UserError(
      "timm's VisionTransformer cannot express " + ', '.join(problems)
    )


def _check_supported(name: str, arguments: Mapping[str, Any]) -> None:
  for pattern, what in _OTHER_BLOCKS:
    if re.fullmatch(pattern, name):
      raise UserError(f'{name} has {what}, which models/vit.py does not have')
  unknown = [k for k in _OTHER_ARGUMENTS if arguments.get(k)]
  if unknown:
    raise UserError(
      f'{name}: models/vit.py has nothing like the model_args {unknown}'
    )


def _ratio(mlp_dim: int, width: int) -> float:
  """Returns the ratio with which timm's int(width * ratio) is the MLP's."""
  ratio = mlp_dim / width
  while int(width * ratio) < mlp_dim:
    ratio = math.nextafter(ratio, math.inf)
  return ratio
