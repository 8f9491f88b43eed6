"""Google's .npz files in and out, against a forward pass of their own."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from vit_jax.pretrained.formats import npz

# As in the fixture google_file.
WIDTH, DEPTH, PATCH = 24, 2, 8
SIDE = 4  # Of the grid of patches.
OLD = 'Transformer/posembed_input/pos_embedding'


BIG_VISION = dict(
  prefix='params/', numbers=(0, 1, 0), position='pos_embedding', class_row=False
)
FILES = {
  'pre_linen': {},
  'pre_logits': dict(pre_logits=True),
  'gap': dict(class_token=False, class_row=False, map_head=None),
  'linen': dict(numbers=(0, 1, 0)),
  'optimizer': dict(prefix='opt/target/'),
  'big_vision': BIG_VISION,
  'big_vision_old': BIG_VISION
  | dict(position='Transformer/pos_embedding', class_row=True),
  'map': BIG_VISION | dict(class_token=False, map_head='MAPHead_0/'),
  'map_inlined': BIG_VISION | dict(class_token=False, map_head=''),
  'tower': BIG_VISION
  | dict(class_token=False, map_head='MAPHead_0/', prefix='params/img/'),
  'stacked': BIG_VISION | dict(stacked=True),
  'sincos': BIG_VISION
  | dict(class_token=False, map_head=None, position='', pre_logits=True),
  'bfloat16': BIG_VISION | dict(dtype=ml_dtypes.bfloat16),
  'bfloat16_row': dict(dtype=ml_dtypes.bfloat16),
}


@pytest.fixture(params=FILES)
def case(request, google_file, tmp_path):
  """Returns (settings, arrays, path) of each kind of file."""
  arrays = google_file(**FILES[request.param])
  np.savez(tmp_path / 'in.npz', **arrays)
  return FILES[request.param], arrays, tmp_path / 'in.npz'


def norm(x, params, name):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * params[f'{name}/scale'] + params[f'{name}/bias']


def dense(x, params, name):
  return x @ params[f'{name}/kernel'] + params[f'{name}/bias']


def mlp(x, params, name):
  x = dense(x, params, f'{name}/Dense_0')
  x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  return dense(x, params, f'{name}/Dense_1')


def attend(x, context, params, name):
  query, key, value = (
    np.einsum('ld,dnk->lnk', y, params[f'{name}/{part}/kernel'])
    + params[f'{name}/{part}/bias']
    for part, y in (('query', x), ('key', context), ('value', context))
  )
  logits = np.einsum('lnk,snk->nls', query, key) / np.sqrt(query.shape[-1])
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum('nls,snk->lnk', weights, value)
  out = np.einsum('lnk,nkd->ld', out, params[f'{name}/out/kernel'])
  return out + params[f'{name}/out/bias']


def google(arrays, settings, image):
  """Returns logits as vision_transformer and big_vision compute them."""
  settings = (
    dict(
      numbers=(1, 2, 3),
      position=OLD,
      class_token=True,
      class_row=True,
      map_head='',
      prefix='',
      stacked=False,
    )
    | settings
  )
  params = {
    name.removeprefix(settings['prefix']): array.astype(np.float64)
    for name, array in arrays.items()
  }
  cut = image.reshape(SIDE, PATCH, SIDE, PATCH, 3).swapaxes(1, 2)
  kernel = params['embedding/kernel'].reshape(-1, WIDTH)
  x = cut.reshape(SIDE**2, -1) @ kernel + params['embedding/bias']
  if settings['position']:
    table = params[settings['position']][0]
  else:
    table = big_vision_sincos()
  if settings['class_token'] and settings['class_row']:
    x = np.concatenate([params['cls'][0], x]) + table
  else:
    x = x + table
    if settings['class_token']:
      x = np.concatenate([params['cls'][0], x])
  a, n, m = settings['numbers']
  for i in range(DEPTH):
    block, own = f'Transformer/encoderblock_{i}', params
    if settings['stacked']:
      block = 'Transformer/encoderblock'
      own = {k: v[i] for k, v in params.items() if k.startswith(f'{block}/')}
    y = norm(x, own, f'{block}/LayerNorm_0')
    x = x + attend(y, y, own, f'{block}/MultiHeadDotProductAttention_{a}')
    y = norm(x, own, f'{block}/LayerNorm_{n}')
    x = x + mlp(y, own, f'{block}/MlpBlock_{m}')
  x = norm(x, params, 'Transformer/encoder_norm')
  if settings['class_token']:
    x = x[:1]
  elif settings['map_head'] is None:
    x = x.mean(0, keepdims=True)
  else:
    head = settings['map_head']
    name = f'{head}MultiHeadDotProductAttention_0'
    x = attend(params[f'{head}probe'][0], x, params, name)
    x = x + mlp(
      norm(x, params, f'{head}LayerNorm_0'), params, f'{head}MlpBlock_0'
    )
  if settings.get('pre_logits'):
    x = np.tanh(dense(x, params, 'pre_logits'))
  return dense(x, params, 'head')


def big_vision_sincos():
  y, x = np.mgrid[:SIDE, :SIDE].reshape(2, -1, 1)
  omega = 10_000 ** -(np.arange(WIDTH // 4) / (WIDTH // 4 - 1))
  waves = [np.sin(x * omega), np.cos(x * omega)]
  return np.concatenate([*waves, np.sin(y * omega), np.cos(y * omega)], axis=1)


def test_the_read_model_computes_as_google_s_does(case, outputs):
  settings, arrays, path = case
  image = np.random.default_rng(1).uniform(-1, 1, (32, 32, 3))
  weights = npz.read(path)
  if weights.params['patch_embedding/kernel'].dtype != np.float32:
    params = jax.tree.map(lambda x: x.astype(np.float32), weights.params)
    weights = dataclasses.replace(weights, params=params)
  found = outputs(weights, image[None].astype(np.float32))['logits']
  np.testing.assert_allclose(
    found, google(arrays, settings, image), rtol=0, atol=2e-6
  )


def test_weights_read_can_be_written_and_read_again(case):
  """Rows of the position table that were for tokens are zeros then."""
  _, _, path = case
  weights = npz.read(path)
  npz.write(weights, path.with_name('out.npz'))
  again = npz.read(path.with_name('out.npz')).params
  assert again.keys() == weights.params.keys()
  for name, array in weights.params.items():
    assert again[name].tobytes() == array.tobytes(), name
