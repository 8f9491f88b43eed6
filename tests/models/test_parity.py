"""The ViT against transformers' models, in eager torch, at random weights.

Weights are drawn in torch, larger than an initializer would draw them, so that
no bias, scale or position is zero; both models then get the same images. Where
there are gradients the blocks are scanned, which compiles in a fifth of the
time.
"""

import jax
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.models.vit import Model

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

DEPTH, WIDTH, HEADS, MLP, CLASSES, REGISTERS = 12, 96, 3, 192, 5, 4
SHAPE = dict(width=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_dim=MLP)

# Two float32 sums of the same numbers in different order differ by some units
# of the last place: 1e-5 absolute at features of size 1 to 5.
FORWARD_TOLERANCE = 1e-5
# A gradient adds up over images, tokens and classes, so that its errors scale
# with the largest entry of the array that it is for.
GRADIENT_TOLERANCE = 1e-5


def vit(image_size, patch_size):
  config = transformers.ViTConfig(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=MLP,
    image_size=image_size,
    patch_size=patch_size,
    num_labels=CLASSES,
    hidden_act='gelu',
    layer_norm_eps=1e-6,
    attn_implementation='eager',
  )
  return _randomize(transformers.ViTForImageClassification(config))


def dinov2(image_size, patch_size):
  config = transformers.Dinov2WithRegistersConfig(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    mlp_ratio=MLP // WIDTH,
    image_size=image_size,
    patch_size=patch_size,
    num_register_tokens=REGISTERS,
    hidden_act='gelu',
    layer_norm_eps=1e-6,
    attn_implementation='eager',
  )
  return _randomize(transformers.Dinov2WithRegistersModel(config))


def siglip(image_size, patch_size):
  config = transformers.SiglipVisionConfig(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=MLP,
    image_size=image_size,
    patch_size=patch_size,
    hidden_act='gelu_pytorch_tanh',
    layer_norm_eps=1e-6,
    attn_implementation='eager',
  )
  return _randomize(transformers.SiglipVisionModel(config))


def _randomize(model):
  generator = torch.Generator().manual_seed(0)
  for name, p in model.named_parameters():
    noise = torch.randn(p.shape, generator=generator)
    center = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
    # Kernels such that activations keep their size, and all else visible.
    scale = p.shape[-1] ** -0.5 if p.ndim == 2 else 0.1
    p.data = center + scale * noise
  return model.eval()


# The names of one block, ours to theirs, for the three models.
VIT_BLOCK = {
  'norm_attention': 'layernorm_before',
  'norm_mlp': 'layernorm_after',
  'attention/query': 'attention.attention.query',
  'attention/key': 'attention.attention.key',
  'attention/value': 'attention.attention.value',
  'attention/out': 'attention.output.dense',
  'mlp/up': 'intermediate.dense',
  'mlp/down': 'output.dense',
}
DINOV2_BLOCK = VIT_BLOCK | {
  'norm_attention': 'norm1',
  'norm_mlp': 'norm2',
  'mlp/up': 'mlp.fc1',
  'mlp/down': 'mlp.fc2',
}
SIGLIP_BLOCK = {
  'norm_attention': 'layer_norm1',
  'norm_mlp': 'layer_norm2',
  'attention/query': 'self_attn.q_proj',
  'attention/key': 'self_attn.k_proj',
  'attention/value': 'self_attn.v_proj',
  'attention/out': 'self_attn.out_proj',
  'mlp/up': 'mlp.fc1',
  'mlp/down': 'mlp.fc2',
}


