r"""Fine-tuning of any weights: SGD at 384 px as the ViT papers do, or AdamW.

  python -m vit_jax train --workdir=runs/pets \
    --config=configs/finetune.py:model=augreg-B/16,data=/data/pets

  python -m vit_jax train --workdir=runs/cifar100 \
    --config=configs/finetune.py:model=augreg-B/16,data=cifar100

  python -m vit_jax train --workdir=runs/vtab_dtd \
    --config=configs/finetune.py:model=vit-B/16,data=vtab/dtd,trainval

  model       what vit_jax.load takes: a published name
              (pretrained/published.py lists them), the folder of a run of
              yours, a file (.safetensors, .npz, .pth), a folder of timm or
              Hugging Face
  weights     where the weights are, if `model` does not say it, as in
              model=dinov2-B/14,weights=/data/dinov2_vitb14.pth
  data        a key of SETTINGS (configs/common_transfer.py): imagenet2012,
              cifar10, cifar100, oxford_iiit_pet, oxford_flowers102, cars196,
              i_naturalist2018, vtab/<task>; /path with train/<class>/ and
              val/<class>/ (or validation/, test/), or with <class>/ alone; or
              another dataset of TFDS with num_classes (configs/common_data.py)
  settings    a key of SETTINGS for data under another name, as in
              data=/data/cars,settings=cars196. `i_naturalist2019` is for data
              at a path; `vit_paper` is ImageNet at 512 px for L/16 and 518 for
              H/14
  train, val, test    splits. `val` is for choices, and held out of `train` if
              there is none; `test` is evaluated once, at the end
  trainval    trains on train and val, evaluates test: for the last run, after
              the choices. Of datasets of TFDS
  steps, crop    crop is a key of CROPS (configs/common_transfer.py)
  resolution  in pixels. 384, or the nearest multiple of the patch, for a
              published name; that of a run and of a file of ours; else 224
  optimizer   sgd or adamw; the latter suits self-supervised weights, with
              layer_decay=0.75. By default as the settings say
  freeze      only the head learns
  unfreeze    in stages: for a tenth of the run the head alone, for another the
              last so many blocks with it, then all. unfreeze=4
  mixup, cutmix, erasing    alphas of the two, rate of random erasing
  randaugment    DeiT's (rand-m9-mstd0.5-inc1)
  label_smoothing, dropout, stochastic_depth    rates
  extra_evals found, all or none: ImageNet-V2 and ReaL after imagenet2012
              (configs/common_evals.py)
  data_dir    of TFDS

The model section follows from the name, the run or our file without a look at
the weights; for other files it is `like`, and is read from the weights when the
run starts. Where weights turn out to be of another model, the run ends before
its first step and lists the differences. The head is new and starts at zero,
and dropout is 0 but for vit-L/16 and vit-H/14 (0.1, as in vision_transformer's
configs/models.py). Position tables are resized as the code of the weights does
it; those of a run of yours as Google's (scipy's zoom), or with
activation='gelu' as DeiT's (torch's bicubic). Images are normalised as for the
weights; for a file that does not say how, with normalize(-1, 1).

The settings are those of google-research/vision_transformer (configs/vit.py,
augreg.py) and big_vision (configs/transfer.py): batch 512, momentum 0.9 kept in
bfloat16, gradients clipped to norm 1, cosine after a linear warm-up, no weight
decay. Those of Stanford Cars and iNaturalist are DeiT's (its issues 45, 105).
Rates and crops of the table were the best of big_vision's augreg-B/32; of vit-*
they are vision_transformer's (0.03, and 0.01 for B/16 on CIFAR-10; evaluation
squeezes images to a square). For others sweep the rate:

  python -m vit_jax sweep --workdir=runs/rates \
    --config=configs/finetune.py:model=augreg-S/16,data=oxford_iiit_pet \
    --sweep.optimizer.learning_rate=0.001,0.003,0.01,0.03

VTAB-1k has 1,000 images of each of 19 tasks: choose on train[:800] and val, 200
images, then add trainval. One setting is for all tasks, as in appendix B.1.1 of
the ViT paper: rate 0.01, 2,500 steps, 384 px.

Data at a path, N training images, has a plan of its size, which a line at the
start says: the batch is the largest power of two up to N / 8, from 8 to 512,
the run takes 500 steps but at most 20 epochs, and the rate goes with the square
root of the batch (no paper's rule; the rate of torchvision's tutorial on 244
images, 0.001 at batch 4, is on it). On a CPU, resolution=224, freeze and
--config.model.dtype=float32 save most of the time.

Expected for augreg-B/32, by its authors, over 5 seeds: ImageNet 83.27, CIFAR-10
98.55, CIFAR-100 91.35, Pets 93.78, Flowers 99.43 % top-1; for vit-L/16 on
ImageNet 85.05 with dropout and 84.47 without; for DeiT's B/16 at 384 px Cars
93.3, iNaturalist 79.5 (2018) and 81.4 (2019). Not run here at this size;
README.md has a smaller one that was.

Differs from the papers' code:
  * The average of the weights, min(0.9999, (1 + t) / (10 + t)) at step t, is
    evaluated beside the weights, and is what vit_jax.load takes. The ViT paper
    averaged with 0.9999 for ImageNet; its code and big_vision do not.
  * Update k has the rate of step k; theirs that of k - 1, so that the first
    does nothing. The momentum is computed in float32 and then rounded.
  * JPEGs are decoded exactly and levels rounded: up to one level of 255.
  * DeiT's settings: one draw of mixup or CutMix for the whole batch, SGD's
    weight decay beside the gradient and not in it, bfloat16 for float16.
    Whether its rate of 0.01 for Cars was scaled by the batch is not said.
  * VTAB: the warm-up of 500 steps, and that no structured task is cropped or
    mirrored, are ours; the papers give neither.
"""

