"""Evaluations of ImageNet's variants and of few-shot datasets in recipes."""

import math
import pathlib

import pytest

from vit_jax.commands import _recipe
from vit_jax.configs import common_evals
from vit_jax.training import train

ROOT = pathlib.Path(__file__).parents[2]
VARIANTS = ['v2', 'real']
FEWSHOT = [f'fewshot_{name}' for name in common_evals.FEWSHOT]


def load(recipe, arg=''):
  return _recipe.load(str(ROOT / f'configs/{recipe}.py:{arg}'))


@pytest.mark.parametrize(
  'recipe, variants, every_steps',
  [
    ('vit_s16_i1k', VARIANTS, None),
    ('vit_i1k', VARIANTS, 10_000),
    ('vit_i21k', [], 25_000),
    ('vit_g14', [], 10_000),
  ],
)
def test_a_recipe_has_the_evaluations_of_big_vision(
  recipe, variants, every_steps
):
  off, evals = (
    load(recipe, f'extra_evals={choice}').evals.to_dict()
    for choice in ('none', 'all')
  )
  fewshot = FEWSHOT if every_steps else []
  assert evals.keys() - off.keys() == {*variants, *fewshot}
  for name in variants:
    assert evals[name]['every_steps'] == evals['val']['every_steps'] == 2500
    assert evals[name]['ops'].startswith(evals['val']['ops'])
  for name in fewshot:
    assert evals[name]['every_steps'] == every_steps
    assert evals[name]['ops'] == common_evals.fewshot_ops()


def test_few_shot_images_are_those_of_common_fewshot():
  # decode|resize(256)|central_crop(224), which is bilinear, does not antialias
  # and cuts levels.
  assert common_evals.fewshot_ops() == (
    "decode(dct='fast')|resize(256, antialias=False, truncate=True)"
    '|central_crop(224)'
  )
  evals = load('vit_g14', 'extra_evals=all,data_dir=/tfds').evals.to_dict()
  assert evals['fewshot_uc_merced'] == (
    dict(
      name='fewshot',
      every_steps=10_000,
      data_train=dict(
        name='tfds', dataset='uc_merced', split='train[:1000]', data_dir='/tfds'
      ),
      data_test=dict(
        name='tfds', dataset='uc_merced', split='train[1000:]', data_dir='/tfds'
      ),
      ops=common_evals.fewshot_ops(),
    )
  )


def test_real_labels_are_multi_hot_and_v2_has_matched_frequency():
  evals = load('vit_i1k', 'extra_evals=all,data_dir=/tfds').evals.to_dict()
  assert evals['real']['data'] == dict(
    name='tfds',
    dataset='imagenet2012_real',
    split='validation',
    label_key='real_label',
    data_dir='/tfds',
  )
  assert evals['real']['ops'].endswith('|onehot(1000)')
  assert evals['v2']['data']['dataset'] == 'imagenet_v2/matched-frequency'
  assert evals['v2']['data']['split'] == 'test'


def test_prepared_data_is_evaluated_by_default(tmp_path, capsys):
  for name, file in (
    ('cifar100/3.0.2', 'cifar100-train.array_record-00000-of-00001'),
    ('dtd/3.0.1', 'dtd-train.tfrecord-00000-of-00001'),
    ('imagenet_v2/matched-frequency/3.0.0', 'array_record/x.array_record-0'),
  ):
    path = tmp_path / name / file
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / name / 'dataset_info.json').touch()
  evals = load('vit_i1k', f'data_dir={tmp_path}').evals
  off = load('vit_i1k', 'extra_evals=none').evals
  assert set(evals) - set(off) == {'fewshot_cifar100', 'v2'}
  text = capsys.readouterr().err
  assert text.count('\n') == 1 and 'cifar100' not in text
  assert 'fewshot_dtd' in text and 'real' in text and 'extra_evals=all' in text


def test_variants_are_for_the_classes_of_imagenet_alone(tmp_path):
  for name in ('imagenet_v2/matched-frequency', 'imagenet2012_real'):
    (tmp_path / name / '1.0.0').mkdir(parents=True)
    for file in ('dataset_info.json', 'x.array_record-0'):
      (tmp_path / name / '1.0.0' / file).touch()
  found = load('vit_s16_i1k', f'data_dir={tmp_path}').evals
  assert {*VARIANTS} < set(found)
  other = load('vit_s16_i1k', f'data=my_data,data_dir={tmp_path}').evals
  assert not {*VARIANTS} & set(other)


def test_all_of_them_run(tmp_path):
  config = load('vit_i1k', 'smoke,extra_evals=all')
  results = train.train(str(tmp_path), **config.to_dict())
  for name in [f'{x}/top1' for x in VARIANTS] + [f'{x}/5shot' for x in FEWSHOT]:
    assert math.isfinite(results[name])