def _ours(name, array):
  """Returns a torch weight in the shape of our leaf `name`."""
  heads = (HEADS, WIDTH // HEADS)
  if name.endswith('kernel'):
    if array.ndim == 4:
      return array.transpose(2, 3, 1, 0)
    array = array.T
    if name.split('/')[-2] in ('query', 'key', 'value'):
      return array.reshape(WIDTH, *heads)
    if name.endswith('attention/out/kernel'):
      return array.reshape(*heads, WIDTH)
  if name.split('/')[-2] in ('query', 'key', 'value'):
    return array.reshape(heads)
  return array


def _layers(theirs, to, names):
  """Returns our leaves for {our layer: their layer}."""
  named = {}
  for ours, other in names.items():
    for leaf in ('kernel', 'scale', 'bias'):
      is_norm = 'norm' in ours
      if leaf == ('kernel' if is_norm else 'scale'):
        continue
      array = theirs[f'{other}.{"bias" if leaf == "bias" else "weight"}']
      named[f'{to}{ours}/{leaf}'] = _ours(f'{to}{ours}/{leaf}', array)
  return named


def _blocks(theirs, prefix, block):
  named = {}
  for i in range(DEPTH):
    names = {k: f'{prefix}.{i}.{v}' for k, v in block.items()}
    named |= _layers(theirs, f'encoder/block_{i:02d}/', names)
  return named


def vit_params(theirs, grid, pooling, fold=True):
  """Returns our parameters; or gradients, where there is nothing to fold."""
  theirs = {k.removeprefix('vit.'): v for k, v in theirs.items()}
  named = _blocks(theirs, 'encoder.layer', VIT_BLOCK)
  named |= _layers(
    theirs,
    '',
    {
      'patch_embedding': 'embeddings.patch_embeddings.projection',
      'encoder/norm': 'layernorm',
      'head': 'classifier',
    },
  )
  return _stack(named | _tokens(theirs, grid, pooling, fold))


def dinov2_params(theirs, grid, pooling, fold=True):
  named = _blocks(theirs, 'encoder.layer', DINOV2_BLOCK)
  for i in range(DEPTH):
    for ours, other in (('attention', '1'), ('mlp', '2')):
      scale = theirs[f'encoder.layer.{i}.layer_scale{other}.lambda1']
      named[f'encoder/block_{i:02d}/scale_{ours}'] = scale
  names = {
    'patch_embedding': 'embeddings.patch_embeddings.projection',
    'encoder/norm': 'layernorm',
  }
  named |= _layers(theirs, '', names)
  named['registers'] = theirs['embeddings.register_tokens']
  return _stack(named | _tokens(theirs, grid, pooling, fold))


def _stack(named):
  """Returns the leaves with those of all blocks stacked, as a scan has them."""
  first, stacked = 'encoder/block_00/', {}
  for name, leaf in named.items():
    if name.startswith(first):
      rest = name.removeprefix(first)
      layers = [named[f'encoder/block_{i:02d}/{rest}'] for i in range(DEPTH)]
      stacked[f'encoder/blocks/{rest}'] = np.stack(layers)
    elif not name.startswith('encoder/block_'):
      stacked[name] = leaf
  return trees.unflatten(stacked)


def _tokens(theirs, grid, pooling, fold):
  table = theirs['embeddings.position_embeddings']
  named = {'position_embedding': table[0, 1:].reshape(*grid, WIDTH)}
  if pooling == 'token':
    row = table[:, :1] if fold else 0
    named['class_token'] = theirs['embeddings.cls_token'] + row
  return named


def siglip_params(theirs, grid):
  theirs = {k.removeprefix('vision_model.'): v for k, v in theirs.items()}
  named = _blocks(theirs, 'encoder.layers', SIGLIP_BLOCK)
  for kind in ('weight', 'bias'):
    parts = np.split(theirs.pop(f'head.attention.in_proj_{kind}'), 3)
    for name, part in zip(('q', 'k', 'v'), parts, strict=True):
      theirs[f'head.attention.{name}.{kind}'] = part
  named |= _layers(
    theirs,
    '',
    {
      'patch_embedding': 'embeddings.patch_embedding',
      'encoder/norm': 'post_layernorm',
      'pooling/attention/query': 'head.attention.q',
      'pooling/attention/key': 'head.attention.k',
      'pooling/attention/value': 'head.attention.v',
      'pooling/attention/out': 'head.attention.out_proj',
      'pooling/norm': 'head.layernorm',
      'pooling/mlp/up': 'head.mlp.fc1',
      'pooling/mlp/down': 'head.mlp.fc2',
    },
  )
  named['pooling/probe'] = theirs['head.probe']
  table = theirs['embeddings.position_embedding.weight']
  named['position_embedding'] = table.reshape(*grid, WIDTH)
  return trees.unflatten(named)


def torch_tokens(model, image, pooling):
  """Returns all tokens after the final norm, from transformers' modules."""
  backbone = getattr(model, 'vit', model)
  if pooling == 'token':
    return backbone(image).last_hidden_state
  # Their models always have a class token; ours with 'mean' have none.
  embeddings = backbone.embeddings
  x = embeddings.patch_embeddings(image) + embeddings.position_embeddings[:, 1:]
  if hasattr(embeddings, 'register_tokens'):
    registers = embeddings.register_tokens.expand(len(x), -1, -1)
    x = torch.cat([registers, x], dim=1)
  return backbone.layernorm(backbone.encoder(x).last_hidden_state)


def _arrays(named):
  return {k: v.detach().numpy() for k, v in named if v is not None}


def _assert_equal_to_torch(model, params_of, jax_model, pooling, image, grid):
  """Compares tokens, features and gradients of both models."""
  num_prefix = jax_model.num_registers + (pooling == 'token')
  their_image = torch.tensor(image.transpose(0, 3, 1, 2), requires_grad=True)
  their_tokens = torch_tokens(model, their_image, pooling)
  if pooling == 'token':
    their_features = their_tokens[:, 0]
  else:
    their_features = their_tokens[:, num_prefix:].mean(dim=1)
  their_out = their_features
  if jax_model.num_classes:
    their_out = model.classifier(their_features)
  weights = np.random.default_rng(2).normal(size=their_out.shape)
  weights = weights.astype(np.float32)
  (their_out * torch.tensor(weights)).sum().backward()

  def loss(params, image):
    outputs = jax_model.apply({'params': params}, image)
    out = outputs['logits' if jax_model.num_classes else 'features']
    return (out * weights).sum(), outputs

  params = params_of(_arrays(model.named_parameters()), grid, pooling)
  grads, outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
    params, image
  )
  close = dict(atol=FORWARD_TOLERANCE, rtol=0)
  tokens = their_tokens.detach().numpy()
  np.testing.assert_allclose(outputs['tokens'], tokens[:, num_prefix:], **close)
  if num_prefix:
    np.testing.assert_allclose(
      outputs['prefix_tokens'], tokens[:, :num_prefix], **close
    )
  features = their_features.detach().numpy()
  np.testing.assert_allclose(outputs['features'], features, **close)
  assert 0.5 < np.abs(tokens).mean() < 5  # the tolerance is for this size
  if jax_model.num_classes:
    logits = their_out.detach().numpy()
    np.testing.assert_allclose(outputs['logits'], logits, **close)

  their_grads = params_of(
    _arrays((k, p.grad) for k, p in model.named_parameters()),
    grid,
    pooling,
    fold=False,
  )
  their_image_grad = their_image.grad.numpy().transpose(0, 2, 3, 1)
  _assert_gradients_close(grads, (their_grads, their_image_grad))