import math

import ml_collections

from vit_jax.configs import (
  common,
  common_data,
  common_evals,
  common_transfer,
  common_weights,
)
from vit_jax.models._vit_tables import VARIANTS

# Of data that the table does not have, in passes over the training images.
MAX_EPOCHS = 20


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; options are in the header of this file."""
  options = common.parse_arg(
    arg,
    model='augreg-B/16',
    weights=None,
    data='cifar100',
    settings=None,
    num_classes=0,  # As all below that are 0 or None: by model and data.
    train=None,
    val=None,
    test=None,
    trainval=False,
    steps=0,
    crop=None,
    resolution=0,
    optimizer=('published', 'sgd', 'adamw'),
    layer_decay=0.0,
    freeze=False,
    unfreeze=0,
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
    randaugment=False,
    label_smoothing=0.0,
    dropout=0.0,
    stochastic_depth=0.0,
    data_dir=None,
    extra_evals=common_evals.CHOICES,
    smoke=False,
  )
  setting = common_transfer.find(options)
  with options.ignore_type():
    options.update({k: options[k] or v for k, v in setting.augment.items()})
  name = options.data
  if name in common_transfer.SETTINGS:
    name = setting.dataset or name
  num_classes = options.num_classes or setting.num_classes
  num_classes = num_classes or common_data.num_classes(name)
  splits = common_data.splits(name, tfds=setting.splits)
  given = (options.train, options.val, options.test)
  train, val, test = (a or b for a, b in zip(given, splits, strict=True))
  if options.trainval:
    train, val = _trainval(name, train, val, test), None
  plan = _plan(options, setting)
  steps = plan['steps']
  wanted = setting.resolution.get(common_transfer.variant(options.model), 384)
  model, device_ops, resolution = common_weights.model_of(
    options.model, wanted, resolution=options.resolution
  )
  train_ops, eval_ops = common_transfer.ops(options, setting, resolution)

  def data(split):
    return common_data.images(
      name, split, options.data_dir, label_key=setting.label_key
    )

  config = ml_collections.ConfigDict()
  if steps:
    config.total_steps = steps
  else:
    config.total_epochs = setting.epochs
  config.model = dict(model, num_classes=num_classes, **_dropout(options))
  config.init_from = [
    dict(
      weights=options.weights or options.model,
      skip='(head|representation)/.*',
      **common_weights.position_resize(options.model),
    )
  ]
  config.objective = dict(name='supervised', loss='softmax')
  if options.label_smoothing and not (options.mixup or options.cutmix):
    config.objective.label_smoothing = options.label_smoothing
  config.input = dict(
    data=data(train),
    ops=train_ops,
    batch_size=plan['batch_size'],
    **_device_ops(options, device_ops),
  )
  if setting.repeats > 1:
    config.input.repeats = setting.repeats
  config.optimizer = _optimizer(options, setting, model, plan)
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

  often = dict(every_steps=max(1, steps // 20)) if steps else {}
  often = often or dict(every_epochs=setting.epochs / 20)
  config.evals = {}
  if val:
    config.evals.val = top1(val, **often)
  if test:
    config.evals.test = top1(test)
    variants_of = top1(test) if num_classes == 1000 else None
    config.evals.update(common_evals.extra(options, val=variants_of))
  config.checkpoint = dict(every_steps=1000)
  config.pictures = dict(
    predictions=dict(name='predictions', data=data(val or test), ops=eval_ops)
  )
  if options.smoke:
    config.init_from = []
    return common.smoke(config)
  if plan['text']:
    common.say(f'{plan["text"]}, {resolution} x {resolution} pixels')
  return config


def _trainval(name: str, train: str, val: str, test: str | None) -> str:
  if not test or common_data.images(name, train).name != 'tfds':
    raise ValueError(
      f'trainval goes with datasets of TFDS that have a test split; data={name}'
      ' is not one: give train= and val='
    )
  return f'{train}+{val}'


def _plan(options, setting: common_transfer.Setting) -> dict:
  """Returns batch size, steps and factor of the rate for the data at hand."""
  steps = options.steps or setting.steps
  plan = dict(
    steps=steps, batch_size=setting.batch_size, rate_factor=1.0, text=''
  )
  count = None
  if (options.settings or options.data) not in common_transfer.SETTINGS:
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


def _device_ops(options, device_ops: dict) -> dict:
  """Returns `device_ops` of the input: normalisation, erasing, mixing."""
  ops = []
  if options.erasing:
    ops.append(f"random_erasing({options.erasing}, mode='pixel')")
  if options.mixup or options.cutmix:
    ops.append(
      f'mixup_cutmix({options.mixup}, {options.cutmix}, '
      f'label_smoothing={options.label_smoothing})'
    )
  if ops and not device_ops:
    raise ValueError(
      f'model={options.model} does not say how images are normalised before '
      f'{ops[0]}: in place of mixup, cutmix and erasing give all device ops '
      'as --config.input.device_ops'
    )
  if not ops:
    return device_ops
  return dict(device_ops='|'.join([device_ops['device_ops'], *ops]))


def _dropout(options) -> dict:
  """Returns the keys of the model section for what is dropped in training."""
  rates = dict(
    dropout_rate=options.dropout, stochastic_depth_rate=options.stochastic_depth
  )
  return {key: rate for key, rate in rates.items() if rate}


def _optimizer(
  options, setting: common_transfer.Setting, model: dict, plan: dict
) -> dict:
  """Returns the optimizer section."""
  factor, steps = plan['rate_factor'], plan['steps']
  if options.optimizer == 'published' and setting.optimizer:
    section = dict(setting.optimizer)
  elif options.optimizer == 'adamw':
    # MAE's rate, 5e-4 for 256 images, goes with its layer decay. Without, no
    # paper's: where a sweep may begin.
    rate = 1e-3 if options.layer_decay else 1e-4
    section = dict(
      name='adamw', learning_rate=_two_digits(factor * rate), weight_decay=0.05
    )
  else:
    section = dict(
      name='sgd',
      learning_rate=_two_digits(factor * setting.learning_rate),
      momentum=0.9,
      mu_dtype='bfloat16',
    )
  if 'schedule' not in section:
    # big_vision's shortest run, 500 steps, warms up over a fifth of it.
    warmup = dict(warmup_epochs=5.0)
    if steps:
      warmup = dict(warmup_steps=min(setting.warmup_steps, steps // 5))
    section |= dict(schedule='cosine', grad_clip_norm=1.0, **warmup)
  for key in ('layer_decay', 'unfreeze'):
    if options.freeze and options[key]:
      raise ValueError(f'with freeze only the head learns: remove {key}')
  if options.freeze:
    section['freeze'] = ['(?!head/).*']
  if options.unfreeze:
    key, tenth = 'hold_epochs', (setting.epochs or 0) / 10
    if steps:
      key, tenth = 'hold_steps', steps // 10
    section[key] = _stages(options, model, tenth)
  if options.layer_decay:
    section['layer_decay'] = options.layer_decay
  return section


def _stages(options, model: dict, duration) -> list[tuple]:
  """Returns what is held back for one `duration`, and for two."""
  name = model.get('variant', '').partition('/')[0]
  depth = model.get('depth') or VARIANTS.get(name, {}).get('depth')
  if depth is None:
    raise ValueError(
      f'unfreeze={options.unfreeze}: model={options.model} does not say how '
      'many blocks it has before its weights are read; set '
      '--config.optimizer.hold_steps'
    )
  if not 1 <= options.unfreeze <= depth:
    raise ValueError(
      f'unfreeze={options.unfreeze}: expected 1 to {depth} blocks'
    )
  last = '|'.join(f'{i:02d}' for i in range(depth - options.unfreeze, depth))
  return [
    (f'encoder/block_({last})/.*|(encoder/norm|norm|pooling)/.*', duration),
    ('(?!head/).*', 2 * duration),
  ]


def _two_digits(rate: float) -> float:
  return float(f'{rate:.2g}')
