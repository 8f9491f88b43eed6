"""Inference at another resolution: positions, host ops, error texts."""

import dataclasses

import jax
import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.inference import image_size
from vit_jax.pretrained import initialize
from vit_jax.pretrained.formats import vit_jax as ours


@pytest.fixture
def file(tiny_weights, tmp_path):
  """Returns the path of a ViT/8 for images of 16x16."""
  weights = tiny_weights()
  ops = 'decode|resize_small(20)|central_crop(16)'
  weights = dataclasses.replace(
    weights,
    preprocess=weights.preprocess | dict(ops=ops),
    source=dict(resize='torch'),
  )
  ours.write(weights, tmp_path / 'tiny.safetensors')
  return tmp_path / 'tiny.safetensors'


def test_a_model_for_larger_images_is_the_one_that_init_from_makes(file):
  image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
  lines = []
  model = vit_jax.load(file, image_size=(24, 32), on_log=lines.append)
  assert 'positions 3x4' in lines[-1], lines
  module = lookup.build('models', model.config, 'Model')
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 24, 32, 3), 'f4')
  )
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  filled = initialize.initialize(zeros, [dict(weights=str(file))])
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(model.params),
    jax.device_get(filled['params']),
  )
  # Nothing else changed on the way from an image to the model.
  prepared = model.prepare(image)
  assert prepared.shape == (24, 32, 3)
  outputs = jax.jit(module.apply)(filled, prepared[None])
  found = model(image)
  for name, value in outputs.items():
    np.testing.assert_allclose(found[name], value[0], atol=2e-5, err_msg=name)


def test_the_same_size_changes_nothing(file):
  photo = PIL.Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
  )
  plain, same = vit_jax.load(file), vit_jax.load(file, image_size=16)
  assert same.weights.preprocess == plain.weights.preprocess
  np.testing.assert_array_equal(plain(photo)['logits'], same(photo)['logits'])


@pytest.mark.parametrize(
  ('ops', 'size', 'expected'),
  [
    (
      'decode|resize_small(256)|central_crop(224)',
      (384, 384),
      'decode|resize_small(439)|central_crop(384)',
    ),
    (
      "decode|resize(248, method='bicubic')|central_crop(size=(224, 224))",
      (384, 384),
      "decode|resize(425, method='bicubic')|central_crop(384)",
    ),
    ('decode|resize(224)', (96, 128), 'decode|resize((96, 128))'),
    (
      'decode|resize_small(40)|central_crop(32)',
      (32, 64),
      'decode|resize_small(80)|central_crop((32, 64))',
    ),
    ('decode|flip_lr', (64, 64), 'decode|flip_lr|resize(64)'),
    ('', (64, 64), 'resize(64)'),
  ],
)
def test_sizes_in_ops_change_in_proportion(ops, size, expected):
  assert image_size.resized_ops(ops, size) == expected


@pytest.mark.parametrize(
  ('size', 'words'),
  [
    (20, ['image_size=20', 'patches of 8x8', 'nearest sizes are 16 and 24']),
    ((16, 3), ['image_size=(16, 3)', 'sizes are (16, 8)']),
    (0, ['image_size=0', 'a number of pixels']),
    (24.5, ['image_size=24.5', 'a number of pixels']),
    ((8, 8, 8), ['image_size=(8, 8, 8)']),
  ],
)
def test_sizes_that_the_patches_do_not_divide_are_named(file, size, words):
  with pytest.raises(UserError) as error:
    vit_jax.load(file, image_size=size)
  for word in words:
    assert word in str(error.value)


def test_ops_of_the_user_stay_as_they_are(file):
  ops = 'decode|resize((24, 24))'  # A resized one would have 24 alone.
  model = vit_jax.load(file, image_size=24, ops=ops)
  assert model.weights.preprocess['ops'] == ops
  assert model.params['position_embedding'].shape[:2] == (3, 3)
