r"""Fine-tuning of any weights: SGD at 384 px as the ViT papers do, or AdamW.

  python -m vit_jax train --workdir=runs/pets \
    --config=configs/finetune.py:model=augreg-B/16,data=/data/pets

  python -m vit_jax train --workdir=runs/cifar100 \
    --config=configs/finetune.py:model=augreg-B/16,data=cifar100

  model       what vit_jax.load takes: a published name
              (pretrained/published.py lists them), the folder of a run of
              yours, a file (.safetensors, .npz, .pth), a folder of timm or
              Hugging Face
  weights     where the weights are, if `model` does not say it, as in
              model=dinov2-B/14,weights=/data/dinov2_vitb14.pth
  data        one of the table below; /path with train/<class>/ and val/<class>/
              (or validation/, test/), or with <class>/ alone; or another
              dataset of TFDS with num_classes (configs/common_data.py)
  train, val, test    splits. `val` is for choices, and held out of `train` if
              there is none; `test` is evaluated once, at the end
  steps, crop    crop is inception, resmall or resize
  resolution  in pixels. 384, or the nearest multiple of the patch, for a
              published name; that of a run and of a file of ours; else 224
  optimizer   sgd or adamw; the latter suits self-supervised weights, with
              layer_decay=0.75
  freeze      only the head learns
  data_dir    of TFDS

The model section follows from the name, the run or our file without a look at
the weights; for other files it is `like`, and is read from the weights when the
run starts. Where weights turn out to be of another model, the run ends before
its first step and lists the differences. The head is new and starts at zero,
position tables are resized, no dropout is kept. Images are normalised as for
the weights; for a file that does not say how, with normalize(-1, 1).

The settings are those of google-research/vision_transformer (configs/vit.py,
augreg.py) and big_vision (configs/transfer.py): batch 512, momentum 0.9 kept in
bfloat16, gradients clipped to norm 1, cosine after a linear warm-up, no weight
decay. Rates and crops of the table were the best of big_vision's augreg-B/32;
for others sweep the rate:

  python -m vit_jax sweep --workdir=runs/rates \
    --config=configs/finetune.py:model=augreg-S/16,data=oxford_iiit_pet \
    --sweep.optimizer.learning_rate=0.001,0.003,0.01,0.03

Data at a path, N training images, has a plan of its size, which a line at the
start says: the batch is the largest power of two up to N / 8, from 8 to 512,
the run takes 500 steps but at most 20 epochs, and the rate goes with the square
root of the batch (no paper's rule; the rate of torchvision's tutorial on 244
images, 0.001 at batch 4, is on it). On a CPU, resolution=224, freeze and
--config.model.dtype=float32 save most of the time.

Expected for augreg-B/32, by its authors, over 5 seeds: ImageNet 83.27, CIFAR-10
98.55, CIFAR-100 91.35, Pets 93.78, Flowers 99.43 % top-1. Ours also
evaluates the average of the weights. Not run here at this size; README.md has a
smaller one that was.
"""

import math

import ml_collections

from vit_jax.configs import common, common_data, common_weights

# big_vision's configs/transfer.py.
DATASETS = {
  'imagenet2012': dict(
    steps=20_000,
    warmup_steps=500,
    learning_rate=0.03,
    crop='inception',
    splits=('train[:99%]', 'train[99%:]', 'validation'),
  ),
  'cifar10': dict(
    steps=10_000,
    warmup_steps=500,
    learning_rate=0.003,
    crop='resmall',
    splits=('train[:98%]', 'train[98%:]', 'test'),
  ),
  'cifar100': dict(
    steps=10_000,
    warmup_steps=500,
    learning_rate=0.01,
    crop='resmall',
    splits=('train[:98%]', 'train[98%:]', 'test'),
  ),
  'oxford_iiit_pet': dict(
    steps=500,
    warmup_steps=100,
    learning_rate=0.003,
    crop='inception',
    splits=('train[:90%]', 'train[90%:]', 'test'),
  ),
  'oxford_flowers102': dict(
    steps=500,
    warmup_steps=100,
    learning_rate=0.003,
    crop='inception',
    splits=('train[:90%]', 'train[90%:]', 'test'),
  ),
}
# vision_transformer's configs/augreg.py, with the rate of its example.
OTHERS = dict(
  steps=500,
  warmup_steps=100,
  learning_rate=0.01,
  crop='inception',
  splits=('train[:90%]', 'train[90%:]', None),
)


