"""A ViT entered between embedding and encoder, as self-supervision needs it."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import draws
from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models.vit import Model

IMAGE = np.random.default_rng(0).normal(size=(3, 32, 48, 3)).astype(np.float32)
B, L, D = 3, 6, 32


def _tiny(**overrides):
  """Returns a model of one block and random parameters, none of them zero."""
  model = Model('mu/16', 5, **overrides)
  return model, draws.params(model, IMAGE)['params']


def _apply(model, params, *args, method=None, **kwargs):
  def apply(params, args, kwargs):
    return model.apply({'params': params}, *args, method=method, **kwargs)

  return jax.jit(apply)(params, args, kwargs)


def _assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_keeping_every_patch_is_a_plain_call_to_the_bit():
  model, params = _tiny(num_registers=2)
  everything = np.tile(np.arange(L), (B, 1))
  # Operation by operation: a compiler may merge other ones in each program.
  variables = {'params': params}
  plain = model.apply(variables, IMAGE)
  _assert_equal(model.apply(variables, IMAGE, keep=everything), plain)


@pytest.mark.parametrize('pooling', ['token', 'map'])
def test_a_call_is_its_three_steps_to_the_bit(pooling):
  model, params = _tiny(pooling=pooling)

  def in_steps(params, image):
    variables = {'params': params}
    x = model.apply(variables, image, method='embed')
    x, _ = model.apply(variables, x, method='encode')
    return model.apply(variables, x, method='read_out')

  plain = _apply(model, params, IMAGE)
  _assert_equal(jax.jit(in_steps)(params, IMAGE), plain)


def test_kept_patches_have_their_own_content_and_position():
  model, params = _tiny(num_registers=2)
  tokens = _apply(model, params, IMAGE, method='embed')
  assert tokens.shape == (B, 3 + L, D)
  keep = np.array([[5, 0], [1, 1], [2, 4]])  # Of each image others.
  kept = model.apply({'params': params}, IMAGE, keep=keep, method='embed')
  np.testing.assert_allclose(kept[:, :3], tokens[:, :3], rtol=1e-5, atol=1e-5)
  for i in range(B):
    np.testing.assert_allclose(
      kept[i, 3:], tokens[i, 3 + keep[i]], rtol=1e-5, atol=1e-5
    )
  outputs = _apply(model, params, IMAGE, keep=keep)
  assert outputs['tokens'].shape == (B, 2, D)
  changed = IMAGE.copy()
  changed[0, :16, 16:32] += 1  # Patch 1 of image 0, which is dropped.
  _assert_equal(_apply(model, params, changed, keep=keep), outputs)


def test_a_mask_token_replaces_patches_but_not_their_positions():
  model, params = _tiny()
  masked = np.zeros((B, L), bool)
  masked[0, 4] = masked[2, :] = True
  token = np.arange(D, dtype=np.float32)
  plain = _apply(model, params, IMAGE, method='embed')
  found = model.apply(
    {'params': params}, IMAGE, masked=masked, mask_token=token, method='embed'
  )
  table = params['position_embedding'].reshape(1, L, D)
  expected = np.where(masked[:, :, None], token + table, plain[:, 1:])
  np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-5, atol=1e-5)


class Mae(nn.Module):
  """A miniature masked autoencoder (https://arxiv.org/abs/2111.06377)."""

  def setup(self):
    self.encoder = Model('mu/16', position='sincos2d_moco')
    self.decoder = nn.Dense(16 * 16 * 3)

  def __call__(self, image, keep):
    x_BKD = self.encoder.embed(image, keep=keep)
    x_BKD, _ = self.encoder.encode(x_BKD)
    return self.decoder(x_BKD[:, 1:])


def test_a_masked_autoencoder_trains_on_the_patches_it_keeps():
  model = Mae()
  patches = IMAGE.reshape(B, 2, 16, 3, 16, 3).swapaxes(2, 3).reshape(B, L, -1)
  params = jax.jit(model.init)(jax.random.key(0), IMAGE, np.zeros((B, 2), int))
  # Neither pooling nor a head is part of it.
  names = set(trees.flatten(params['params']['encoder']))
  assert {n.split('/')[0] for n in names} == {
    'class_token',
    'encoder',
    'patch_embedding',
  }

  def loss(params, image, key):
    order = jax.random.permutation(
      key, jnp.tile(jnp.arange(L), (B, 1)), axis=1, independent=True
    )
    keep = order[:, :2]
    target = jnp.take_along_axis(patches, keep[:, :, None], axis=1)
    return ((model.apply(params, image, keep) - target) ** 2).mean(), keep

  @jax.jit
  def step(params, key):
    grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, keep), (gradient, of_image) = grad(params, IMAGE, key)
    new = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
    return new, value, keep, gradient, of_image

  losses = []
  for i in range(30):
    params, value, keep, gradient, of_image = step(params, jax.random.key(i))
    losses.append(float(value))
  assert losses[-1] < 0.7 * losses[0], losses
  for name, leaf in trees.flatten(gradient).items():
    if not name.endswith('key/bias'):  # Softmax does not see it.
      assert np.abs(leaf).max() > 0, name
  # No gradient reaches the pixels of a patch that was dropped.
  of_patch = np.asarray(of_image).reshape(B, 2, 16, 3, 16, 3)
  of_patch = np.abs(of_patch).max(axis=(2, 4, 5)).reshape(B, L)
  kept = np.zeros((B, L), bool)
  np.put_along_axis(kept, np.asarray(keep), True, axis=1)
  np.testing.assert_array_equal(of_patch > 0, kept)


