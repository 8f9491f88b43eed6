"""Resolved settings of Google's recipes, against their papers and configs."""

import pytest

from tests.configs.resolved import none, resolve

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
