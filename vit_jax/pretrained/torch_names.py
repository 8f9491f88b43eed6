"""Which of our names is which name of a torch state dict: the tables.

A dialect is what one code base calls the parts of a ViT. Its tables list every
name there is, so that they can be read both ways; `*` is the number of a block.
A layer has a weight and, mostly, a bias. Where the other side keeps several of
our layers in one array, ours are a tuple, in the order of that array's rows.
"""

import dataclasses
from collections.abc import Mapping

Names = str | tuple[str, ...]

_BLOCK = 'encoder/block_*'
_QUERY, _KEY, _VALUE = (
  f'{_BLOCK}/attention/{part}' for part in ('query', 'key', 'value')
)


@dataclasses.dataclass(frozen=True)
class Dialect:
  """How one code base names the parameters of a ViT.

  Attributes:
    name: 'timm', 'huggingface_vit', ...
    class_token, registers, position: names of arrays that `torch_arrays` reads
      together, because positions may have rows for tokens; '' for none.
    position_rows: which tokens the position table has rows for: 'all' or none
      of them, as the file has it; the 'class' token; or 'none'.
    layers: their layers to ours.
    leaves: their single arrays to ours.
    head: their layer of the classifier.
    head_reads: what the classifier reads, one after the other.
    zeros: arrays that they have and we do not, so that they must be zero, and
      the array that they are as long as.
    mask_token: the array for masked patches of training, where their model has
      one in any case; '' where it has none.
    unused: names of what is no part of the encoder: regexes, on whole names.
  """

  name: str
  class_token: str
  registers: str
  position: str
  layers: Mapping[str, Names]
  leaves: Mapping[str, Names]
  head: str
  position_rows: str = 'class'
  head_reads: tuple[str, ...] = ()
  zeros: Mapping[str, str] = dataclasses.field(default_factory=dict)
  mask_token: str = ''
  unused: tuple[str, ...] = ()

  @property
  def anchor(self) -> str:
    """A name that every file of this dialect has, after any prefix."""
    patches = next(k for k, v in self.layers.items() if v == 'patch_embedding')
    return f'{patches}.weight'


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

HUGGINGFACE_VIT = Dialect(
  name='huggingface_vit',
  class_token='embeddings.cls_token',
  registers='',
  position='embeddings.position_embeddings',
  layers={
    'embeddings.patch_embeddings.projection': 'patch_embedding',
    'encoder.layer.*.layernorm_before': f'{_BLOCK}/norm_attention',
    'encoder.layer.*.attention.attention.query': _QUERY,
    'encoder.layer.*.attention.attention.key': _KEY,
    'encoder.layer.*.attention.attention.value': _VALUE,
    'encoder.layer.*.attention.output.dense': f'{_BLOCK}/attention/out',
    'encoder.layer.*.layernorm_after': f'{_BLOCK}/norm_mlp',
    'encoder.layer.*.intermediate.dense': f'{_BLOCK}/mlp/up',
    'encoder.layer.*.output.dense': f'{_BLOCK}/mlp/down',
    'layernorm': 'encoder/norm',
    'pooler.dense': 'representation',
  },
  leaves={},
  head='classifier',
  unused=(
    r'(.*\.)?embeddings\.mask_token',
    r'(.*\.)?decoder\..*',  # ViTMAEForPreTraining, ViTForMaskedImageModeling.
  ),
)

HUGGINGFACE_DINOV2 = Dialect(
  name='huggingface_dinov2',
  class_token='embeddings.cls_token',
  registers='embeddings.register_tokens',
  position='embeddings.position_embeddings',
  layers={
    'embeddings.patch_embeddings.projection': 'patch_embedding',
    'encoder.layer.*.norm1': f'{_BLOCK}/norm_attention',
    'encoder.layer.*.attention.attention.query': _QUERY,
    'encoder.layer.*.attention.attention.key': _KEY,
    'encoder.layer.*.attention.attention.value': _VALUE,
    'encoder.layer.*.attention.output.dense': f'{_BLOCK}/attention/out',
    'encoder.layer.*.norm2': f'{_BLOCK}/norm_mlp',
    'encoder.layer.*.mlp.fc1': f'{_BLOCK}/mlp/up',
    'encoder.layer.*.mlp.fc2': f'{_BLOCK}/mlp/down',
    'layernorm': 'encoder/norm',
  },
  leaves={
    'encoder.layer.*.layer_scale1.lambda1': f'{_BLOCK}/scale_attention',
    'encoder.layer.*.layer_scale2.lambda1': f'{_BLOCK}/scale_mlp',
  },
  head='classifier',
  head_reads=('token', 'mean'),
  mask_token='embeddings.mask_token',
)

HUGGINGFACE_SIGLIP = Dialect(
  name='huggingface_siglip',
  class_token='',
  registers='',
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

DIALECTS = {
  dialect.name: dialect
  for dialect in (
    TIMM,
    DEIT3,
    DINOV2,
    HUGGINGFACE_VIT,
    HUGGINGFACE_DINOV2,
    HUGGINGFACE_SIGLIP,
  )
}


def expand(dialect: Dialect, depth: int) -> dict[str, tuple[str, ...]]:
  """Returns `{their name: our names}` of every array but tokens and positions.

  The names are without prefix. Optional parts of a model are included.
  """
  pairs = dict(dialect.leaves)
  for theirs, ours in (dialect.layers | {dialect.head: 'head'}).items():
    for kind in ('weight', 'bias'):
      if f'{theirs}.{kind}' not in dialect.zeros:
        pairs[f'{theirs}.{kind}'] = _of_layer(ours, kind)
  expanded = {}
  for theirs, ours in pairs.items():
    ours = (ours,) if isinstance(ours, str) else ours
    for i in range(depth if '*' in theirs else 1):
      numbered = tuple(name.replace('*', f'{i:02d}') for name in ours)
      expanded[theirs.replace('*', str(i))] = numbered
  return expanded


def _of_layer(ours: Names, kind: str) -> Names:
  if isinstance(ours, tuple):
    return tuple(_of_layer(name, kind) for name in ours)
  if kind == 'weight':
    is_norm = 'norm' in ours.split('/')[-1]
    kind = 'scale' if is_norm else 'kernel'
  return f'{ours}/{kind}'
