"""Resolved settings of recipes, against the papers' tables and commands."""

import dataclasses
import inspect
import pathlib

import pytest

from vit_jax.commands import _recipe
from vit_jax.data import device_ops_language, ops_language
from vit_jax.data.device_ops import mixing

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def bound(segment, folder):
  """Returns the arguments of an op as it gets them, defaults included."""
  taken = inspect.signature(ops_language.find(segment.name, folder)).bind(
    *segment.args, **segment.kwargs
  )
  taken.apply_defaults()
  return dict(taken.arguments)


def resolve(recipe, arg):
  """Returns what a recipe does in the words of the papers' tables."""
  config = _recipe.load(f'{CONFIGS / recipe}.py:{arg}')
  found = {}
  for section in ('optimizer', 'objective', 'model'):
    found |= config[section].to_dict()
  found |= dict(
    optimizer=config.optimizer.name,
    epochs=config.get('total_epochs'),
    steps=config.get('total_steps'),
    batch_size=config.input.batch_size,
    repeats=config.input.get('repeats', 1),
    init_from=config.to_dict().get('init_from'),
    input_split=config.input.data.split,
    eval_ops=config.evals.val.ops,
  )
  found |= {
    f'{name}_split': section.data.split
    for name, section in config.evals.items()
    if 'data' in section
  }
  host = ops_language.segments(config.input.ops)
  found['order'] = [segment.name for segment in host]
  for segment in host:
    found |= {
      f'{segment.name}.{key}': value
      for key, value in bound(segment, 'data/ops').items()
    }
  folder = device_ops_language.FOLDER
  device = ops_language.build(config.input.device_ops, folder, limits=None)
  found['device_order'] = [segment.name for segment, _ in device]
  for segment, op in device:
    if isinstance(op, mixing.Mix):
      found |= {f'mix.{k}': v for k, v in dataclasses.asdict(op).items()}
    else:
      arguments = bound(segment, folder).items()
      found |= {f'{segment.name}.{key}': value for key, value in arguments}
  return found


def none(names):
  return dict.fromkeys(names.split())


def eval_ops(resized, size):
  return (
    f"decode|resize_small({resized}, method='bicubic', rounding='down')"
    f"|central_crop({size}, rounding='even')"
  )


# arXiv:2012.12877, table 9, and the defaults of DeiT's main.py.
DEIT = {
  'epochs': 300,
  'input_split': 'train',
  'val_split': 'validation',
  'num_classes': 1000,
  'pooling': 'token',
  'activation': 'gelu',
  'weight_init': 'torch',  # timm 0.3.2, and models_v2.py of DeiT III.
  # Defaults that are theirs: learnt, 1e-6, none, none, 0.9, 0.999, 1e-8.
  **none('position norm_epsilon layer_scale init_from b1 b2 eps'),
  'batch_size': 1024,
  'optimizer': 'adamw',
  'learning_rate': 0.0005 * 1024 / 512,
  'schedule': 'deit',
  'end_learning_rate': 1e-5,
  'weight_decay': 0.05,
  'warmup_epochs': 5,
  'stair_epochs': 1,
  'stochastic_depth_rate': 0.1,
  'loss': 'softmax',
  **none('grad_clip_norm dropout_rate stochastic_depth_schedule'),
  **none('label_smoothing'),  # It is in the mixture.
  'mix.label_smoothing': 0.1,
  'repeats': 3,
  'order': ['decode', 'random_resized_crop', 'flip_lr', 'rand_augment'],
  'random_resized_crop.size': 224,
  **none('random_resized_crop.scale random_resized_crop.ratio'),
  'random_resized_crop.method': 'bicubic',
  # Whose (0.08, 1) and (3 / 4, 4 / 3) are the defaults.
  'random_resized_crop.sampling': 'torchvision',
  'rand_augment.config': 'rand-m9-mstd0.5-inc1',
  'device_order': ['normalize', 'random_erasing', 'mixup_cutmix'],
  'normalize.low': 'imagenet',
  'random_erasing.rate': 0.25,
  'random_erasing.mode': 'pixel',
  'random_erasing.count': 1,
  'mix.mixup_alpha': 0.8,
  'mix.cutmix_alpha': 1.0,
  'mix.rate': 1.0,
  'mix.switch_rate': 0.5,
  'mix.mode': 'batch',
  'mix.partner': 'reverse',
  'mix.dominant': False,
  'eval_ops': eval_ops(256, 224),
}
DEIT_384 = DEIT | {  # README_deit.md, with the model in evaluation mode.
  'epochs': 30,
  # main.py: torch's bicubic interpolation.
  'init_from': [dict(weights='x', resize='torch')],
  'batch_size': 512,
  **dict.fromkeys(['learning_rate', 'end_learning_rate'], 5e-6),
  'weight_decay': 1e-8,
  'stochastic_depth_rate': 0.0,
  'random_resized_crop.size': 384,
  'mix.group_size': 32,
  'eval_ops': eval_ops(438, 384),
}