def test_a_mask_token_is_learned_where_it_is_put():
  model, params = _tiny()
  masked = np.arange(L)[None] < np.array([[1], [2], [0]])

  def loss(mask_token, image):
    outputs = model.apply(
      {'params': params}, image, masked=masked, mask_token=mask_token
    )
    return (outputs['tokens'] ** 2 * masked[:, :, None]).sum()

  gradient, of_image = jax.jit(jax.grad(loss, argnums=(0, 1)))(
    jnp.zeros(D), IMAGE
  )
  assert np.abs(gradient).min() > 0
  # The masked patches' own pixels do not matter.
  np.testing.assert_array_equal(of_image[0, :16, :16], 0)
  assert np.abs(of_image[0, 16:]).max() > 0


@pytest.mark.parametrize('pooling', ['token', 'mean', 'map'])
def test_a_padded_image_pools_like_the_image(pooling):
  model, params = _tiny(pooling=pooling, position='sincos2d', num_registers=1)
  patch_mask = np.zeros((B, 2, 3), bool)
  patch_mask[:, :, :2] = True  # The last column of patches is padding.
  masked = _apply(model, params, IMAGE, patch_mask=patch_mask.reshape(B, L))
  plain = _apply(model, params, IMAGE[:, :, :32])
  for name in ('features', 'logits', 'prefix_tokens'):
    np.testing.assert_allclose(masked[name], plain[name], atol=2e-6)
  # With both, the mask is that of all patches and the rest is gathered.
  keep = np.tile(np.array([4, 2, 0, 1]), (B, 1))
  kept = _apply(
    model, params, IMAGE, patch_mask=patch_mask.reshape(B, L), keep=keep
  )
  part = _apply(model, params, IMAGE, keep=keep[:, [0, 2, 3]])
  np.testing.assert_allclose(kept['features'], part['features'], atol=2e-6)


def test_block_outputs_hold_all_tokens_of_the_chosen_blocks():
  model, params = _tiny(depth=2, num_registers=1)
  plain = jax.eval_shape(model.apply, {'params': params}, IMAGE)
  assert 'block_outputs' not in plain
  apply = jax.jit(lambda p: model.apply({'params': p}, IMAGE, blocks=(0, -1)))
  outputs = apply(params)
  assert outputs['block_outputs'].shape == (B, 2, 2 + L, D)
  last = outputs['block_outputs'][:, 1]
  norm = params['encoder']['norm']
  last = (last - last.mean(-1, keepdims=True)) / np.sqrt(
    last.var(-1, keepdims=True) + 1e-6
  )
  last = last * norm['scale'][None, None] + norm['bias'][None, None]
  np.testing.assert_allclose(last[:, 2:], outputs['tokens'], atol=1e-5)


@pytest.mark.parametrize(
  'options, words',
  [
    (dict(keep=np.zeros((B, 2))), ['keep', 'integers [3, K]', 'float']),
    (dict(keep=np.zeros(2, int)), ['keep', 'of shape (2,)']),
    (dict(keep=np.zeros((1, 2), int)), ['keep', 'of shape (1, 2)']),
    (dict(keep=np.full((B, 2), L)), ['keep', '0 to 5', 'got 6 to 6']),
    (dict(keep=np.full((B, 2), -1)), ['keep', '0 to 5', 'got -1 to -1']),
    (dict(masked=np.zeros((B, L), bool)), ['masked and mask_token']),
    (
      dict(masked=np.zeros((B, 2), bool), mask_token=np.zeros(D)),
      ['booleans [3, 6]', '(3, 2)'],
    ),
    (
      dict(masked=np.zeros((B, L), bool), mask_token=np.zeros(7)),
      ['expected 32 numbers', '(7,)'],
    ),
  ],
)
def test_wrong_ways_to_change_tokens_are_named(options, words):
  with pytest.raises(UserError) as error:
    Model('mu/16').init(jax.random.key(0), IMAGE, **options)
  for word in words:
    assert word in str(error.value)


def test_the_calls_in_the_docs_work():
  docs = pathlib.Path(__file__).parents[2] / 'docs' / 'models.md'
  (code,) = re.findall(r'```python\n(apply = .*?)```', docs.read_text(), re.S)
  module = Model('mu/16', 5, depth=12, scan=True)
  shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGE)['params']
  names = dict(
    module=module,
    image=IMAGE,
    keep=np.zeros((B, 2), int),
    masked=np.ones((B, L), bool),
    token=np.zeros(D),
    mask=np.ones((B, L), bool),
    attention_mask=np.ones((1, 1, 1, 1 + L), bool),
    bias=np.zeros((1, 2, 1 + L, 1 + L), np.float32),
  )

  def run(params):
    exec(code, names | dict(params=params), found := {})
    return found['outputs']

  # Traced, which finds every mistake in names and shapes.
  assert jax.eval_shape(run, shapes)['logits'].shape == (B, 5)
