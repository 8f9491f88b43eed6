"""Every recipe says what its paper says, fits together and trains."""

import math
import pathlib
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.commands import _recipe
from vit_jax.configs import common
from vit_jax.data import ops_language
from vit_jax.training import train

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = sorted(
  file.stem
  for file in (ROOT / 'configs').glob('*.py')
  # `evaluate` has no training.
  if file.stem not in ('__init__', 'evaluate')
  and not file.stem.startswith('common')
)

# Of the evaluators in recipes; others have a number of examples at least.
METRICS = {
  'classification': ('top1', 'loss'),
  'fewshot': ('1shot', '5shot', '10shot', '25shot'),
  'knn': ('10nn', '20nn', '100nn', '200nn'),
  'linear_probe': ('top1',),
}

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
  'vit_h14_i21k': {
    '': dict(weight_decay=0.1, mu_dtype='bfloat16', grad_clip_norm=1.0),
    'weight_decay=0.03': dict(weight_decay=0.03),
  },
}
CASES = [
  (recipe, arg) for recipe, args in PUBLISHED.items() for arg in ('', *args)
]

# Those of the ImageNet recipes are the published sizes; a recipe without one
# needs no number here. Where there is a class
# token, its row of the position table is a parameter there and not here.
NUM_PARAMETERS = {
  'quickstart': 450_538,
  'cifar10': 678_410,
  'scratch': 2_045_821,
  # B/16 has 86,567,656 at 224 pixels, with 1000 classes and a position for the
  # class token; 24 x 24 positions, 100 classes.
  'finetune': 86_567_656 + 768 * (24**2 - 197) - 769 * 900,
  'vit_s16_i1k': 22_122_472,
  # A position for the class token less, as in DeiT-III, whose count is exact.
  'deit_b16_i1k': 86_567_656 - 768,
  'deit3_i1k': 22_059_496,
  # B/16 has 86,585,320; more classes.
  'deit3_i21k': 86_585_320 + 769 * 20_841,
  # H/14 has 632,045,800; a tanh layer, more classes.
  'vit_h14_i21k': 632_045_800 - 1280 + 1280 * 1281 + 1281 * 20_843,
  # g/14 has 1,012,608,616 with mean pooling: attention with a probe, an MLP
  # after a norm, more classes.
  'vit_g14': 1_012_608_616
  + (1408 + 4 * 1408 * 1409 + 2 * 1408 + 2 * 1408 * 6144 + 6144 + 1408)
  + 1409 * 20_843,
  # B/16 has 86,567,656; a tanh layer.
  'vit_i1k': 86_567_656 - 768 + 768 * 769,
  # B/16 has 102,594,387 with mean pooling; a class token.
  'vit_i21k': 102_594_387 + 768,
  # L/16 has 325,688,659 with mean pooling; a class token, a tanh layer.
  'vit_l16_i21k': 325_688_659 + 1024 + 1024 * 1025,
}


def load(recipe, arg=''):
  """Returns a config as the command line reads it."""
  return _recipe.load(str(ROOT / f'configs/{recipe}.py:{arg}'))


def build(config, num_examples):
  """Builds a run as `train.train` does, on images that need no files."""
  sections = config.to_dict()
  size, channels = image_spec(config)
  sections['input']['data'] = dict(
    name='synthetic',
    split='train',
    num_examples=num_examples,
    image_size=size,
    channels=channels,
    num_classes=config.model.num_classes,
  )
  if sections.get('mesh'):
    sections['mesh']['fsdp'] = 8  # As many as there are here.
  return train.build(sections)


def image_spec(config):
  """Returns the size and the channels of a recipe's raw images."""
  if config.input.data.name == 'digits':
    return (8, 8), 1
  return ((32, 32) if config.model.num_classes == 10 else (300, 400)), 3


