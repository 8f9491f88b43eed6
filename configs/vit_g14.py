r"""ViT-g/14 (1 B parameters) and ViT-G/14 (1.8 B) as in "Scaling ViT".

"Scaling Vision Transformers" (Zhai, Kolesnikov, Houlsby, Beyer 2021,
arXiv:2106.04560), settings of google-research/big_vision,
configs/proj/scaling_laws/train_vit_g.py. Run it with

  python -m vit_jax train --config=configs/vit_g14.py:variant=g/14 \
      --workdir=runs/vit_g14

Adafactor with its momentum in bfloat16, weight decay 3 for the head and 0.03
for all other kernels, a rate that falls with the square root of time and is
cooled down over the last 50,000 of a million steps. Any step before the
cool-down can be resumed with a larger total_steps, and a cool-down can be
branched off from any of them.

The authors had JFT-3B (29,593 classes), which is not public. The default here
is ImageNet-21k, prepared as vit_i21k.py says (data=/path and
data_dir=/path work here too); a million steps are over 1,100 epochs of it, so
set --config.total_steps and think of augmentation.

Hardware: 256 TPU chips or more. Parameters, moments and batch are sharded over
fsdp=16 neighbours (32 for G/14 on chips with 16 GB), blocks are scanned and
recomputed in the backward pass. Before renting,

  python -m vit_jax aot --config=configs/vit_g14.py:variant=G/14,fsdp=32 \
      --topology=v5e-256

shows whether it fits. Expected, of the authors with JFT-3B: G/14 fine-tuned
90.45 % top-1 on ImageNet, 84.86 % with 10 images per class. Not run here.

Six few-shot datasets are evaluated every 10,000 steps where TFDS has them
prepared (extra_evals=, configs/common_evals.py).

Differs from the paper's code:
  * The data and its classes. One label for each image; multi_label takes TFDS's
    feature `labels`, all classes of an image.
  * Blocks are scanned and their parameters stacked, and the state is sharded;
    the released config has neither. Adafactor treats each block by itself, so
    that the second moments are those of blocks that are not scanned.
  * Update k has the rate of step k; theirs that of k - 1, so that the first
    does nothing.
  * Each epoch is a random permutation of all images; theirs is a shuffle buffer
    of 250,000 images.
"""

import ml_collections

from vit_jax.configs import common, common_data, common_evals

TRAIN_OPS = (
  "decode(dct='fast')|random_resized_crop(224, sampling='tensorflow', "
  'antialias=False, truncate=True)'
  '|flip_lr'
)
EVAL_OPS = (
  "decode(dct='fast')|resize_small(256, method='area', truncate=True)"
  '|central_crop(224)'
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; options are in the header of this file."""
  options = common.parse_arg(
    arg,
    variant=('g/14', 'G/14'),
    data='imagenet21k',
    data_dir=None,
    multi_label=False,
    fsdp=16,
    extra_evals=common_evals.CHOICES,
    smoke=False,
  )
  train, evals = common_data.pretraining_splits(
    options.data, held_out=dict(test='[:25600]', val='[25600:51200]')
  )

  num_classes = common_data.num_classes(options.data, default=21_843)
  label_key, labels = None, ''
  if options.multi_label:
    label_key, labels = 'labels', f'|onehot({num_classes})'

  def data(split):
    return common_data.images(
      options.data, split, options.data_dir, label_key=label_key
    )

  config = ml_collections.ConfigDict()
  config.total_steps = 1_000_000
  config.mesh = dict(data=-1, fsdp=options.fsdp)
  config.model = dict(
    name='vit',
    variant=options.variant,
    num_classes=num_classes,
    pooling='map',
    position_init='big_vision',
    head_bias_init=-10.0,
    dtype='bfloat16',  # Of matrix products, as in the authors' runs;
    residual_dtype='float32',  # the sum of the blocks' outputs is exact.
    scan=True,
    remat='full',
  )
  config.objective = dict(name='supervised', loss='sigmoid')
  config.input = dict(
    data=data(train),
    ops=TRAIN_OPS + labels,
    device_ops='normalize(-1, 1)',
    batch_size=16_384,
  )
  config.optimizer = dict(
    name='adafactor',
    learning_rate=8e-4,
    schedule='rsqrt',
    timescale_steps=10_000,
    warmup_steps=10_000,
    cooldown_steps=50_000,
    weight_decay=0.03,
    weight_decay_mults=[
      ('head/kernel', 100.0),
      ('(.*/)?kernel', 1.0),
      ('.*', 0.0),
    ],
    grad_clip_norm=1.0,
  )

  def top1(split):
    return dict(
      name='classification',
      every_steps=10_000,
      loss='sigmoid',
      data=data(split),
      ops=EVAL_OPS + labels,
    )

  config.evals = {name: top1(split) for name, split in evals.items()}
  config.evals.update(common_evals.extra(options, fewshot_every_steps=10_000))
  config.checkpoint = dict(every_steps=1000, keep_every_steps=10_000)
  return common.smoke(config) if options.smoke else config
