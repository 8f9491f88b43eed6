"""The evaluation that represents a run, among several."""

import pytest

from vit_jax.pretrained.main_evaluation import main_evaluation, sides

DATA = dict(name='tfds', dataset='pets')
TRAINING = dict(
  data=dict(DATA, split='train'), ops='decode|random_resized_crop(32)'
)
VAL = dict(
  name='classification', data=dict(DATA, split='val'), ops='decode|resize(32)'
)
OTHER_DATA = VAL | dict(data=dict(name='tfds', dataset='pets_c', split='val'))
LARGE = VAL | dict(ops='decode|resize_small(73)|central_crop(64)')
FEW = dict(name='fewshot', ops='decode|resize(32)')


# Each list of evaluations is as config.json has it, alphabetical or not.
@pytest.mark.parametrize(
  ('evals', 'keep_best', 'want'),
  [
    ({}, None, None),
    (dict(off=None), None, None),
    (dict(few=FEW), None, 'few'),
    (dict(a_few=FEW, test=VAL), None, 'test'),
    (dict(a_large=LARGE, test=VAL), None, 'test'),
    (dict(corrupted=OTHER_DATA, test=VAL), None, 'test'),
    (dict(minival=VAL, val=VAL), None, 'val'),
    (dict(minival=VAL, test=VAL, val=VAL), 'test/loss', 'test'),
    (dict(minival=VAL, val=VAL), 'minival_ema/top1', 'minival'),
    (dict(test=VAL, minival=VAL), None, 'test'),
    (dict(corrupted=LARGE | OTHER_DATA, few=FEW, val=VAL), None, 'val'),
    # What the weights are chosen by may be no classification.
    (dict(few=FEW, val=VAL), 'few/10shot', 'val'),
  ],
)
def test_a_classification_as_in_training_comes_first(evals, keep_best, want):
  config = dict(
    input=TRAINING, evals=evals, checkpoint=dict(keep_best=keep_best)
  )
  assert main_evaluation(config) == want


def test_the_size_that_the_model_takes_is_preferred_to_that_of_training():
  config = dict(input=TRAINING, evals=dict(large=LARGE, val=VAL))
  assert main_evaluation(config) == 'val'
  assert main_evaluation(config, image_size=(64, 64)) == 'large'


def test_the_last_resize_or_crop_makes_the_size():
  assert sides('decode|resize_small(256)|central_crop(224)') == (224, 224)
  assert sides('decode|resize((24, 32))|flip_lr') == (24, 32)
  assert sides('decode') is sides('') is sides(None) is None
