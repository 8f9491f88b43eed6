"""Settings of a run that contradict each other are all in one message."""

import types

import pytest

from vit_jax.errors import UserError
from vit_jax.training import evaluation, plan as plan_lib


def _check(
  *, batch_size=8, repeats=1, total_steps=10, keep_best=None, **options
):
  data = types.SimpleNamespace(
    num_examples=20, batch_size=batch_size, repeats=repeats
  )
  run = types.SimpleNamespace(total_steps=total_steps, input=data)
  job = types.SimpleNamespace(weights=dict(val='params', val_ema='ema'))
  plan = plan_lib.Plan(
    config=dict(stop_after=None),
    run=run,
    jobs=[job],
    pictures={},
    finite=None,
    checkpoint=dict(keep_best=keep_best),
    **dict(log_every_steps=5, save_every_steps=None) | options,
  )
  if found := plan_lib.problems(plan):
    raise UserError('; '.join(found))


def test_a_batch_has_at_most_all_images_each_so_often():
  _check(batch_size=20)
  _check(batch_size=60, repeats=3)
  with pytest.raises(UserError, match=r'=21 is .* the 20 .*batch_size=16 or'):
    _check(batch_size=21)
  with pytest.raises(UserError, match=r'=61 is .* the 20 .*batch_size=32 or'):
    _check(batch_size=61, repeats=3)


def test_an_evaluation_alone_needs_neither_a_batch_nor_a_best_metric():
  settings_that_train_refuses = dict(batch_size=21, keep_best='other/top1')
  _check(**settings_that_train_refuses, total_steps=0)
  with pytest.raises(UserError):
    _check(**settings_that_train_refuses)


def test_the_best_metric_is_one_of_any_weights_of_an_evaluation():
  _check(keep_best='val/top1')
  _check(keep_best='val_ema/top1/cat')
  with pytest.raises(UserError, match='begin with val/, val_ema/'):
    _check(keep_best='ema/top1')


def test_a_class_does_not_decide_whether_less_of_its_metric_is_better():
  assert evaluation.lower_is_better({}, 'val/loss/cat')
  assert evaluation.lower_is_better({}, 'val/age_rmse')
  assert not evaluation.lower_is_better({}, 'val/top1/loss')


def test_all_problems_are_in_one_message():
  with pytest.raises(UserError) as e:
    _check(
      batch_size=21,
      keep_best='test/top1',
      log_every_steps=0,
      save_every_steps=-1,
    )
  for text in (
    'config.log_every_steps=0',
    'config.checkpoint.every_steps=-1',
    'config.input.batch_size=21',
    "keep_best='test/top1': no evaluation measures it; metrics of this config "
    'begin with val/, val_ema/',
  ):
    assert text in str(e.value), text