@pytest.mark.parametrize('recipe, arg', CASES)
def test_a_recipe_has_the_published_settings(recipe, arg):
  args = PUBLISHED[recipe]
  published = dict(args[arg] if arg in args else next(iter(args.values())))
  config = load(recipe, arg)
  num_examples = published.pop('num_examples', None)
  total_steps = published.pop('total_steps', None)
  assert config.total_epochs == published.pop('epochs', config.total_epochs)
  found = {}
  for section in ('model', 'objective', 'input', 'optimizer'):
    found |= config[section].to_dict()
  assert {key: found.get(key) for key in published} == published
  if total_steps is not None:
    config.model.variant = 'mu/16'  # Cheap; the steps do not depend on it.
    assert build(config, num_examples).total_steps == total_steps


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_builds_at_full_size(recipe):
  run = build(load(recipe), num_examples=1_000_000)
  leaves = jax.tree.leaves(run.abstract_state.params)
  count = sum(x.size for x in leaves)
  assert count == NUM_PARAMETERS.get(recipe, count)
  # Whatever the optimizer: an array or more for each parameter, and a step.
  assert len(jax.tree.leaves(run.abstract_state.opt_state)) > len(leaves)


def test_adafactor_of_vit_g_does_not_factor_over_its_scanned_blocks():
  run = build(load('vit_g14'), num_examples=1_000_000)
  state = trees.flatten(run.abstract_state.opt_state)
  shapes = {
    name.split('/encoder')[0].split('/')[-1]: x.shape
    for name, x in state.items()
    if name.endswith('encoder/blocks/norm_mlp/scale')
  }
  assert shapes['v'] == (40, 1408)
  assert 1408 not in shapes['v_row'] + shapes['v_col']


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_evaluates_images_of_the_size_it_trains_on(recipe):
  config = load(recipe)
  (height, width), channels = image_spec(config)
  raw = np.zeros((height, width, channels), np.uint8)

  def size(ops):
    example = ops_language.parse(ops, trusted=True)(
      {'image': raw}, np.random.default_rng(0)
    )
    return example['image'].shape

  sections = [*config.evals.values(), *config.get('pictures', {}).values()]
  sections = [config.input, *(s for s in sections if 'ops' in s)]
  sizes = {size(section.ops) for section in sections}
  assert len(sizes) == 1


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_trains_two_smoke_steps(recipe, tmp_path):
  config = load(recipe, 'smoke')
  results = train.train(str(tmp_path), **config.to_dict())
  assert len(config.evals) > 0
  for name, section in config.evals.items():
    metrics = METRICS.get(section.name, ())
    assert {f'{name}/{metric}' for metric in metrics} <= results.keys()
    assert results[f'{name}/num_examples'] == 20
  assert all(math.isfinite(value) for value in results.values())
  assert (tmp_path / 'checkpoints/2').is_dir()
  for name in config.get('pictures', {}):
    assert (tmp_path / f'{name}.png').is_file()


@pytest.mark.parametrize(
  'recipe, arg', [*((r, '') for r in RECIPES), ('cifar10', 'size=small')]
)
def test_in_bfloat16_the_residual_stream_stays_float32(recipe, arg):
  # As in big_vision (dtype_mm) and under DeiT's autocast.
  model = load(recipe, arg).model
  in_bfloat16 = model.get('dtype') == 'bfloat16'
  assert (model.get('residual_dtype') == 'float32') == in_bfloat16
  small = {('quickstart', ''), ('cifar10', ''), ('scratch', '')}
  assert in_bfloat16 == ((recipe, arg) not in small)


def test_smoke_keeps_the_options_of_a_recipe():
  full, small = load('vit_l16_i21k'), load('vit_l16_i21k', 'smoke')
  assert small.model.variant == 'mu/8'
  for key in ('pooling', 'representation_size', 'dropout_rate', 'dtype'):
    assert small.model[key] == full.model[key]
  assert small.objective == full.objective
  assert small.input.device_ops == full.input.device_ops
  assert small.input.ops == full.input.ops.replace('224', '16')
  assert small.evals.val.ops == (
    "decode(dct='fast')|resize_small(16, method='area', truncate=True)"
    '|central_crop(16)'
  )
  changed = {
    key for key in full.optimizer if small.optimizer[key] != full.optimizer[key]
  }
  assert changed == {'warmup_steps'}
  assert load('quickstart', 'smoke').input.data.channels == 1


