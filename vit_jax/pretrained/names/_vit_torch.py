"""Names for a ViT in the state dicts of timm, Meta and Hugging Face."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained.names._dialect import Dialect

_BLOCK = 'encoder/block_*'
_QUERY, _KEY, _VALUE = (
  f'{_BLOCK}/attention/{part}' for part in ('query', 'key', 'value')
)

# What MAE and DINO train beside the encoder, whose names are timm's.
MAE_DECODER = r'(.*\.)?decoder_(embed|pos_embed|blocks|norm|pred)(\..*)?'
DINO_HEAD = r'(.*\.)?head\.(mlp|last_layer)\..*'

TIMM = Dialect(
  name='timm',
  class_token='cls_token',
  registers='reg_token',
  position='pos_embed',
  position_rows='all',
  layers={
    'patch_embed.proj': 'patch_embedding',
    'blocks.*.norm1': f'{_BLOCK}/norm_attention',
    'blocks.*.attn.qkv': (_QUERY, _KEY, _VALUE),
    'blocks.*.attn.q_norm': f'{_BLOCK}/attention/query_norm',
    'blocks.*.attn.k_norm': f'{_BLOCK}/attention/key_norm',
    'blocks.*.attn.proj': f'{_BLOCK}/attention/out',
    'blocks.*.norm2': f'{_BLOCK}/norm_mlp',
    'blocks.*.mlp.fc1': f'{_BLOCK}/mlp/up',
    'blocks.*.mlp.fc2': f'{_BLOCK}/mlp/down',
    'norm': 'encoder/norm',
    'attn_pool.q': 'pooling/attention/query',
    'attn_pool.kv': ('pooling/attention/key', 'pooling/attention/value'),
    'attn_pool.proj': 'pooling/attention/out',
    'attn_pool.norm': 'pooling/norm',
    'attn_pool.mlp.fc1': 'pooling/mlp/up',
    'attn_pool.mlp.fc2': 'pooling/mlp/down',
    'fc_norm': 'norm',
    'pre_logits.fc': 'representation',  # Until timm 0.5.
  },
  leaves={
    'blocks.*.ls1.gamma': f'{_BLOCK}/scale_attention',
    'blocks.*.ls2.gamma': f'{_BLOCK}/scale_mlp',
    'attn_pool.latent': 'pooling/probe',
  },
  head='head',
  zeros={
    'blocks.*.attn.q_norm.bias': 'blocks.*.attn.q_norm.weight',
    'blocks.*.attn.k_norm.bias': 'blocks.*.attn.k_norm.weight',
  },
  # Perhaps behind `module.`, as in DistributedDataParallel.
  unused=(
    r'(.*\.)?mask_token',
    MAE_DECODER,
    DINO_HEAD,
    r'(.*\.)?(dino|ibot)_head\..*',  # DINOv2.
  ),
)

DEIT3 = dataclasses.replace(
  TIMM,
  name='deit3',
  leaves={
    'blocks.*.gamma_1': f'{_BLOCK}/scale_attention',
    'blocks.*.gamma_2': f'{_BLOCK}/scale_mlp',
  },
)

DINOV2 = dataclasses.replace(
  TIMM,
  name='dinov2',
  registers='register_tokens',
  position_rows='class',
  mask_token='mask_token',
)

_HUGGINGFACE = {
  'embeddings.patch_embeddings.projection': 'patch_embedding',
  'encoder.layer.*.attention.attention.query': _QUERY,
  'encoder.layer.*.attention.attention.key': _KEY,
  'encoder.layer.*.attention.attention.value': _VALUE,
  'encoder.layer.*.attention.output.dense': f'{_BLOCK}/attention/out',
  'layernorm': 'encoder/norm',
}

HUGGINGFACE_VIT = Dialect(
  name='huggingface_vit',
  class_token='embeddings.cls_token',
  position='embeddings.position_embeddings',
  layers=_HUGGINGFACE
  | {
    'encoder.layer.*.layernorm_before': f'{_BLOCK}/norm_attention',
    'encoder.layer.*.layernorm_after': f'{_BLOCK}/norm_mlp',
    'encoder.layer.*.intermediate.dense': f'{_BLOCK}/mlp/up',
    'encoder.layer.*.output.dense': f'{_BLOCK}/mlp/down',
    'pooler.dense': 'representation',
  },
  leaves={},
  head='classifier',
  unused=(
    r'(.*\.)?embeddings\.mask_token',
    r'(.*\.)?decoder\..*',  # ViTMAEForPreTraining, ViTForMaskedImageModeling.
  ),
)

HUGGINGFACE_DINOV2 = dataclasses.replace(
  HUGGINGFACE_VIT,
  name='huggingface_dinov2',
  registers='embeddings.register_tokens',
  layers=_HUGGINGFACE
  | {
    'encoder.layer.*.norm1': f'{_BLOCK}/norm_attention',
    'encoder.layer.*.norm2': f'{_BLOCK}/norm_mlp',
    'encoder.layer.*.mlp.fc1': f'{_BLOCK}/mlp/up',
    'encoder.layer.*.mlp.fc2': f'{_BLOCK}/mlp/down',
  },
  leaves={
    'encoder.layer.*.layer_scale1.lambda1': f'{_BLOCK}/scale_attention',
    'encoder.layer.*.layer_scale2.lambda1': f'{_BLOCK}/scale_mlp',
  },
  head_reads=('token', 'mean'),
  mask_token='embeddings.mask_token',
)

HUGGINGFACE_SIGLIP = Dialect(
  name='huggingface_siglip',
  position='embeddings.position_embedding.weight',
  position_rows='none',
  layers={
    'embeddings.patch_embedding': 'patch_embedding',
    'encoder.layers.*.layer_norm1': f'{_BLOCK}/norm_attention',
    'encoder.layers.*.self_attn.q_proj': _QUERY,
    'encoder.layers.*.self_attn.k_proj': _KEY,
    'encoder.layers.*.self_attn.v_proj': _VALUE,
    'encoder.layers.*.self_attn.out_proj': f'{_BLOCK}/attention/out',
    'encoder.layers.*.layer_norm2': f'{_BLOCK}/norm_mlp',
    'encoder.layers.*.mlp.fc1': f'{_BLOCK}/mlp/up',
    'encoder.layers.*.mlp.fc2': f'{_BLOCK}/mlp/down',
    'post_layernorm': 'encoder/norm',
    'head.attention.out_proj': 'pooling/attention/out',
    'head.layernorm': 'pooling/norm',
    'head.mlp.fc1': 'pooling/mlp/up',
    'head.mlp.fc2': 'pooling/mlp/down',
  },
  leaves={
    'head.probe': 'pooling/probe',
    'head.attention.in_proj_weight': tuple(
      f'pooling/attention/{part}/kernel' for part in ('query', 'key', 'value')
    ),
    'head.attention.in_proj_bias': tuple(
      f'pooling/attention/{part}/bias' for part in ('query', 'key', 'value')
    ),
  },
  head='classifier',
  unused=(
    r'(.*\.)?text_model\..*',
    r'(.*\.)?logit_(scale|bias)',
    r'.*position_ids',
  ),
)

# What models have that models/vit.py cannot express, and how to see it.
_UNSUPPORTED = {
  r'(.*\.)?(dist_token|head_dist\..*|.*distillation_token)': (
    'a distillation token and its head (distilled DeiT)'
  ),
  r'.*\.mlp\.(w12|w1|w2|w3|weights_in|weights_out|fc1_g)\..*': (
    'a gated MLP (SwiGLU: DINOv2 giant, EVA-02)'
  ),
  r'(.*\.)?(norm_pre|pre_layrnorm|ln_pre)\..*': (
    'a norm before the blocks (CLIP)'
  ),
  r'(.*\.)?(relative_position_bias_table|q_bias|v_bias)': (
    'relative positions, or query and value biases alone (BEiT)'
  ),
  r'.*\.?rope\..*': 'rotary positions',
  r'(.*\.)?layers\.\d+\.blocks\..*': 'windows (Swin)',
  r'(.*\.)?patch_embed\.backbone\..*': 'a convolutional stem (hybrid)',
}


def detect(arrays: Mapping[str, np.ndarray]) -> tuple[Dialect, str] | None:
  """Returns the dialect of a state dict and the prefix of its names.

  None if it is not a ViT.
  """
  names = list(arrays)
  for pattern, what in _UNSUPPORTED.items():
    seen = [name for name in names if re.fullmatch(pattern, name)]
    if seen:
      raise UserError(
        f'these weights are of a model with {what}, which models/vit.py does '
        f'not have: {", ".join(seen[:3])}'
      )
  _check_mlp(arrays)
  for dialect in (HUGGINGFACE_SIGLIP, HUGGINGFACE_VIT, TIMM):
    found = [
      name for name in names if f'.{name}'.endswith(f'.{dialect.anchor}')
    ]
    if len(found) > 1:
      raise UserError(
        'these weights hold more than one model, and entry= says which to '
        'read (--entry= on the command line): '
        f'{", ".join(found)}'
      )
    if found:
      prefix = found[0].removesuffix(dialect.anchor)
      inside = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
      return _refine(dialect, inside), prefix
  return None


def _refine(dialect: Dialect, names: list[str]) -> Dialect:
  """Returns which of the dialects with the same anchor it is."""

  def has(pattern):
    return any(re.fullmatch(pattern, name) for name in names)

  if dialect is HUGGINGFACE_VIT:
    # Both have attention.attention; their norms differ.
    is_vit = has(r'encoder\.layer\.\d+\.layernorm_before\.weight')
    return HUGGINGFACE_VIT if is_vit else HUGGINGFACE_DINOV2
  if dialect is TIMM and has(r'blocks\.\d+\.gamma_1'):
    return DEIT3
  if dialect is TIMM and (
    'register_tokens' in names or (has('mask_token') and has(r'.*\.ls1\.gamma'))
  ):
    return DINOV2
  return dialect


def _check_mlp(arrays) -> None:
  """Raises UserError for timm's packed SwiGLU, which has the plain names."""
  for name, up in arrays.items():
    if name.endswith('blocks.0.mlp.fc1.weight'):
      down = arrays.get(name.replace('fc1', 'fc2'))
      two = np.ndim(down) == np.ndim(up) == 2  # Or else it is an error later.
      if two and down.shape[1] * 2 == len(up):
        raise UserError(
          'these weights are of a model with a gated MLP (SwiGLU: DINOv2'
          f' giant), which models/vit.py does not have: {name} {up.shape}'
        )
