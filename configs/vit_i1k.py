r"""ViT on ImageNet-1k from scratch, 300 epochs: B/16 reaches about 79 %.

"How to train your ViT?" (Steiner et al. 2021, arXiv:2106.10270, "AugReg") with
the settings that its authors chose for each model in big_vision's
configs/vit_i1k.py. Run it with

  python -m vit_jax train --config=configs/vit_i1k.py:variant=B/16 \
      --workdir=runs/vit_i1k

after preparing imagenet2012 for TFDS, or on image folders (train/, val/) with
configs/vit_i1k.py:variant=B/16,data=/path/to/imagenet.

Hardware: a TPU pod slice that holds a batch of 4096. Expected: about 79 % top-1
for B/16 (its authors, google-research/big_vision issue 7). Each model has the
strength of augmentation that they chose; another one is named with, say,
augmentation=light2 (configs/common.py has the table of the paper). The paper's
dropout and stochastic depth, 0 or 0.1 for both, are 0 here as in the authors'
config: dropout=0.1,stochastic_depth=0.1 sets them. Not run here.

ImageNet-V2 and ReaL, and six few-shot datasets every 10,000 steps, are
evaluated too where TFDS has them prepared (extra_evals=,
configs/common_evals.py).

Differs from the paper's code:
  * Update k has the rate of step k; theirs that of k - 1, so that the first
    does nothing.
  * The first moment is computed in float32 and then rounded to bfloat16; optax
    multiplies it in bfloat16.
  * Each epoch is a random permutation of all images; theirs is a shuffle buffer
    of 250,000 images.
  * The authors' config names the few-shot evaluations in a place that their
    trainer no longer reads.
"""

import ml_collections

from vit_jax.configs import common, common_data, common_evals

AUGMENTATION = {
  'B/16': 'medium2',
  'Ti/16': 'light1',
  'S/32': 'medium1',
  'S/16': 'medium2',
  'B/32': 'medium2',
  'L/16': 'medium2',
}
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
    variant=tuple(AUGMENTATION),
    augmentation=None,
    dropout=0.0,
    stochastic_depth=0.0,
    data='imagenet2012',
    data_dir=None,
    extra_evals=common_evals.CHOICES,
    smoke=False,
  )
  randaug, mixup = common.augreg(
    options.augmentation or AUGMENTATION[options.variant], flavour='compat'
  )

  train, evals = common_data.imagenet_splits(options.data)

  def data(split):
    return common_data.images(options.data, split, options.data_dir)

  device_ops = 'normalize(-1, 1)'
  if mixup:
    device_ops += f"|mixup({mixup}, partner='roll', dominant=True)"
  config = ml_collections.ConfigDict()
  config.total_epochs = 300.0
  config.model = dict(
    name='vit',
    variant=options.variant,
    num_classes=common_data.num_classes(options.data, default=1000),
    pooling='token',
    representation_size=True,
    position_init='big_vision',
    dropout_rate=options.dropout,
    stochastic_depth_rate=options.stochastic_depth,
    head_bias_init=-6.9,  # log(1 / 1000): what a sigmoid loss starts best from.
    dtype='bfloat16',  # Of matrix products, as in the authors' runs;
    residual_dtype='float32',  # the sum of the blocks' outputs is exact.
  )
  config.objective = dict(name='supervised', loss='sigmoid')
  config.input = dict(
    data=data(train),
    ops=f'{TRAIN_OPS}|{randaug}' if randaug else TRAIN_OPS,
    device_ops=device_ops,
    batch_size=4096,
  )
  config.optimizer = dict(
    name='adamw',
    learning_rate=1e-3,
    schedule='cosine',
    warmup_steps=10_000,
    weight_decay=0.1,
    grad_clip_norm=1.0,
    mu_dtype='bfloat16',
  )

  def top1(split):
    return dict(
      name='classification',
      every_steps=2500,
      loss='sigmoid',
      data=data(split),
      ops=EVAL_OPS,
    )

  config.evals = {name: top1(split) for name, split in evals.items()}
  config.evals.update(
    common_evals.extra(
      options, val=top1('validation'), fewshot_every_steps=10_000
    )
  )
  config.checkpoint = dict(every_steps=1000)
  return common.smoke(config) if options.smoke else config