# README_revenge.md of DeiT, the commands.
DEIT3 = DEIT | {
  'epochs': 800,
  'batch_size': 2048,
  'optimizer': 'lamb',
  'learning_rate': 3e-3,
  'grad_clip_norm': 1.0,
  'stochastic_depth_schedule': 'constant',
  'layer_scale': 1e-4,
  'loss': 'sigmoid',
  'target_threshold': 0.0,
  'class_reduction': 'mean',
  'mix.label_smoothing': 0.0,
  'order': [
    'decode',
    'random_resized_crop',
    'flip_lr',
    'three_augment',
    'color_jitter',
  ],
  'rand_augment.config': None,
  'color_jitter.brightness': 0.3,
  'color_jitter.contrast': 0.3,
  'color_jitter.saturation': 0.3,
  'color_jitter.hue': 0,
  'device_order': ['normalize', 'mixup_cutmix'],
  **none('random_erasing.rate random_erasing.mode random_erasing.count'),
}
DEIT3_FINETUNE = DEIT_384 | {
  'epochs': 20,
  **dict.fromkeys(['learning_rate', 'end_learning_rate'], 1e-5),
  'weight_decay': 0.1,
  'layer_scale': 1e-4,
  'stochastic_depth_schedule': 'constant',
  'repeats': 1,
  'device_order': ['normalize', 'mixup_cutmix'],
  **none('random_erasing.rate random_erasing.mode random_erasing.count'),
}
DEIT3_21K = DEIT3 | {
  'epochs': 240,
  'input_split': 'full[51200:]',
  'val_split': 'full[:51200]',
  'learning_rate': 1e-3,
  'weight_decay': 0.02,
  'loss': 'softmax',
  **none('target_threshold class_reduction'),
  'repeats': 1,
  'mix.label_smoothing': 0.1,
  'mix.mixup_alpha': 0.0,
  'num_classes': 21_841,
  'order': [
    'decode',
    'resize_small',
    'random_crop',
    'flip_lr',
    'three_augment',
    'color_jitter',
  ],
  **none('random_resized_crop.scale random_resized_crop.ratio'),
  **none('random_resized_crop.method random_resized_crop.sampling'),
  'resize_small.method': 'bicubic',
  'resize_small.rounding': 'down',
  'random_crop.padding': 4,
  'random_crop.pad_mode': 'reflect',
}
DEIT3_21K_1K = DEIT3_21K | {
  'epochs': 50,
  'input_split': 'train',
  'val_split': 'validation',
  'init_from': [dict(weights='x', skip='head/.*', resize='torch')],
  'learning_rate': 3e-4,
  'num_classes': 1000,
}


def deit3(base, pixels, depth_rate, group_size, learning_rate=None, **more):
  return base | {
    'learning_rate': learning_rate or base['learning_rate'],
    'random_resized_crop.size': pixels,
    'stochastic_depth_rate': depth_rate,
    'mix.group_size': group_size,
    'eval_ops': eval_ops(pixels, pixels),
    **more,
  }


def deit3_src(base, pixels, depth_rate, group_size, **more):
  """DeiT III's simple random crop in the place of random_resized_crop."""
  sizes = {
    'random_resized_crop.size': None,
    'resize_small.size': pixels,
    'random_crop.size': pixels,
  }
  return deit3(base, pixels, depth_rate, group_size, **sizes, **more)


