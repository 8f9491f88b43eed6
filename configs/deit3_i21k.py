r"""DeiT-III on ImageNet-21k, then on ImageNet-1k.

"DeiT III: Revenge of the ViT" (Touvron, Cord, Jegou 2022, arXiv:2204.07118);
settings of the commands in README_revenge.md of facebookresearch/deit. Run the
two with

  python -m vit_jax train --workdir=runs/deit3_b16_i21k \
      --config=configs/deit3_i21k.py:variant=B/16,data=records:/data/i21k
  python -m vit_jax train --workdir=runs/deit3_b16_i21k_i1k \
      --config=configs/deit3_i21k.py:variant=B/16,finetune=runs/deit3_b16_i21k

where /data/i21k is what vit_jax prepare made of the tar files
(docs/data.md); data=/path may also be a folder of images (train/<class>/). The
authors have the 21,841 classes of the Fall 2011 release; add num_classes=19167
for Winter 2021. Fine-tuning reads ImageNet-1k from TFDS, or from what data=
names. The first 51,200 images of ImageNet-21k are kept for evaluation here.

240 epochs of 224 px (H/14: 90 of 128 px), then 50 of 224 px. Hardware, of the
authors: 16 GPUs for S, 32 for the others, batch 2048. Expected top-1 on
ImageNet-1k after the second, theirs:

  S/16 83.1   M/16 84.5   B/16 85.7   L/16 87.0   H/14 87.2

LAMB is NVIDIA's FusedLAMB, whose clipping to norm 1 is hidden in it. Of 128 px
the patches of H/14 see 126. Initial weights, of the new head too, are theirs:
LAMB can hardly train a head that starts at zero. Not run here.

Differs from the paper's code:
  * bfloat16 in place of float16 with loss scaling.
  * No average of the weights, which they computed and did not evaluate.
  * 51,200 images are held out; theirs drops the last incomplete batch of an
    epoch.
  * No command of M/16 is published: its stochastic depth and batches are ours,
    between those of S/16 and B/16.
"""

import ml_collections

from vit_jax.configs import common, common_data

# Epochs and pixels on ImageNet-21k, stochastic depth there and on ImageNet-1k,
# images of a process.
SIZES = {
  'B/16': (240.0, 224, 0.1, 0.15, 64),
  'S/16': (240.0, 224, 0.05, 0.05, 128),
  'M/16': (240.0, 224, 0.05, 0.1, 128),
  'L/16': (240.0, 224, 0.3, 0.4, 64),
  'H/14': (90.0, 128, 0.5, 0.45, 64),
}
TRAIN_OPS = (
  "decode|resize_small({0}, method='bicubic', rounding='down')"
  "|random_crop({0}, padding=4, pad_mode='reflect')|flip_lr"
  '|three_augment|color_jitter(0.3, 0.3, 0.3)'
)
EVAL_OPS = (
  "decode|resize_small({0}, method='bicubic', rounding='down')"
  "|central_crop({0}, rounding='even')"
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; options are in the header of this file."""
  options = common.parse_arg(
    arg,
    variant=tuple(SIZES),
    finetune=None,
    data=None,
    data_dir=None,
    num_classes=0,
    smoke=False,
  )
  epochs, pixels, *depth_rates, group_size = SIZES[options.variant]
  if options.finetune:
    epochs, pixels = 50.0, 224
    name = options.data or 'imagenet2012'
    train, val, _ = common_data.splits(name, tfds=('train', 'validation', None))
  else:
    name = options.data or 'imagenet21k'
    train, evals = common_data.pretraining_splits(
      name, held_out=dict(val='[:51200]')
    )
    val = evals['val']
  num_classes = common_data.num_classes(
    name, options.num_classes, default=1000 if options.finetune else 21_841
  )

  def data(split):
    return common_data.images(name, split, options.data_dir)

  config = ml_collections.ConfigDict()
  config.total_epochs = epochs
  config.model = dict(
    name='vit',
    variant=options.variant,
    num_classes=num_classes,
    pooling='token',
    activation='gelu',
    weight_init='torch',
    layer_scale=1e-4,
    stochastic_depth_rate=depth_rates[bool(options.finetune)],
    stochastic_depth_schedule='constant',
    dtype='bfloat16',  # Of matrix products, as in the authors' runs;
    residual_dtype='float32',  # the sum of the blocks' outputs is exact.
  )
  if options.finetune:
    config.init_from = [
      dict(weights=options.finetune, skip='head/.*', resize='torch')
    ]
  config.objective = dict(name='supervised', loss='softmax')
  # 9 patches of 14 pixels: torch's convolution leaves the other 2 out.
  rest = '|crop(126)' if pixels == 128 else ''
  config.input = dict(
    data=data(train),
    ops=TRAIN_OPS.format(pixels),
    device_ops=(
      f"normalize('imagenet')|mixup_cutmix(0.0, 1.0, group_size={group_size}, "
      f'label_smoothing=0.1){rest}'
    ),
    batch_size=2048,
  )
  config.optimizer = dict(
    name='lamb',
    learning_rate=3e-4 if options.finetune else 1e-3,
    end_learning_rate=1e-5,
    weight_decay=0.02,
    grad_clip_norm=1.0,
    schedule='deit',
    stair_epochs=1.0,
    warmup_epochs=5.0,
  )
  config.evals = dict(
    val=dict(
      name='classification',
      every_epochs=10.0,
      data=data(val),
      ops=EVAL_OPS.format(pixels),
    )
  )
  config.checkpoint = dict(every_epochs=1.0)
  return common.smoke(config) if options.smoke else config
