"""Resolved settings of DeiT and DeiT III, against their tables and commands."""

import pytest

from tests.configs.resolved import none, resolve


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
  'learning_rate_mults': [('class_token', 2.0)],
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
  # Whose position table has no row for the class token.
  **none('learning_rate_mults'),
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
  **none('learning_rate_mults'),
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