# big_vision, configs/vit_i1k.py; rates and lengths are in test_configs.py.
I1K = {
  'input_split': 'train[:99%]',
  'minitrain_split': 'train[:2%]',
  'minival_split': 'train[99%:]',
  'val_split': 'validation',
  'pooling': 'token',
  'representation_size': True,
  **none('position class_reduction'),
  'position_init': 'big_vision',  # N(0, 1 / sqrt(width)), models/vit.py.
  **dict.fromkeys(['dropout_rate', 'stochastic_depth_rate'], 0.0),
  'repeats': 1,
  'optimizer': 'adamw',
  'mu_dtype': 'bfloat16',
  **none('label_smoothing end_learning_rate b1 b2 eps'),
  'random_resized_crop.size': 224,
  # (0.05, 1) and (0.75, 1.33) with this sampling.
  **none('random_resized_crop.scale random_resized_crop.ratio'),
  'random_resized_crop.method': 'bilinear',
}
I21K = I1K | {  # configs/vit_i21k.py, with the class token of the weights.
  'input_split': 'full[51200:]',
  'test_split': 'full[:25600]',
  'val_split': 'full[25600:51200]',
  **none('minitrain_split minival_split representation_size'),
  **none('dropout_rate stochastic_depth_rate'),
}
S16 = I1K | {  # vit_s16_i1k.py; its positions are not learnt.
  'pooling': 'mean',
  'position': 'sincos2d',
  **none('position_init dropout_rate stochastic_depth_rate'),
}


def augreg(randaug, mixup, **more):
  """arXiv:2106.10270, section 3.3: layers, magnitude and mixup's alpha."""
  host = ['decode', 'random_resized_crop', 'flip_lr']
  return {
    'order': host + (['randaug'] if randaug else []),
    'device_order': ['normalize'] + (['mixup'] if mixup else []),
    'random_resized_crop.sampling': 'tensorflow',
    'random_resized_crop.antialias': False,
    'randaug.num_layers': randaug and randaug[0],
    'randaug.magnitude': randaug and randaug[1],
    'randaug.flavour': randaug and 'compat',
    'mix.mixup_alpha': mixup or None,
    'mix.cutmix_alpha': 0.0 if mixup else None,
    'mix.partner': 'roll' if mixup else None,
    'mix.dominant': True if mixup else None,
    'mix.group_size': None,
    'mix.rate': 1.0 if mixup else None,
    'mix.mode': 'batch' if mixup else None,
    'normalize.low': -1,
    'normalize.high': 1,
    **more,
  }


SCALING = {  # big_vision, configs/proj/scaling_laws/train_vit_g.py.
  'steps': 1_000_000,
  'batch_size': 4096 * 4,
  'optimizer': 'adafactor',
  'learning_rate': 8e-4,
  'weight_decay': 0.03,
  'weight_decay_mults': [
    ('head/kernel', 100.0),
    ('(.*/)?kernel', 1.0),
    ('.*', 0.0),
  ],
  'grad_clip_norm': 1.0,
  'schedule': 'rsqrt',
  'timescale_steps': 10_000,
  'warmup_steps': 10_000,
  'cooldown_steps': 50_000,
  'pooling': 'map',
  'position_init': 'big_vision',
  'loss': 'sigmoid',
  'head_bias_init': -10,
  # Those of the published optimizer are our defaults.
  **none('b2 momentum mu_dtype'),
}

