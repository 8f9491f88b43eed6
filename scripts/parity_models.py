"""Models of timm and transformers for the parity measurements.

They are small, have 12 layers, and random weights that are larger than an
initializer would draw them, so that no bias, scale or position is zero.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

WIDTH, DEPTH, HEADS, MLP, CLASSES, REGISTERS, PATCH = 96, 12, 3, 192, 5, 4, 8
SQUARE, WIDE = (32, 32), (24, 40)
HUGGINGFACE = dict(
  hidden_size=WIDTH,
  num_hidden_layers=DEPTH,
  num_attention_heads=HEADS,
  intermediate_size=MLP,
  image_size=SQUARE[0],
  patch_size=PATCH,
  num_labels=CLASSES,
  layer_norm_eps=1e-6,
  attn_implementation='eager',
)
TIMM = dict(
  img_size=SQUARE,
  patch_size=PATCH,
  embed_dim=WIDTH,
  depth=DEPTH,
  num_heads=HEADS,
  mlp_ratio=MLP / WIDTH,
  num_classes=CLASSES,
)


@dataclasses.dataclass(frozen=True)
class Case:
  """One model of theirs.

  Attributes:
    source: who trains such models.
    what: what is particular about this one.
    build: returns the torch model, or `(model, state dict as published)`.
    image_size: (height, width).
    targets: the formats that can express it.
  """

  source: str
  what: str
  build: Callable[[], Any]
  image_size: tuple[int, int] = SQUARE
  targets: tuple[str, ...] = ('timm', 'huggingface')

  @property
  def library(self) -> str:
    return 'transformers' if self.source.startswith('HF') else 'timm'


def randomize(model):
  """Returns a torch model with all its parameters drawn anew."""
  import torch

  generator = torch.Generator().manual_seed(0)
  for name, p in model.named_parameters():
    noise = torch.randn(p.shape, generator=generator)
    center = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
    # Kernels such that activations keep their size, and all else visible.
    scale = p.shape[-1] ** -0.5 if p.ndim == 2 else 0.1
    p.data = center + scale * noise
  for name, p in model.named_parameters():
    if name.endswith(('q_norm.bias', 'k_norm.bias')):
      p.data.zero_()  # Ours has none.
  return model.eval()


def huggingface(name: str, **overrides):
  """Returns what builds a model of transformers."""

  def build():
    import transformers

    options = HUGGINGFACE | overrides
    if name.startswith('Siglip'):
      config = transformers.SiglipVisionConfig(**options)
      if name == 'SiglipForImageClassification':
        config = transformers.SiglipConfig(
          vision_config=config.to_dict() | {'vision_use_head': False},
          num_labels=CLASSES,
        )
    else:
      if name.startswith('Dinov2'):
        options['mlp_ratio'] = options.pop('intermediate_size') / WIDTH
      family = name.removesuffix('Model').removesuffix('ForImageClassification')
      config = getattr(transformers, f'{family}Config')(**options)
    config._attn_implementation = 'eager'
    return randomize(getattr(transformers, name)(config))

  return build


def timm_model(architecture: str = 'vit_base_patch16_224', **overrides):
  """Returns what builds a model of timm."""

  def build():
    import timm

    return randomize(timm.create_model(architecture, **TIMM | overrides))

  return build


def published(build, publish: Callable[[dict], Any], **filter_options):
  """Returns what builds a timm model and a checkpoint of its first authors.

  Args:
    build: makes the timm model.
    publish: from timm's state dict to what the authors' file holds.
    **filter_options: of timm's function that reads such files. The model gets
      its weights through it, so that timm says what the file means.
  """

  def build_both():
    import timm

    model = build()
    checkpoint = publish(dict(model.state_dict()))
    state = checkpoint.get('teacher', checkpoint)
    state = {k.removeprefix('module.backbone.'): v for k, v in state.items()}
    state = timm.models.vision_transformer.checkpoint_filter_fn(
      state, model, **filter_options
    )
    known = set(model.state_dict())
    model.load_state_dict({k: v for k, v in state.items() if k in known})
    return model, checkpoint

  return build_both


def _as_deit3(state: Mapping[str, Any]) -> dict[str, Any]:
  names = {'ls1.gamma': 'gamma_1', 'ls2.gamma': 'gamma_2'}
  return {_replace(k, names): v for k, v in state.items()}


def _as_dino(state: Mapping[str, Any]) -> dict[str, Any]:
  teacher = {f'module.backbone.{k}': v for k, v in state.items()}
  teacher['module.head.mlp.0.weight'] = state['cls_token'][0]
  return dict(teacher=teacher, student=dict(teacher), epoch=3)


def _as_dinov2(state: Mapping[str, Any]) -> dict[str, Any]:
  """The position table has a row for the class token and none for registers."""
  import torch

  row = torch.full_like(state['cls_token'], 0.25)
  table = torch.cat([row, state['pos_embed']], dim=1)
  state = {**state, 'pos_embed': table, 'mask_token': row[0]}
  return {
    _replace(k, {'reg_token': 'register_tokens'}): v for k, v in state.items()
  }


def _as_mae(state: Mapping[str, Any]) -> dict[str, Any]:
  return {**state, 'decoder_norm.weight': state['norm.weight'][:8]}


def _replace(name: str, names: Mapping[str, str]) -> str:
  for old, new in names.items():
    name = name.replace(old, new)
  return name


CASES = (
  Case('HF ViT', 'token, head', huggingface('ViTForImageClassification')),
  Case(
    'HF ViT',
    '24x40 px, no qkv bias, tanh GELU, epsilon 1e-5',
    huggingface(
      'ViTForImageClassification',
      image_size=WIDE,
      qkv_bias=False,
      hidden_act='gelu_pytorch_tanh',
      layer_norm_eps=1e-5,
    ),
    image_size=WIDE,
  ),
  Case(
    'HF ViT',
    'pooler (pre-logits), epsilon 1e-12',
    huggingface('ViTModel', layer_norm_eps=1e-12),
    targets=('huggingface',),
  ),
  Case(
    'HF ViTMAE', 'encoder, no mask', huggingface('ViTMAEModel', mask_ratio=0.0)
  ),
  Case('HF SigLIP', 'mean, head', huggingface('SiglipForImageClassification')),
  Case('HF SigLIP', 'map pooling', huggingface('SiglipVisionModel')),
  Case('HF DINOv2', 'LayerScale', huggingface('Dinov2Model')),
  Case(
    'HF DINOv2',
    'registers, LayerScale',
    huggingface('Dinov2WithRegistersModel', num_register_tokens=REGISTERS),
    targets=('timm', 'huggingface'),
  ),
  Case('timm ViT', 'token', timm_model()),
  Case(
    'timm ViT',
    '24x40 px, quick GELU, no qkv bias',
    timm_model(img_size=WIDE, act_layer='quick_gelu', qkv_bias=False),
    image_size=WIDE,
  ),
  Case(
    'timm ViT',
    'mean of tokens, norm before',
    timm_model(class_token=False, global_pool='avg', fc_norm=False),
  ),
  Case(
    'timm ViT',
    'registers, mean, norm after, LayerScale',
    timm_model(
      class_token=False,
      reg_tokens=REGISTERS,
      no_embed_class=True,
      global_pool='avg',
      init_values=1e-5,
    ),
    targets=('timm',),
  ),
  Case(
    'timm ViT',
    'registers with positions, token',
    timm_model(reg_tokens=REGISTERS),
  ),
  Case(
    'timm ViT',
    'map pooling',
    timm_model(class_token=False, global_pool='map', num_classes=0),
  ),
  Case(
    'timm ViT',
    'norms of query and key',
    timm_model(qk_norm=True),
    targets=('timm',),
  ),
  Case('DeiT', 'token', timm_model('deit_tiny_patch16_224')),
  Case(
    'DeiT III',
    'LayerScale',
    published(
      timm_model('deit3_small_patch16_224'), _as_deit3, adapt_layer_scale=True
    ),
  ),
  Case(
    'DINO',
    'no head',
    published(timm_model(num_classes=0), _as_dino),
  ),
  Case(
    'DINOv2',
    'LayerScale, registers',
    published(
      timm_model(
        num_classes=0,
        reg_tokens=REGISTERS,
        no_embed_class=True,
        init_values=1.0,
      ),
      _as_dinov2,
    ),
  ),
  Case(
    'MAE', 'encoder with decoder', published(timm_model(num_classes=0), _as_mae)
  ),
  Case(
    'MAE',
    'fine-tuned: class token unread, mean, norm after',
    timm_model(global_pool='avg'),
    targets=('timm',),
  ),
)