def test_smoke_shrinks_every_duration_size_and_class_count():
  config = ml_collections.ConfigDict(
    dict(
      total_epochs=90.0,
      model=dict(variant='B/16', width=64, patch_size=(8, 4), num_classes=1000),
      input=dict(
        data=dict(name='tfds', split='train[:99%]'),
        ops='decode|resize((40, 50))|random_crop(32, padding=4)|flip_lr(0.3)',
        batch_size=1024,
      ),
      optimizer=dict(warmup_epochs=5, cooldown_steps=100, learning_rate=1.0),
      evals=dict(
        a=dict(every_epochs=1, data=dict(name='x'), ops='decode'),
        b=dict(data_train=dict(name='x'), data_test=dict(name='x')),
      ),
    )
  )
  assert common.smoke(config) is config
  data = dict(name='synthetic', image_size=16, channels=3, num_classes=4)
  data['num_examples'] = 20
  assert config.to_dict() == dict(
    total_epochs=None,
    total_steps=2,
    log_every_steps=1,
    model=dict(variant='mu/8', num_classes=4),
    input=dict(
      data=data | dict(split='train'),
      ops='decode|resize(16)|random_crop(16, padding=4)|flip_lr(0.3)',
      batch_size=8,
    ),
    optimizer=dict(warmup_steps=1, cooldown_steps=1, learning_rate=1.0),
    evals=dict(
      a=dict(data=data | dict(split='test'), ops='decode'),
      b=dict(
        data_train=data | dict(split='train'),
        data_test=data | dict(split='test'),
      ),
    ),
  )


OPTIONS = dict(variant=('B/16', 'S/16'), epochs=90, rate=0.1, data_dir=None)
OPTIONS |= dict(flip=True, smoke=False)


def test_options_take_the_type_of_their_default():
  assert common.parse_arg('', **OPTIONS).to_dict() == dict(
    OPTIONS, variant='B/16'
  )
  text = 'epochs=30,rate=1e-3,data_dir=folder:/a.b/c,flip=false,smoke'
  assert common.parse_arg(text, **OPTIONS).to_dict() == dict(
    variant='B/16',
    epochs=30,
    rate=1e-3,
    data_dir='folder:/a.b/c',
    flip=False,
    smoke=True,
  )


def test_dataset_is_an_older_spelling_of_data():
  for text in ('dataset=folder:/x', 'data=folder:/x', 'folder:/x'):
    assert common.parse_arg(text, data='cifar10').data == 'folder:/x'


def test_a_bare_word_is_the_first_option():
  for text in ('S/16', 'S/16,smoke', 'smoke,S/16', 'variant=S/16'):
    assert common.parse_arg(text, **OPTIONS).variant == 'S/16'


@pytest.mark.parametrize(
  'text, message',
  [
    ('S/17', "variant='S/17': expected one of B/16, S/16"),
    ('B/16,smoek', "unknown option 'smoek'; .* variant=B/16|S/16, epochs=90"),
    ('epochs', 'unknown option|expected one of'),
    ('S/16,data_dir=/a, b', r"' b' \(a path with a comma goes into"),
    ('epoch=3', "unknown option 'epoch=3'; .* epochs=90"),
    ('epochs=3.5', "epochs='3.5': expected int"),
    ('smoke=maybe', "smoke='maybe': expected bool"),
    ('epochs=3,epochs=4', "'epochs' is given twice"),
  ],
)
def test_a_wrong_option_is_an_error_that_lists_the_choices(text, message):
  with pytest.raises(ValueError, match=message):
    common.parse_arg(text, **OPTIONS)


def test_augreg_strengths_are_those_of_the_paper():
  table = {
    'none': ('', 0.0),
    'light1': ('randaug(2, 0)', 0.0),
    'light2': ('randaug(2, 10)', 0.2),
    'medium1': ('randaug(2, 15)', 0.2),
    'medium2': ('randaug(2, 15)', 0.5),
    'strong1': ('randaug(2, 20)', 0.5),
    'strong2': ('randaug(2, 20)', 0.8),
  }
  for strength, expected in table.items():
    assert common.augreg(strength) == expected
    ops_language.parse(common.augreg(strength, 'compat')[0], trusted=True)
  assert common.augreg('light2', 'compat') == (
    "randaug(2, 10, flavour='compat')",
    0.2,
  )
  with pytest.raises(ValueError, match=r"one of \['none', .*; got 'medium'"):
    common.augreg('medium')


def test_loading_a_recipe_imports_nothing_heavy():
  code = (
    'import importlib, sys\n'
    f'for name in {RECIPES}:\n'
    "  importlib.import_module(f'vit_jax.configs.{name}').get_config('')\n"
    "print([m for m in ('jax', 'numpy') if m in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  assert done.stdout.strip() == '[]'
