r"""ViT on ImageNet-21k, 300 epochs: the AugReg weights that people fine-tune.

"How to train your ViT?" (Steiner et al. 2021, arXiv:2106.10270), the settings
of the checkpoints that its authors recommend for each model. Run it with

  python -m vit_jax train --config=configs/vit_i21k.py:variant=B/16 \
      --workdir=runs/vit_i21k

TFDS has no recipe to prepare ImageNet-21k. Prepare the downloaded tars with
vit_jax prepare (docs/data.md) and name the result, or a folder of images
(<class>/, or train/<class>/), with configs/vit_i21k.py:variant=B/16,data=/path;
one that was prepared for TFDS (imagenet21k/1.0.0/ with the split `full`) is
found with data_dir=/path. The releases differ in their classes: those of a path
are counted, for TFDS set --config.model.num_classes=21841 where yours has as
many.

Hardware: a TPU pod slice that holds a batch of 4096. Expected, ImageNet-1k
top-1 of the recommended checkpoint fine-tuned at 384 px for 20,000 steps
(README of google-research/vision_transformer):

  Ti/16  78.22   S/32  79.58   S/16  83.73   B/32  83.59   B/16  85.49
  L/16   85.59

The table below names the augmentation of each; another one is named with, say,
augmentation=light2 (configs/common.py has the table of the paper). Of TFDS, the
labels are the feature `label`, one class for each image; multi_label takes
`labels`, all classes of an image, as the authors did. Six few-shot datasets are
evaluated every 25,000 steps where TFDS has them prepared (extra_evals=,
configs/common_evals.py). Not run here.

Differs from the paper's code:
  * Class token, weight decay and augmentation are those of the published
    checkpoints. big_vision's config has the mean of the tokens, a decay of 0.1
    for all, and light2, light2 and medium2 for B/32, B/16 and L/16.
  * One label for each image; see multi_label.
  * Update k has the rate of step k; theirs that of k - 1, so that the first
    does nothing.
  * The first moment is computed in float32 and then rounded to bfloat16; optax
    multiplies it in bfloat16.
  * Each epoch is a random permutation of all images; theirs is a shuffle buffer
    of 250,000 images.
"""

import ml_collections

from vit_jax.configs import common, common_data, common_evals

# variant: weight decay and augmentation, from the names of the recommended
# checkpoints, e.g. B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.
RECOMMENDED = {
  'B/16': (0.1, 'medium1'),
  'Ti/16': (0.03, 'none'),
  'S/32': (0.1, 'none'),
  'S/16': (0.03, 'light1'),
  'B/32': (0.1, 'light1'),
  'L/16': (0.1, 'strong1'),
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
    variant=tuple(RECOMMENDED),
    augmentation=None,
    data='imagenet21k',
    data_dir=None,
    multi_label=False,
    extra_evals=common_evals.CHOICES,
    smoke=False,
  )
  weight_decay, augmentation = RECOMMENDED[options.variant]
  randaug, mixup = common.augreg(
    options.augmentation or augmentation, flavour='compat'
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

  device_ops = 'normalize(-1, 1)'
  if mixup:
    device_ops += f"|mixup({mixup}, partner='roll', dominant=True)"
  config = ml_collections.ConfigDict()
  config.total_epochs = 300.0
  config.model = dict(
    name='vit',
    variant=options.variant,
    num_classes=num_classes,
    pooling='token',
    position_init='big_vision',
    head_bias_init=-10.0,
    dtype='bfloat16',  # Of matrix products, as in the authors' runs;
    residual_dtype='float32',  # the sum of the blocks' outputs is exact.
  )
  config.objective = dict(name='supervised', loss='sigmoid')
  config.input = dict(
    data=data(train),
    ops=(f'{TRAIN_OPS}|{randaug}' if randaug else TRAIN_OPS) + labels,
    device_ops=device_ops,
    batch_size=4096,
  )
  config.optimizer = dict(
    name='adamw',
    learning_rate=1e-3,
    schedule='cosine',
    warmup_steps=10_000,
    weight_decay=weight_decay,
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
  config.evals.update(common_evals.extra(options, fewshot_every_steps=25_000))
  config.checkpoint = dict(every_steps=5000)
  return common.smoke(config) if options.smoke else config