PUBLISHED = {
  'deit_b16_i1k': {
    'variant=B/16': DEIT | {'mix.group_size': 64},
    'variant=B/16,finetune=x': DEIT_384,
    'variant=B/16,epochs=1000': DEIT | {'epochs': 1000, 'mix.group_size': 64},
    'variant=S/16': DEIT | {'mix.group_size': 256},
    'variant=Ti/16': DEIT | {'mix.group_size': 256},
  },
  'deit3_i1k': {
    'variant=S/16': deit3(DEIT3, 224, 0.05, 256, 4e-3),
    'variant=B/16': deit3(DEIT3, 192, 0.2, 256),
    # No command of it is published.
    'variant=M/16': deit3(DEIT3, 224, 0.1, 256),
    'variant=L/16': deit3(DEIT3, 192, 0.45, 64),
    'variant=H/14': deit3(
      DEIT3,
      160,
      0.6,
      64,
      device_order=['normalize', 'mixup_cutmix', 'crop'],
      **{'crop.size': 154},
    ),
    'variant=B/16,finetune=x': deit3(DEIT3_FINETUNE, 224, 0.2, 64),
    'variant=L/16,finetune=x': deit3(DEIT3_FINETUNE, 224, 0.45, 64),
    'variant=H/14,finetune=x': deit3(DEIT3_FINETUNE, 224, 0.55, 32),
    'variant=S/16,finetune=x,pixels=384': deit3(DEIT3_FINETUNE, 384, 0.0, 64),
    # Batches of 32 on 16 GPUs and of 16 on 32 GPUs.
    'variant=B/16,finetune=x,pixels=384': deit3(DEIT3_FINETUNE, 384, 0.15, 32),
    'variant=L/16,finetune=x,pixels=384': deit3(DEIT3_FINETUNE, 384, 0.4, 16),
  },
  'deit3_i21k': {
    'variant=S/16': deit3_src(DEIT3_21K, 224, 0.05, 128),
    'variant=B/16': deit3_src(DEIT3_21K, 224, 0.1, 64),
    'variant=M/16': deit3_src(DEIT3_21K, 224, 0.05, 128),
    'variant=L/16': deit3_src(DEIT3_21K, 224, 0.3, 64),
    'variant=H/14': deit3_src(
      DEIT3_21K,
      128,
      0.5,
      64,
      epochs=90,
      device_order=['normalize', 'mixup_cutmix', 'crop'],
      **{'crop.size': 126},
    ),
    'variant=S/16,finetune=x': deit3_src(DEIT3_21K_1K, 224, 0.05, 128),
    'variant=B/16,finetune=x': deit3_src(DEIT3_21K_1K, 224, 0.15, 64),
    'variant=L/16,finetune=x': deit3_src(DEIT3_21K_1K, 224, 0.4, 64),
    'variant=H/14,finetune=x': deit3_src(DEIT3_21K_1K, 224, 0.45, 64),
  },
  'vit_s16_i1k': {'': augreg((2, 10), 0.2, **S16)},
  'vit_i1k': {
    'variant=Ti/16': augreg((2, 0), 0, **I1K),
    'variant=S/32': augreg((2, 15), 0.2, **I1K),
    'variant=S/16': augreg((2, 15), 0.5, **I1K),
    'variant=B/32': augreg((2, 15), 0.5, **I1K),
    'variant=B/16': augreg((2, 15), 0.5, **I1K),
    'variant=L/16': augreg((2, 15), 0.5, **I1K),
    'variant=L/16,augmentation=strong2': augreg((2, 20), 0.8, **I1K),
    # arXiv:2106.10270, section 3.3: 0 or 0.1 for both.
    'L/16,dropout=0.1,stochastic_depth=0.1': augreg(
      (2, 15),
      0.5,
      **I1K
      | {
        **dict.fromkeys(['dropout_rate', 'stochastic_depth_rate'], 0.1),
        'stochastic_depth_schedule': None,
      },
    ),
  },
  'vit_i21k': {
    'variant=Ti/16': augreg(None, 0, **I21K),
    'variant=S/32': augreg(None, 0, **I21K),
    'variant=S/16': augreg((2, 0), 0, **I21K),
    'variant=B/32': augreg((2, 0), 0, **I21K),
    'variant=B/16': augreg((2, 15), 0.2, **I21K),
    'variant=L/16': augreg((2, 20), 0.5, **I21K),
    'variant=L/16,augmentation=light2': augreg((2, 10), 0.2, **I21K),
  },
  'vit_g14': {
    'variant=g/14': augreg(None, 0, variant='g/14', **SCALING),
    'variant=G/14': augreg(None, 0, variant='G/14', **SCALING),
  },
}


@pytest.mark.parametrize(
  'recipe, arg',
  [(recipe, arg) for recipe in PUBLISHED for arg in PUBLISHED[recipe]],
)
def test_a_recipe_resolves_to_the_published_table(recipe, arg):
  published = PUBLISHED[recipe][arg]
  found = resolve(recipe, arg)
  assert {key: found.get(key) for key in published} == published


@pytest.mark.parametrize(
  'recipe, arg, message',
  [
    (
      'deit3_i1k',
      'S/16,finetune=x',
      '224 px; those that are: B/16, L/16, H/14',
    ),
    ('deit3_i1k', 'H/14,finetune=x,pixels=384', '384 px; those that are: S/16'),
    ('deit3_i1k', 'pixels=384', 'pixels= goes with finetune='),
    ('deit3_i1k', 'M/16,finetune=x', '224 px; those that are: B/16, L/16'),
    ('deit_b16_i1k', 'S/16,finetune=x', 'S/16: of these only B/16'),
    ('deit_b16_i1k', 'B/16,finetune=x,epochs=1000', 'goes without finetune='),
  ],
)
def test_deit_is_fine_tuned_only_as_published(recipe, arg, message):
  with pytest.raises(ValueError, match=message):
    resolve(recipe, arg)
