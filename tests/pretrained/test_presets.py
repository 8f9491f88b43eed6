"""Evaluation settings of the families of models."""

import importlib
import pathlib

import numpy as np
import pytest

from vit_jax.data import device_ops_language, ops_language
from vit_jax.errors import UserError
from vit_jax.pretrained import presets

ROOT = pathlib.Path(__file__).parents[2]


def test_deit_resizes_to_256_and_crops_224():
  assert presets.preprocess('deit', 224) == dict(
    ops="decode|resize_small(256, method='bicubic', rounding='down')"
    "|central_crop(224, rounding='even')",
    device_ops="normalize('imagenet')",
  )
  # Meta's code cuts 384 / 0.875 = 438.9, TensorFlow's rounds it.
  assert 'resize_small(438,' in presets.preprocess('deit', 384)['ops']
  assert 'resize_small(439,' in presets.preprocess('big_vision', 384)['ops']


def test_vision_transformer_squeezes_without_antialiasing():
  assert presets.preprocess('vision_transformer', 384) == dict(
    ops="decode(dct='fast')|resize(384, antialias=False)",
    device_ops='normalize(-1, 1)',
  )


def test_big_vision_cuts_levels_and_decodes_as_tensorflow():
  ops = presets.preprocess('big_vision', 224)['ops']
  assert ops == (
    "decode(dct='fast')|resize_small(256, method='area', truncate=True)"
    '|central_crop(224)'
  )
  ops = presets.preprocess('siglip', 224)['ops']
  assert ops == "decode(dct='fast')|resize(224, antialias=False, truncate=True)"


@pytest.mark.parametrize('family', presets.PRESETS)
def test_every_preset_makes_images_of_the_size_asked_for(family):
  preprocess = presets.preprocess(family, 24)
  image = np.zeros((40, 33, 3), np.uint8)
  example = ops_language.parse(preprocess['ops'])(
    {'image': image}, np.random.default_rng(0)
  )
  assert example['image'].shape == (24, 24, 3)
  device_ops_language.parse(preprocess['device_ops'])


def test_an_unknown_family_lists_the_known_ones():
  with pytest.raises(
    UserError, match=r"unknown family 'x'; there are .*'deit'"
  ):
    presets.preprocess('x', 224)


@pytest.mark.parametrize(
  'recipe', ['vit_i1k', 'vit_i21k', 'vit_l16_i21k', 'vit_s16_i1k']
)
def test_recipes_of_big_vision_evaluate_as_the_table_says(recipe):
  config = importlib.import_module(f'vit_jax.configs.{recipe}').get_config()
  preset = presets.preprocess('big_vision', 224)
  for section in config.evals.values():
    if section.name == 'classification':
      assert section.ops.removesuffix('|onehot(21843)') == preset['ops']
  assert preset['device_ops'] in config.input.device_ops


@pytest.mark.parametrize('shape', [(375, 500), (500, 334), (281, 224), (9, 9)])
@pytest.mark.parametrize('family', ['deit', 'deit3'])
def test_crops_are_those_of_torchvision(family, shape):
  transforms = pytest.importorskip('torchvision').transforms
  from PIL import Image

  preset = presets.PRESETS[family]
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  theirs = transforms.Compose(
    [
      transforms.Resize(
        int(224 / preset.crop_ratio),
        interpolation=transforms.InterpolationMode.BICUBIC,
      ),
      transforms.CenterCrop(224),
    ]
  )(Image.fromarray(image))
  ops = ops_language.parse(presets.preprocess(family, 224)['ops'])
  ours = ops({'image': image}, np.random.default_rng(0))['image']
  np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_the_table_in_the_docs_is_this_one():
  lines = (ROOT / 'docs/augmentations.md').read_text().splitlines()
  for family, preset in presets.PRESETS.items():
    ratio = 'none' if preset.crop_ratio is None else f'{preset.crop_ratio:g}'
    row = f'| {family} | {ratio} | {preset.method} | {preset.normalize} |'
    assert [line for line in lines if line.startswith(row)], row
