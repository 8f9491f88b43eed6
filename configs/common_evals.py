"""Evaluations beside the main ones: ImageNet's variants, few-shot datasets.

Recipes that have them take the option `extra_evals`:

  found   (default) those whose TFDS data is prepared as array_record in
          `data_dir` ($TFDS_DATA_DIR, ~/tensorflow_datasets); a line at the
          start lists the others
  all     all of them; data that is missing is an error that says how to
          prepare it
  none    none of them
"""

import os
import pathlib

from vit_jax.configs import common, common_data

CHOICES = ('found', 'all', 'none')

# Dataset of TFDS, training split, test split: big_vision's
# configs/common_fewshot.py.
FEWSHOT = {
  'caltech': ('caltech101', 'train', 'test'),
  'cars': ('cars196', 'train', 'test'),
  'cifar100': ('cifar100', 'train', 'test'),
  'dtd': ('dtd', 'train', 'test'),
  'pets': ('oxford_iiit_pet', 'train', 'test'),
  'uc_merced': ('uc_merced', 'train[:1000]', 'train[1000:]'),
}


def extra(
  options,
  *,
  val: dict | None = None,
  fewshot_every_steps: int | None = None,
) -> dict[str, dict]:
  """Returns the sections that a recipe's `extra_evals` chooses; see above.

  Args:
    options: of a recipe: data, data_dir, extra_evals and smoke.
    val: the section of ImageNet's validation set, whose variants are wanted
      where the recipe reads `imagenet2012`, or with `all`.
    fewshot_every_steps: None for no few-shot evaluation.
  """
  choice, evals = options.extra_evals, {}
  if val is not None and (choice == 'all' or options.data == 'imagenet2012'):
    evals |= imagenet_variants(val, options.data_dir)
  if fewshot_every_steps is not None:
    evals |= fewshot(options.data_dir, every_steps=fewshot_every_steps)
  if choice != 'found':
    return evals if choice == 'all' else {}
  found = {k: section for k, section in evals.items() if _is_prepared(section)}
  missing = ', '.join(name for name in evals if name not in found)
  if missing and not options.smoke:
    common.say(
      f'without prepared data these evaluations are off: {missing} (with '
      'extra_evals=all the run says how to prepare it, extra_evals=none hides '
      'this line)'
    )
  return found


def fewshot_ops(size: int = 224) -> str:
  """Returns the ops of big_vision's few-shot images.

  Both sides become 256/224 of `size` whatever the aspect ratio was, bilinearly
  and without antialiasing; the centre is cropped.
  """
  larger = round(size * 256 / 224)
  return (
    f"decode(dct='fast')|resize({larger}, antialias=False, truncate=True)"
    f'|central_crop({size})'
  )


def fewshot(data_dir: str | None, *, every_steps: int) -> dict[str, dict]:
  """Returns a section for each dataset of FEWSHOT: 1, 5, 10 and 25 shots."""
  return {
    f'fewshot_{name}': dict(
      name='fewshot',
      every_steps=every_steps,
      data_train=common_data.images(dataset, train, data_dir),
      data_test=common_data.images(dataset, test, data_dir),
      ops=fewshot_ops(),
    )
    for name, (dataset, train, test) in FEWSHOT.items()
  }


def imagenet_variants(val: dict, data_dir: str | None) -> dict[str, dict]:
  """Returns the section of ImageNet's validation set for V2 and ReaL.

  ImageNet-V2 is new images (arXiv:1902.10811, matched frequency); ReaL is the
  validation images with all labels that are right (arXiv:2006.07159), where
  images without any do not count.

  Args:
    val: the section of the validation set; its data is replaced.
    data_dir: of TFDS.
  """
  v2 = common_data.images('imagenet_v2/matched-frequency', 'test', data_dir)
  real = common_data.images(
    'imagenet2012_real', 'validation', data_dir, label_key='real_label'
  )
  return dict(
    v2=dict(val, data=v2),
    real=dict(val, data=real, ops=f'{val["ops"]}|onehot(1000)'),
  )


def _is_prepared(section: dict) -> bool:
  """Whether TFDS has the data of a section as files with random access."""
  data = section['data'] if 'data' in section else section['data_train']
  root = data.data_dir or os.environ.get('TFDS_DATA_DIR')
  root = pathlib.Path(root or '~/tensorflow_datasets').expanduser()
  versions = root.glob(f'{data.dataset}/*/dataset_info.json')
  return any(
    next(file.parent.rglob('*.array_record*'), None) for file in versions
  )
