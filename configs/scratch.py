r"""A small ViT from scratch on a folder of photographs of any size.

  python -m vit_jax train --config=configs/scratch.py:data=/data/pets \
    --workdir=runs/pets_from_scratch

  data        /path with train/<class>/*.jpg and val/<class>/*.jpg (or test/),
              or with <class>/*.jpg alone; or a dataset of TFDS with num_classes
              (configs/common_data.py)
  resolution  to which images are cropped and resized, a multiple of 16
  stem        'conv' (default) or 'patch'
  epochs      passes over the training images
  data_dir    of TFDS

Where weights can be had, configs/finetune.py reaches more with less data: a ViT
that starts from random numbers wants ten thousand images and more. The batch is
128, or for fewer than 1,024 images the largest power of two up to an eighth of
them. Model and augmentation are those of configs/cifar10.py:half_hour, a little
wider, with patches of 16 pixels; it is for a CPU or one GPU. Its stem of
convolutions is in no other library: such a model stays in vit_jax's formats.
One with stem=patch can be written for timm, Hugging Face and Google too.

Expected: no published number. Run here on small data alone, to see that it
learns: of CIFAR-10's airplanes and frogs, 500 of each without splits, with
resolution=32,epochs=8, it had 94 of the 100 held-out images right.
"""

import ml_collections

from vit_jax.configs import common, common_data


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; options are in the header of this file."""
  options = common.parse_arg(
    arg,
    data='oxford_iiit_pet',
    num_classes=0,
    resolution=128,
    stem='conv',
    epochs=100.0,
    data_dir=None,
    smoke=False,
  )
  size = options.resolution
  if size < 16 or size % 16:
    raise ValueError(f'resolution={size}: expected a multiple of 16')
  if options.stem not in ('conv', 'patch'):
    raise ValueError(f"stem={options.stem!r}: expected 'conv' or 'patch'")
  train, val, test = common_data.splits(options.data)
  count = common_data.num_training_images(options.data)
  eval_ops = (
    f"decode|resize_small({round(size * 256 / 224)}, method='area')"
    f'|central_crop({size})'
  )

  def data(split):
    return common_data.images(options.data, split, options.data_dir)

  config = ml_collections.ConfigDict()
  config.total_epochs = options.epochs
  config.model = dict(
    name='vit',
    variant='mu/16',
    num_classes=common_data.num_classes(options.data, options.num_classes),
    width=192,
    depth=6,
    mlp_dim=384,
    num_heads=3,
    stem=options.stem,
    position='sincos2d',
    pooling='mean',
  )
  config.objective = dict(name='supervised', label_smoothing=0.1)
  config.input = dict(
    data=data(train),
    ops=f'decode|random_resized_crop({size}, scale=(0.2, 1.0))|flip_lr',
    device_ops="normalize('imagenet')",
    batch_size=common_data.batch_size(count, most=128),
  )
  config.optimizer = dict(
    name='adamw',
    learning_rate=1e-3,
    schedule='cosine',
    warmup_epochs=min(5.0, 0.1 * options.epochs),
    weight_decay=0.05,
    grad_clip_norm=1.0,
  )
  config.ema = dict(decay=0.999, warmup=True)

  def top1(split, **cadence):
    return dict(
      name='classification',
      weights=('ema',),
      data=data(split),
      ops=eval_ops,
      **cadence,
    )

  config.evals = dict(val=top1(val, every_epochs=max(1.0, options.epochs / 20)))
  if test:
    config.evals.test = top1(test)
  config.checkpoint = dict(every_epochs=max(1.0, options.epochs / 10))
  config.pictures = dict(
    predictions=dict(name='predictions', data=data(val), ops=eval_ops),
    curves=dict(name='curves'),
  )
  return common.smoke(config) if options.smoke else config