def _assert_gradients_close(ours, theirs):
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  assert ours.keys() == theirs.keys()
  for name, theirs_one in theirs.items():
    # A key's bias moves all logits of a query alike: softmax cancels it.
    if name.endswith('key/bias'):
      assert np.abs(ours[name]).max() < 1e-4
      continue
    error = np.abs(np.asarray(ours[name]) - theirs_one).max()
    largest = np.abs(theirs_one).max()
    assert error <= GRADIENT_TOLERANCE * largest, (name, error, largest)


def _images(height, width):
  rng = np.random.default_rng(1)
  return rng.normal(size=(2, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize('pooling', ['token', 'mean'])
def test_values_and_gradients_equal_transformers_vit(pooling):
  model = vit(image_size=(24, 32), patch_size=8)
  ours = Model(
    'B/8', CLASSES, pooling=pooling, activation='gelu', scan=True, **SHAPE
  )
  _assert_equal_to_torch(
    model, vit_params, ours, pooling, _images(24, 32), (3, 4)
  )


@pytest.mark.parametrize('pooling', ['token', 'mean'])
def test_registers_and_layer_scale_equal_transformers_dinov2(pooling):
  model = dinov2(image_size=32, patch_size=8)
  ours = Model(
    'B/8',
    pooling=pooling,
    num_registers=REGISTERS,
    layer_scale=1.0,
    activation='gelu',
    scan=True,
    **SHAPE,
  )
  _assert_equal_to_torch(
    model, dinov2_params, ours, pooling, _images(32, 32), (4, 4)
  )


def test_map_pooling_and_tanh_gelu_equal_transformers_siglip():
  model, image = siglip(image_size=32, patch_size=8), _images(32, 32)
  ours = Model('B/8', pooling='map', **SHAPE)
  theirs = model(torch.tensor(image.transpose(0, 3, 1, 2)))
  params = siglip_params(_arrays(model.named_parameters()), (4, 4))
  outputs = jax.jit(ours.apply)({'params': params}, image)
  for name, expected in (
    ('tokens', theirs.last_hidden_state),
    ('features', theirs.pooler_output),
  ):
    np.testing.assert_allclose(
      outputs[name], expected.detach().numpy(), atol=FORWARD_TOLERANCE, rtol=0
    )
