"""Which dialect the names of a torch state dict are in."""

import re
from collections.abc import Mapping

import numpy as np

from vit_jax.errors import UserError
from vit_jax.pretrained.torch_names import (
  DEIT3,
  DINOV2,
  HUGGINGFACE_DINOV2,
  HUGGINGFACE_SIGLIP,
  HUGGINGFACE_VIT,
  TIMM,
  Dialect,
)

# What models have that models/vit.py cannot express, and how to see it.
_UNSUPPORTED = (
  (
    r'(.*\.)?(dist_token|head_dist\..*|.*distillation_token)',
    'a distillation token and its head (distilled DeiT)',
  ),
  (
    r'.*\.mlp\.(w12|w1|w2|w3|weights_in|weights_out|fc1_g)\..*',
    'a gated MLP (SwiGLU: DINOv2 giant, EVA-02)',
  ),
  (
    r'(.*\.)?(norm_pre|pre_layrnorm|ln_pre)\..*',
    'a norm before the blocks (CLIP)',
  ),
  (
    r'(.*\.)?(relative_position_bias_table|q_bias|v_bias)',
    'relative positions, or query and value biases alone (BEiT)',
  ),
  (r'.*\.?rope\..*', 'rotary positions'),
  (r'(.*\.)?layers\.\d+\.blocks\..*', 'windows (Swin)'),
  (r'(.*\.)?patch_embed\.backbone\..*', 'a convolutional stem (hybrid)'),
)


def detect(arrays: Mapping[str, np.ndarray]) -> tuple[Dialect, str]:
  """Returns the dialect that a state dict is in, and the prefix of its names.

  Raises:
    UserError: the names are of no known dialect, of a model that our ViT is
      not, or of two models at once.
  """
  names = list(arrays)
  for pattern, what in _UNSUPPORTED:
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
  raise UserError(
    'these are not the weights of a ViT by timm, DeiT, DINO, DINOv2, MAE or '
    f'Hugging Face: no {TIMM.anchor} or {HUGGINGFACE_VIT.anchor} among '
    f'{", ".join(names[:5])}, ...'
  )


def _refine(dialect: Dialect, names: list[str]) -> Dialect:
  """Returns which of the dialects with the same anchor it is."""

  def has(pattern):
    return any(re.fullmatch(pattern, name) for name in names)

  if dialect is HUGGINGFACE_VIT:
    # Both say attention.attention; the norms tell them apart.
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
  for name, array in arrays.items():
    if name.endswith('blocks.0.mlp.fc1.weight'):
      down = arrays.get(name.replace('fc1', 'fc2'))
      if np.ndim(down) != 2 or np.ndim(array) != 2:
        continue  # Told later, with all that does not fit.
      if down.shape[1] * 2 == len(array):
        raise UserError(
          'these weights are of a model with a gated MLP (SwiGLU: DINOv2'
          f' giant), which models/vit.py does not have: {name} {array.shape}'
        )
