"""The score of a classifier, with the head that it has, on a labelled split."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from vit_jax.data import folders, label_sets, open_source
from vit_jax.errors import UserError
from vit_jax.inference import classes
from vit_jax.pretrained import catalog, presets
from vit_jax.pretrained.formats import run as run_format
from vit_jax.pretrained.published_scores import SCORES, Score
from vit_jax.pretrained.weights import Weights
from vit_jax.training import evaluate

_FOLDERS = ('image_folder', 'array_record')


@dataclasses.dataclass(frozen=True)
class Scored:
  """What a classifier achieves, and what its authors report.

  Attributes:
    name: of the split or of the test set.
    metrics: of `evaluators/classification.py`, such as `{'top1': ...}`.
    source: of the weights: 'format', 'path', and of a run 'step'.
    preprocess: the ops and device ops of the images.
    published: the accuracy that was published for these weights on the
      validation set of ImageNet-1k, where the data may be that; or None.
    report: of `evaluators/classification_report.py`, if it was asked for.
  """

  name: str
  metrics: dict[str, float]
  source: dict[str, Any]
  preprocess: dict[str, str]
  published: Score | None
  report: dict[str, float]


def score(
  weights: str | os.PathLike,
  data: str,
  *,
  split: str | None = None,
  labels: str | None = None,
  preset: str | None = None,
  ops: str | None = None,
  device_ops: str | None = None,
  image_size: int | Sequence[int] | None = None,
  loss: str | None = None,
  per_class: bool = False,
  report: bool = False,
  batch_size: int = 128,
  mesh: jax.sharding.Mesh | None = None,
  on_log: Callable[[str], Any] = print,
  **options,
) -> Scored:
  """Returns the score of a classifier; reads and writes nothing else.

  Args:
    weights: whatever `vit_jax.load` takes.
    data: as for every command: a folder of images, what prepare wrote, a
      dataset of TFDS, or a source with keys; see `open_source.parse`.
    split: of the data; None is val, or else test, of a folder.
    labels: a label set of ImageNet, see `data/label_sets.py`. None compares by
      the names of the classes where the weights and the data have them, by
      WordNet ids where folders are named so, and else by number.
    preset: family whose preprocessing is used, see `presets.PRESETS`; None is
      that of the weights.
    ops: host ops that replace those of the weights or of the preset.
    device_ops: likewise.
    image_size: a side of square images in pixels, or (height, width): the sizes
      in the ops of the weights or of the preset become those. None is the size
      that the weights are for.
    loss: 'softmax' or 'sigmoid'; None is what the weights were trained with.
    per_class: adds the accuracy of each class.
    report: adds precision, recall, F1 and the like, with their intervals.
    batch_size: of the forward pass; it does not change the result.
    mesh: the devices; None is all, each with a part of the batch.
    on_log: called with lines of text.
    **options: of `catalog.load`.

  Raises:
    UserError: weights, data or options that do not fit.
  """
  if report and labels is not None:
    raise UserError(
      f'a report is of the classes of the data, and labels={labels!r} has a '
      'protocol of its own; leave out --report or --labels'
    )
  section = _section(
    data,
    split,
    is_run=run_format.matches(weights),
    has_labels=labels is not None,
  )
  found = catalog.load(weights, on_log=on_log, **options)
  num_classes = found.model.get('num_classes')
  if not num_classes:
    raise UserError(
      f'{found!r} has no head, and a score needs one. Evaluate its features: '
      '--config=configs/evaluate.py:/path'
    )
  given = {}
  if preset is not None:
    given = _preset(found, preset, image_size)
  given |= {k: x for k, x in dict(ops=ops, device_ops=device_ops).items() if x}
  mapping = labels
  if labels is None:
    mapping = _matching_classes(found, section, on_log)
  name = labels.partition(':')[0] if labels else section['split']
  name = re.match(r'\w[\w.-]*', name)[0]
  evals = {
    name: dict(
      name='classification',
      data=section,
      labels=mapping,
      loss=classes.loss_of(found, loss),
      per_class=per_class,
    )
  }
  if report:
    evals[f'{name}_report'] = dict(
      name='classification_report',
      data=_relabelled(section, mapping),
      per_class=per_class,
    )
  # Processes might find different checkpoints of a run that goes on.
  moving = jax.process_count() > 1 and run_format.matches(weights)
  results = evaluate.evaluate(
    weights if moving else found,
    evals,
    ops=given.get('ops'),
    device_ops=given.get('device_ops'),
    image_size=image_size,
    batch_size=batch_size,
    mesh=mesh,
    on_log=on_log,
    **(options | dict(step=found.source['step']) if moving else {}),
  )
  metrics = {key: {} for key in evals}
  for key, value in results.metrics.items():
    evaluation, _, metric = key.partition('/')
    metrics[evaluation][metric] = value
  published = None
  if num_classes == label_sets.NUM_CLASSES and labels in (None, 'imagenet'):
    published = SCORES.get(found.source.get('name'))
  return Scored(
    name=name,
    metrics=metrics[name],
    source=results.source,
    preprocess={k: results.preprocess[k] for k in ('ops', 'device_ops')},
    published=published,
    report=metrics.get(f'{name}_report', {}),
  )


def _section(
  data: str, split: str | None, *, is_run: bool, has_labels: bool
) -> dict[str, Any]:
  """Returns the data section of a text and a split."""
  section = open_source.parse(data)
  if section['name'] not in _FOLDERS or 'data_dir' not in section:
    if split is None:
      raise UserError(
        f'--data={data} needs --split, such as --split=validation'
      )
    return section | dict(split=split)
  found = folders.find(section['data_dir'])
  if not os.path.isdir(os.path.expanduser(section['data_dir'])):
    raise UserError(f'--data={data}: there is no such folder; check the path')
  if not (found.splits or found.flat):
    raise UserError(
      f'--data={data} has no folders of images; expected val/<class>/*.jpg, '
      'test/<class>/*.jpg or <class>/*.jpg in it'
    )
  if split is None:
    known = [x for x in ('val', 'test') if x in found.splits]
    if found.flat and (has_labels or not is_run):
      known = ['all']
    if not known:
      raise UserError(
        f'--data={data} has no split val or test: add --split=all for all '
        'images, or --split=val for those that training holds out'
        if found.flat
        else f'--data={data} has no split val or test; it has: '
        f'{", ".join(found.splits.values())}. Add --split'
      )
    split = known[0]
  word, bracket, part = split.partition('[')
  word = {'validation': 'val'}.get(word, word)
  word = found.splits.get(word, word)
  section |= dict(split=f'{word}{bracket}{part}')
  is_folder = section['name'] == 'image_folder' and not found.flat
  if is_folder and 'train' not in found.splits:
    section.setdefault('classes_from', word)
  return section


def _relabelled(
  section: dict[str, Any], labels: str | list[str] | None
) -> dict[str, Any]:
  if labels is None:
    return section
  data = dict(name='relabelled', data=section, labels=labels)
  return data | dict(split=section['split'])


def _preset(
  weights: Weights, family: str, image_size: int | Sequence[int] | None
) -> dict[str, str]:
  size = image_size or weights.preprocess.get('image_size')
  if size is None:
    raise UserError(
      f'the weights do not say for what size of images they are, so preset='
      f'{family!r} cannot be used; give image_size as well'
    )
  size = size if isinstance(size, int) else tuple(size)
  return presets.preprocess(family, size)


def _matching_classes(
  weights: Weights, section: Mapping[str, Any], on_log: Callable[[str], Any]
) -> str | list[str] | None:
  """Returns what the classes of data are for the weights, None for the same.

  Folders of a part of the classes, or with classes that the weights have in
  another order, go by their names.
  """
  names = open_source.open_source(section, where='data').class_names
  ours = weights.class_names
  if names is None or names == ours:
    return None
  if (
    ours is not None and set(names) <= set(ours) and len(set(ours)) == len(ours)
  ):
    on_log(
      f'the data has {len(names)} of the {len(ours)} classes of the weights; '
      'they go by their names'
    )
    return list(ours)
  num_classes = weights.model['num_classes']
  synsets = label_sets.synsets()
  if num_classes == len(synsets) and set(names) <= synsets.keys():
    if len(names) < num_classes:
      on_log(
        f'the data has {len(names)} of the classes of ImageNet-1k, by WordNet '
        'ids; answers are taken among all 1,000. For test sets with a protocol '
        'of their own give --labels'
      )
    return 'imagenet'
  if len(names) != num_classes:
    raise UserError(
      f'the data has {len(names)} classes ({", ".join(names[:3])}, ...) and '
      f'the weights {num_classes}, and their names do not match. For test sets '
      'of ImageNet add --labels (vit_jax/data/label_sets.py)'
    )
  if ours is not None:
    on_log(
      'the names of the classes differ between the data '
      f'({", ".join(names[:3])}, ...) and the weights ({", ".join(ours[:3])}, '
      '...); they are compared by number'
    )
  return None
