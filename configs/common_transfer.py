"""Published settings of fine-tuning, by dataset; configs/finetune.py has them.

Names are those of TFDS, but for

  i_naturalist2019  which TFDS does not have: data=/path with settings= of this
                    name
  vit_paper         ImageNet at the resolution of the ViT paper
  vtab/<task>       the 19 tasks of VTAB-1k (arXiv:1910.04867)
"""

import dataclasses
import re
from typing import Any

# Ops of training and of evaluation by `crop`; S is the resolution, L is 448/384
# of it and T 256/224, rounded down.
_AREA = "resize_small({L}, method='area')"
_CENTRE = f'{_AREA}|central_crop({{S}})'
_SQUEEZE = 'resize({S}, antialias=False)'
CROPS = {
  'inception': (
    "random_resized_crop({S}, sampling='tensorflow', antialias=False)|flip_lr",
    _CENTRE,
  ),
  'resmall': (f'{_AREA}|random_crop({{S}})|flip_lr', _CENTRE),
  'resize': (
    'resize({L}, antialias=False)|random_crop({S})|flip_lr',
    _CENTRE,
  ),
  'squeeze': (_SQUEEZE, _SQUEEZE),
  'deit': (
    "random_resized_crop({S}, method='bicubic')|flip_lr",
    "resize_small({T}, method='bicubic', rounding='down')"
    "|central_crop({S}, rounding='even')",
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """How weights are fine-tuned on a dataset.

  Attributes:
    steps: of the run; None where `epochs` are given.
    epochs: passes over the training images.
    warmup_steps: linear warm-up.
    learning_rate: peak rate of SGD.
    crop: of training and evaluation, a key of CROPS.
    splits: of TFDS: training, validation (held out of it), test.
    num_classes: None where the dataset says it.
    dataset: of TFDS, where the setting has another name.
    label_key: the feature of TFDS that has the label.
    label_op: what makes the class of it, an op after decoding.
    resolution: in pixels by the variant of the model; 384 for others.
    batch_size: images of a step.
    repeats: copies of an image in a batch.
    optimizer: an optimizer section in place of SGD with the keys above.
    augment: options of the recipe, where the user does not give them.
  """

  steps: int | None = None
  epochs: float | None = None
  warmup_steps: int = 100
  learning_rate: float = 0.01
  crop: str = 'inception'
  splits: tuple[str, str, str | None] = ('train[:90%]', 'train[90%:]', 'test')
  num_classes: int | None = None
  dataset: str | None = None
  label_key: str | None = None
  label_op: str = ''
  resolution: dict[str, int] = dataclasses.field(default_factory=dict)
  batch_size: int = 512
  repeats: int = 1
  optimizer: dict[str, Any] | None = None
  augment: dict[str, Any] = dataclasses.field(default_factory=dict)


# vision_transformer's configs/augreg.py, with the rate of its example.
OTHERS = Setting(steps=500, splits=('train[:90%]', 'train[90%:]', None))

# The optimizer of DeiT, README_deit.md, but for what stands below.
_DEIT = dict(
  schedule='deit', warmup_epochs=5.0, stair_epochs=1.0, end_learning_rate=1e-5
)
_DEIT_AUGMENT = dict(
  randaugment=True, mixup=0.8, cutmix=1.0, label_smoothing=0.1
)
# facebookresearch/deit issue 105, of the base model.
_INATURALIST = dict(
  epochs=360.0,
  crop='deit',
  batch_size=768,
  repeats=3,
  optimizer=dict(_DEIT, name='adamw', learning_rate=7.5e-5, weight_decay=0.05),
  augment=dict(_DEIT_AUGMENT, erasing=0.1, stochastic_depth=0.1),
)
_IMAGENET = dict(
  steps=20_000,
  warmup_steps=500,
  learning_rate=0.03,
  splits=('train[:99%]', 'train[99%:]', 'validation'),
)
_CIFAR = dict(
  steps=10_000,
  warmup_steps=500,
  crop='resmall',
  splits=('train[:98%]', 'train[98%:]', 'test'),
)

# VTAB-1k: the dataset of TFDS, classes, the 200 images for choices and the
# test images, as google-research/task_adaptation splits them. The 800 training
# images are train[:800].
_NATURAL = {
  # A tenth of TFDS's 3,057 training images.
  'caltech101': ('caltech101', 102, 'train[2751:2951]', 'test'),
  'cifar100': ('cifar100', 100, 'train[45000:45200]', 'test'),
  'dtd': ('dtd', 47, 'validation[:200]', 'test'),
  'flowers102': ('oxford_flowers102', 102, 'validation[:200]', 'test'),
  'pets': ('oxford_iiit_pet', 37, 'train[2944:3144]', 'test'),
  'sun397': ('sun397/tfds', 397, 'validation[:200]', 'test'),
  'svhn': ('svhn_cropped', 10, 'train[65931:66131]', 'test'),
}
_SPECIALIZED = {
  'camelyon': ('patch_camelyon', 2, 'validation[:200]', 'test'),
  'eurosat': ('eurosat/rgb', 10, 'train[16200:16400]', 'train[21600:]'),
  'resisc45': ('resisc45', 45, 'train[18900:19100]', 'train[25200:]'),
  'retinopathy': (
    'diabetic_retinopathy_detection/btgraham-300',
    5,
    'validation[:200]',
    'test',
  ),
}
# With the feature of TFDS that has the label.
_STRUCTURED = {
  'clevr_count': ('clevr', 8, 'train[63000:63200]', 'validation', 'objects'),
  'clevr_distance': ('clevr', 6, 'train[63000:63200]', 'validation', 'objects'),
  'dmlab': ('dmlab', 6, 'validation[:200]', 'test', None),
  'dsprites_location': (
    'dsprites',
    16,
    'train[589824:590024]',
    'train[663552:]',
    'value_x_position',
  ),
  'dsprites_orientation': (
    'dsprites',
    16,
    'train[589824:590024]',
    'train[663552:]',
    'value_orientation',
  ),
  'kitti_distance': ('kitti', 4, 'validation[:200]', 'test', 'objects'),
  'smallnorb_azimuth': (
    'smallnorb',
    18,
    'test[:200]',
    'test[50%:]',
    'label_azimuth',
  ),
  'smallnorb_elevation': (
    'smallnorb',
    9,
    'test[:200]',
    'test[50%:]',
    'label_elevation',
  ),
}


def _vtab() -> dict[str, Setting]:
  """Returns VTAB-1k: appendix B.1.1 of the ViT paper, 2,500 steps at 384 px.

  Images are squeezed to a square. Where a mirror image or a crop has another
  class (the structured tasks), training images are as in evaluation.
  """
  found = {}
  for name, (dataset, num_classes, val, test, *key) in {
    **_NATURAL,
    **_SPECIALIZED,
    **_STRUCTURED,
  }.items():
    made = key and key[0] in (
      'objects',
      'value_x_position',
      'value_orientation',
    )
    found[f'vtab/{name}'] = Setting(
      steps=2500,
      warmup_steps=500,
      crop='squeeze' if name in _STRUCTURED else 'resize',
      splits=('train[:800]', val, test),
      num_classes=num_classes,
      dataset=dataset,
      label_key=key[0] if key else None,
      label_op=f'vtab_label({name!r})' if made else '',
    )
  return found


SETTINGS = {
  # big_vision's configs/transfer.py.
  'imagenet2012': Setting(**_IMAGENET),
  'cifar10': Setting(**_CIFAR, learning_rate=0.003),
  'cifar100': Setting(**_CIFAR, learning_rate=0.01),
  'oxford_iiit_pet': Setting(steps=500, learning_rate=0.003),
  'oxford_flowers102': Setting(steps=500, learning_rate=0.003),
  # Table 2 of the ViT paper; the rate is one of the four it tried.
  'vit_paper': Setting(
    **_IMAGENET,
    dataset='imagenet2012',
    resolution={'L/16': 512, 'H/14': 518},
  ),
  # facebookresearch/deit issue 45: all as in pre-training, but for erasing and
  # stochastic depth.
  'cars196': Setting(
    epochs=1000.0,
    crop='deit',
    batch_size=768,
    repeats=3,
    splits=('train[:90%]', 'train[90%:]', 'test'),
    optimizer=dict(
      _DEIT,
      name='sgd',
      learning_rate=0.01,
      momentum=0.9,
      nesterov=True,
      weight_decay=1e-4,
    ),
    augment=_DEIT_AUGMENT,
  ),
  'i_naturalist2018': Setting(
    **_INATURALIST, splits=('train', 'validation', None)
  ),
  'i_naturalist2019': Setting(
    **_INATURALIST, splits=('train', 'validation', None)
  ),
  **_vtab(),
}


def find(options) -> Setting:
  """Returns the setting that data, settings and model of a recipe name.

  Raises:
    ValueError: an unknown name of a setting.
  """
  name, model = options.settings or options.data, options.model
  if name not in SETTINGS and (options.settings or name.startswith('vtab/')):
    key = 'settings' if options.settings else 'data'
    raise ValueError(f'{key}={name}: expected one of {", ".join(SETTINGS)}')
  setting = SETTINGS.get(name, OTHERS)
  if not _is_of_the_paper(model):
    return setting
  changes = {}
  # vision_transformer's configs/vit.py.
  if not setting.optimizer and not name.startswith('vtab/'):
    changes['crop'] = 'inception'
  if name in ('cifar10', 'cifar100'):
    is_small = name == 'cifar10' and variant(model) == 'B/16'
    changes['learning_rate'] = 0.01 if is_small else 0.03
  if variant(model) in ('L/16', 'H/14'):  # Its configs/models.py.
    changes['augment'] = dict(setting.augment, dropout=0.1)
  return dataclasses.replace(setting, **changes)


def ops(options, setting: Setting, size: int) -> tuple[str, str]:
  """Returns the ops of training and evaluation.

  They are big_vision's, except that JPEGs are decoded accurately and levels
  rounded: half a level to a whole one of 255 brighter.
  """
  crop = options.crop or setting.crop
  if crop not in CROPS:
    raise ValueError(f'crop={crop!r}: expected one of {", ".join(CROPS)}')
  train, evaluation = CROPS[crop]
  is_vtab = options.data.startswith('vtab/')
  if is_vtab or (_is_of_the_paper(options.model) and crop != 'deit'):
    evaluation = _SQUEEZE
  if options.randaugment:
    train += "|rand_augment('rand-m9-mstd0.5-inc1')"
  sizes = dict(S=size, L=round(size * 448 / 384), T=size * 256 // 224)
  decode = '|'.join(filter(None, ['decode', setting.label_op]))
  return tuple(f'{decode}|{ops.format(**sizes)}' for ops in (train, evaluation))


def variant(model: str) -> str:
  """Returns 'L/16' of the published name 'vit-L/16-i1k-384', or ''."""
  match = re.fullmatch(r'\w+-([\w-]*?/\d+)(-.*)?', model)
  return match[1] if match else ''


def _is_of_the_paper(model: str) -> bool:
  """Whether a model is one of "An Image is Worth 16x16 Words"."""
  return model.startswith('vit-') and variant(model) != ''
