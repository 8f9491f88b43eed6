r"""ViT-H/14 on ImageNet-21k, 90 epochs, with the state sharded over the chips.

"An Image is Worth 16x16 Words" (Dosovitskiy et al. 2020, arXiv:2010.11929).
Its authors released an H/14 trained on ImageNet-21k but no settings for it:
here are those for L/16 on this data, see vit_l16_i21k.py. Run it with

  python -m vit_jax train --config=configs/vit_h14_i21k.py \
      --workdir=runs/vit_h14_i21k

Data: see vit_i21k.py; data=/path, data_dir=/path and multi_label work here too.
The weight decay is 0.1, as section 4.1 says; table 3 has 0.03 for all models on
ImageNet-21k: choose it with weight_decay=0.03.

Hardware: 256 TPU chips. The parameters, their moments and the batch are sharded
over fsdp=16 neighbours, and there are as many such groups as chips allow;
fsdp=8 and others are options. Blocks are scanned, and only the outputs of
matrix products are kept for the backward pass. Before renting,

  python -m vit_jax aot --config=configs/vit_h14_i21k.py --topology=v5e-256

shows whether it fits. Expected: 49 % of the validation images get a right class
(authors, google-research/vision_transformer issue 62). Not run here.

Differs from the paper's code, which was never released:
  * Clipping to norm 1, which the paper has for ImageNet-1k alone, and a first
    moment in bfloat16 are ours.
  * The weight decay and the labels; see above and vit_l16_i21k.py.
  * Update k has the rate of step k; in the authors' code for fine-tuning that
    of k - 1.
"""

import ml_collections

from vit_jax.configs import common, common_data

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
    data='imagenet21k',
    data_dir=None,
    fsdp=16,
    weight_decay=0.1,
    multi_label=False,
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
  config.total_epochs = 90.0
  config.mesh = dict(data=-1, fsdp=options.fsdp)
  config.model = dict(
    name='vit',
    variant='H/14',
    num_classes=num_classes,
    pooling='token',
    representation_size=True,
    dropout_rate=0.1,
    head_bias_init=-10.0,
    dtype='bfloat16',  # Of matrix products, as in the authors' runs;
    residual_dtype='float32',  # the sum of the blocks' outputs is exact.
    scan=True,
    remat='dots_with_no_batch_dims_saveable',
  )
  config.objective = dict(name='supervised', loss='sigmoid')
  config.input = dict(
    data=data(train),
    ops=TRAIN_OPS + labels,
    device_ops='normalize(-1, 1)',
    batch_size=4096,
  )
  config.optimizer = dict(
    name='adamw',
    learning_rate=1e-3,
    schedule='linear',
    warmup_steps=10_000,
    end_learning_rate=1e-5,
    weight_decay=options.weight_decay,
    # Ours; see the header.
    grad_clip_norm=1.0,
    mu_dtype='bfloat16',
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
  config.checkpoint = dict(every_steps=5000)
  return common.smoke(config) if options.smoke else config
