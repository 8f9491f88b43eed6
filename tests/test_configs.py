"""Every recipe loads, fits together at full size, trains, says what it should."""

import inspect
import json
import math
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from configs import common
from vit_jax import config_file, errors, run as run_lib, train
from vit_jax.data import device_ops
from vit_jax.data.ops import language

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted(
  file.stem
  for file in (ROOT / 'configs').glob('*.py')
  if file.stem not in ('__init__', 'common')
)

# What the papers and the authors' own configs say; headers name them. The
# steps are round(epochs * images / batch size).
IMAGENET = dict(warmup_steps=10_000, learning_rate=1e-3, num_classes=1000)
S16 = dict(
  IMAGENET,
  num_examples=1_268_355,
  batch_size=1024,
  weight_decay=0.1,
  schedule='cosine',
  loss='softmax',
  grad_clip_norm=1.0,
)
AUGREG = dict(S16, batch_size=4096, loss='sigmoid')
AUGREG_1K = dict(AUGREG, total_steps=92_897, head_bias_init=-6.9)
AUGREG_21K = dict(
  AUGREG, num_examples=None, epochs=300, num_classes=21_843, head_bias_init=-10
)
PUBLISHED = {
  'vit_s16_i1k': {
    'epochs=90': dict(S16, total_steps=111_477),
    'epochs=150': dict(S16, total_steps=185_794),
    'epochs=300': dict(S16, total_steps=371_588),
  },
  'vit_i1k': {
    f'variant={variant}': dict(AUGREG_1K, variant=variant)
    for variant in ('B/16', 'Ti/16', 'S/32', 'S/16', 'B/32', 'L/16')
  },
  'vit_i21k': {
    f'variant={variant}': dict(
      AUGREG_21K, variant=variant, weight_decay=weight_decay
    )
    for variant, weight_decay in {
      'B/16': 0.1,
      'Ti/16': 0.03,
      'S/32': 0.1,
      'S/16': 0.03,
      'B/32': 0.1,
      'L/16': 0.1,
    }.items()
  },
  'vit_l16_i21k': {
    '': dict(
      IMAGENET,
      variant='L/16',
      num_classes=21_843,
      num_examples=None,
      epochs=90,
      batch_size=4096,
      schedule='linear',
      end_learning_rate=1e-5,
      weight_decay=0.1,
      b1=0.9,
      b2=0.999,
      loss='sigmoid',
      head_bias_init=-10,
      dropout_rate=0.1,
    ),
    'weight_decay=0.03': dict(weight_decay=0.03),
  },
}
CASES = [
  (recipe, arg) for recipe, args in PUBLISHED.items() for arg in ('', *args)
]

# ImageNet recipes: the published sizes (vision_transformer and big_vision, by
# their own code), from which 768 or 1,024 differ where there is a class token:
# its own row of the position table is no parameter here.
NUM_PARAMETERS = {
  'vit_s16_i1k': 22_122_472,
  # B/16 of 86,567,656 and a tanh layer.
  'vit_i1k': 86_567_656 - 768 + 768 * 769,
  # B/16 of 102,594,387 with mean pooling, and a class token.
  'vit_i21k': 102_594_387 + 768,
  # L/16 of 325,688,659 with mean pooling, a class token and a tanh layer.
  'vit_l16_i21k': 325_688_659 + 1024 + 1024 * 1025,
}


def load(recipe, arg=''):
  """Returns a config as the command line would."""
  return config_file.load(str(ROOT / f'configs/{recipe}.py:{arg}'))


def on_made_up_images(config, num_examples=10_000):
  """Returns a config whose training data needs no files."""
  config = config.to_dict()
  if config['input']['data']['name'] != 'digits':
    side = re.findall(r'_crop\((\d+)', config['input']['ops'])[-1]
    config['input']['data'] = dict(
      name='synthetic',
      split='train',
      num_examples=num_examples,
      image_size=int(side),
      num_classes=config['model']['num_classes'],
    )
  return config


def build(config):
  """Builds a run as `train.train` does; computes shapes only."""
  defaults = {
    name: parameter.default
    for name, parameter in inspect.signature(train.train).parameters.items()
    if parameter.default is not parameter.empty
  }
  sections = defaults | config
  keys = inspect.signature(run_lib.build).parameters
  return run_lib.build(**{key: sections[key] for key in keys})


def settings(config):
  """Returns the sections of a config in one flat dict."""
  flat = {}
  for section in ('model', 'objective', 'input', 'optimizer'):
    flat |= config[section]
  return flat


@pytest.mark.parametrize('recipe, arg', CASES)
def test_a_recipe_has_the_published_settings(recipe, arg):
  args = PUBLISHED[recipe]
  published = dict(args[arg] if arg in args else next(iter(args.values())))
  config = load(recipe, arg)
  num_examples = published.pop('num_examples', None)
  total_steps = published.pop('total_steps', None)
  epochs = published.pop('epochs', config.total_epochs)
  found = settings(config.to_dict())
  assert {key: found.get(key) for key in published} == published
  assert config.total_epochs == epochs
  run = build(on_made_up_images(config, num_examples or 10_000_000))
  if total_steps is not None:
    assert run.total_steps == total_steps


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_fits_together_at_full_size(recipe):
  config = load(recipe)
  lookup.check_keys(train.train, config.to_dict(), 'config', num_args=1)
  run = build(on_made_up_images(config))
  sizes = [x.size for x in jax.tree.leaves(run.abstract_state.params)]
  assert sum(sizes) == NUM_PARAMETERS[recipe]