# Of data that the table does not have, in passes over the training images.
MAX_EPOCHS = 20


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; options are in the header of this file."""
  options = common.parse_arg(
    arg,
    model='augreg-B/16',
    weights=None,
    data='cifar100',
    num_classes=0,  # As all below that are 0 or None: by model and data.
    train=None,
    val=None,
    test=None,
    steps=0,
    crop=None,
    resolution=0,
    optimizer=('sgd', 'adamw'),
    layer_decay=0.0,
    freeze=False,
    data_dir=None,
    smoke=False,
  )
  published = DATASETS.get(options.data, OTHERS)
  num_classes = common_data.num_classes(options.data, options.num_classes)
  splits = common_data.splits(options.data, tfds=published['splits'])
  train, val, test = (
    a or b
    for a, b in zip(
      (options.train, options.val, options.test), splits, strict=True
    )
  )
  plan = _plan(options, published)
  steps, batch_size = plan['steps'], plan['batch_size']
  model, device_ops, resolution = common_weights.model_of(
    options.model, resolution=options.resolution
  )
  train_ops, eval_ops = _ops(options.crop or published['crop'], resolution)

  def data(split):
    return common_data.images(options.data, split, options.data_dir)

  config = ml_collections.ConfigDict()
  config.total_steps = steps
  config.model = dict(model, num_classes=num_classes)
  config.init_from = [
    dict(
      weights=options.weights or options.model,
      skip='(head|representation)/.*',
    )
  ]
  config.objective = dict(name='supervised', loss='softmax')
  config.input = dict(
    data=data(train), ops=train_ops, batch_size=batch_size, **device_ops
  )
  config.optimizer = dict(
    _optimizer(options, published['learning_rate'], plan['rate_factor']),
    schedule='cosine',
    # big_vision's shortest run, 500 steps, warms up over a fifth of it.
    warmup_steps=min(published['warmup_steps'], steps // 5),
    grad_clip_norm=1.0,
  )
  # A short run averages over its last tenth rather than over 10,000 steps.
  config.ema = dict(decay=0.9999, warmup=True)

  def top1(split, **cadence):
    return dict(
      name='classification',
      weights=('ema', 'params'),
      data=data(split),
      ops=eval_ops,
      **cadence,
    )

  config.evals = dict(val=top1(val, every_steps=max(1, steps // 20)))
  if test:
    config.evals.test = top1(test)
  config.checkpoint = dict(every_steps=1000)
  config.pictures = dict(
    predictions=dict(name='predictions', data=data(val), ops=eval_ops)
  )
  if options.smoke:
    config.init_from = []
    return common.smoke(config)
  if plan['text']:
    common.say(f'{plan["text"]}, {resolution} x {resolution} pixels')
  return config


def _plan(options, published: dict) -> dict:
  """Returns batch size, steps and factor of the rate for the data at hand."""
  steps = options.steps or published['steps']
  plan = dict(steps=steps, batch_size=512, rate_factor=1.0, text='')
  count = None
  if published is OTHERS:
    count = common_data.num_training_images(options.data, split=options.train)
  if not count:
    return plan
  batch_size = common_data.batch_size(count, most=512)
  if not options.steps:
    steps = min(steps, math.ceil(MAX_EPOCHS * count / batch_size))
  if (steps, batch_size) == (plan['steps'], 512):
    return plan
  factor = math.sqrt(batch_size / 512)
  text = (
    f'finetune.py: about {count:,} training images: {steps:,} steps of '
    f'{batch_size} images, {steps * batch_size / count:.3g} epochs'
  )
  return dict(steps=steps, batch_size=batch_size, rate_factor=factor, text=text)


def _ops(crop: str, size: int) -> tuple[str, str]:
  """Returns the ops of training and evaluation.

  They are big_vision's, except that JPEGs are decoded accurately and levels
  rounded: half a level to a whole one of 255 brighter.
  """
  larger = round(size * 448 / 384)
  crops = {
    'inception': (
      f"random_resized_crop({size}, sampling='tensorflow', antialias=False)"
    ),
    'resmall': (f"resize_small({larger}, method='area')|random_crop({size})"),
    'resize': f'resize({larger}, antialias=False)|random_crop({size})',
  }
  if crop not in crops:
    raise ValueError(f'crop={crop!r}: expected one of {", ".join(crops)}')
  evaluation = (
    f"decode|resize_small({larger}, method='area')|central_crop({size})"
  )
  return f'decode|{crops[crop]}|flip_lr', evaluation


def _optimizer(options, sgd_learning_rate: float, factor: float) -> dict:
  section = dict(
    name='sgd',
    learning_rate=_two_digits(factor * sgd_learning_rate),
    momentum=0.9,
    mu_dtype='bfloat16',
  )
  if options.optimizer == 'adamw':
    # MAE's rate, 5e-4 for 256 images, goes with its layer decay. Without, no
    # paper's: where a sweep may begin.
    section = dict(
      name='adamw',
      learning_rate=_two_digits(
        factor * (1e-3 if options.layer_decay else 1e-4)
      ),
      weight_decay=0.05,
    )
  if options.freeze and options.layer_decay:
    raise ValueError('with freeze only the head learns: remove layer_decay')
  if options.freeze:
    section['freeze'] = ['(?!head/).*']
  if options.layer_decay:
    section['layer_decay'] = options.layer_decay
  return section


def _two_digits(rate: float) -> float:
  return float(f'{rate:.2g}')
