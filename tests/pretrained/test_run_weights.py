"""Weights out of training runs."""

import dataclasses

import jax
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.checkpoints import manager
from vit_jax.errors import UserError
from vit_jax.pretrained import blocks, catalog
from vit_jax.pretrained.formats import run as run_format
from vit_jax.training import evaluate


@pytest.fixture
def run(make_weights, tmp_path):
  """Returns a workdir with checkpoints of steps 1 and 2, and its weights."""
  weights = make_weights(pooling='mean')
  stacked = trees.unflatten(blocks.stack(trees.flatten(weights.params)))
  config = dict(
    model=weights.model | dict(scan=True, remat='full', attention='xla'),
    input=dict(device_ops='normalize(-1, 1)', ops='random_crop(32)'),
    evals=dict(
      few=dict(name='fewshot'),
      val=dict(ops='decode|resize(32)'),
      b=dict(ops=''),
    ),
  )
  checkpointer = manager.Checkpointer(tmp_path / 'checkpoints')
  for step in (1, 2):
    params = jax.tree.map(lambda x, s=step: jax.numpy.asarray(x + s), stacked)
    average = jax.tree.map(lambda x: x - 100, params)
    state = dict(params=params, ema_params=average)
    checkpointer.save(step, state, config=config, wait=True)
  checkpointer.close()
  return tmp_path, weights


def save(weights, workdir, **sections):
  """Saves weights as a run of one checkpoint."""
  config = dict(model=weights.model, input={}) | sections
  checkpointer = manager.Checkpointer(workdir / 'checkpoints')
  state = dict(params=jax.tree.map(jax.numpy.asarray, weights.params))
  checkpointer.save(1, state, config=config, wait=True)
  checkpointer.close()


def first(weights):
  return weights.params['head/bias'][0]


def test_a_run_is_read_with_blocks_apart_and_its_preprocessing(run):
  workdir, weights = run
  found = run_format.read(workdir, ema=False)
  before, after = trees.flatten(weights.params), trees.flatten(found.params)
  assert set(before) == set(after)
  for name, array in before.items():
    np.testing.assert_array_equal(after[name], array + np.float32(2))
  assert found.model == weights.model
  assert found.preprocess == dict(
    image_size=(32, 32), ops='decode|resize(32)', device_ops='normalize(-1, 1)'
  )
  assert found.source['step'] == 2
  assert found.class_names is None


def test_images_are_prepared_as_in_the_main_evaluation_or_the_one_named(
  make_weights, tmp_path
):
  val = dict(name='classification', ops='decode|resize(32)')
  # As older versions wrote them: in alphabetical order.
  evals = dict(
    corrupted=dict(name='classification', ops='decode|resize(48)'),
    few=dict(name='fewshot', ops='decode|resize(16)'),
    val=val,
    zoo=val,
  )
  save(make_weights(), tmp_path, evals=evals)
  log = []
  found = run_format.read(tmp_path, on_log=log.append)
  assert found.preprocess['ops'] == 'decode|resize(32)'
  assert log == [
    'images are prepared as in the evaluation val: decode|resize(32); '
    'evaluation= takes another: corrupted, few'
  ]
  found = run_format.read(tmp_path, evaluation='few', on_log=log.append)
  assert found.preprocess['ops'] == 'decode|resize(16)' and len(log) == 1
  with pytest.raises(UserError, match=r"'fwe'.* are corrupted, few, val, zoo"):
    run_format.read(tmp_path, evaluation='fwe')


def test_the_average_is_read_if_present(run):
  workdir, weights = run
  assert first(run_format.read(workdir)) == first(weights) + np.float32(2) - 100
  assert first(run_format.read(workdir, ema=False)) > 0


def test_a_run_without_an_average(make_weights, tmp_path):
  weights = make_weights()
  save(weights, tmp_path)
  found = run_format.read(tmp_path)
  assert first(found) == first(weights)
  assert 'ops' not in found.preprocess
  with pytest.raises(UserError, match='kept no average'):
    run_format.read(tmp_path, ema=True)


def test_one_checkpoint_can_be_named_in_several_ways(run):
  workdir, weights = run
  expected = first(weights) + np.float32(1) - 100
  for path, step in (
    (workdir, 1),
    (workdir / 'checkpoints', 1),
    (workdir / 'checkpoints' / '1', None),
    (str(workdir / 'checkpoints' / '1') + '/', None),
  ):
    assert first(run_format.read(path, step=step)) == expected, path
  with pytest.raises(UserError, match='no checkpoint of step 3'):
    run_format.read(workdir, step=3)


def test_folders_that_are_runs(run, tmp_path):
  workdir, _ = run
  assert run_format.matches(workdir)
  assert run_format.matches(str(workdir / 'checkpoints' / '2'))
  for path in (workdir / 'checkpoints' / '3', workdir / 'absent', '/', '.'):
    assert not run_format.matches(path)
  with pytest.raises(UserError, match='is not a run'):
    run_format.read(workdir / 'absent')


def test_class_names_stay_with_the_run(run):
  workdir, _ = run
  run_format.write_class_names(workdir, None)
  assert run_format.read(workdir).class_names is None
  run_format.write_class_names(workdir, ('cat', 'dög'))
  assert run_format.read(workdir).class_names == ['cat', 'dög']


def test_preprocessing_leaves_out_training_augmentations():
  text = "normalize('imagenet')|random_erasing|mixup(0.2)"
  found = run_format._preprocess(
    {'input': {'device_ops': text}, 'evals': {}}, {}, None, print
  )
  assert found == {'device_ops': "normalize('imagenet')"}


def save_run(make_weights, workdir, top1, **section):
  """Saves a run with these metrics by step; the parameters are the step."""
  weights = make_weights()
  config = dict(model=weights.model, input={}, checkpoint=section)
  checkpointer = manager.Checkpointer(workdir / 'checkpoints', keep_latest=9)
  for step, value in top1.items():
    params = jax.tree.map(
      lambda x, s=step: jax.numpy.full_like(x, s), weights.params
    )
    metrics = {} if value is None else {'val/top1': value}
    checkpointer.save(
      step, dict(params=params), config=config, metrics=metrics, wait=True
    )
  checkpointer.close()


TOP1 = {1: 0.2, 2: 0.9, 3: float('nan'), 4: 0.1, 5: 0.9, 6: 0.5, 7: None}


@pytest.mark.parametrize(
  ('section', 'want'),
  [
    ({}, {None: 7}),
    (
      dict(keep_best='val/top1'),
      {None: (5, 0.9), 'best': (5, 0.9), 'newest': 7, 6: 6},
    ),
    (dict(keep_best='val/top1', keep_best_mode='min'), {None: (4, 0.1)}),
    (dict(keep_best='val/other'), {None: 7}),
  ],
)
def test_the_best_checkpoint_is_read_where_it_is_kept(
  make_weights, tmp_path, section, want
):
  save_run(make_weights, tmp_path, TOP1, **section)
  for step, expected in want.items():
    lines = []
    found = run_format.read(tmp_path, step=step, on_log=lines.append)
    if isinstance(expected, int):
      assert lines == []
    else:
      expected, value = expected
      assert lines == [
        f'{tmp_path}: step {expected} has the best val/top1 ({value}); '
        "step='newest' takes step 7"
      ]
    assert found.source['step'] == first(found) == expected


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(
  make_weights, tmp_path
):
  save_run(make_weights, tmp_path, TOP1, keep_best='val/top1')
  for step in (7, 5):
    (tmp_path / f'checkpoints/{step}/state/manifest.ocdbt').unlink()
  (tmp_path / 'checkpoints/2/meta/metadata').unlink()
  lines = []
  found = run_format.read(tmp_path, on_log=lines.append)
  assert found.source['step'] == first(found) == 6
  assert len(lines) == 2
  assert '5 is damaged' in lines[0]
  assert 'step 6 has the best val/top1 (0.5)' in lines[1]


@pytest.mark.parametrize('section', [{}, dict(keep_best='val/other')])
def test_no_best_checkpoint_is_an_error_only_for_who_asks(
  make_weights, tmp_path, section
):
  save_run(make_weights, tmp_path, {1: 0.5}, **section)
  with pytest.raises(UserError, match=r"step='best': no checkpoint in .* has"):
    run_format.read(tmp_path, step='best')
  with pytest.raises(UserError, match="step='last': expected the number"):
    run_format.read(tmp_path, step='last')
  assert run_format.read(tmp_path).source['step'] == 1


@pytest.mark.parametrize('text', ['{"a', '[' * 100_000, '[1, 2]', '{"a": "b"}'])
def test_broken_names_of_classes_are_named(text, run):
  workdir, _ = run
  (workdir / 'class_names.json').write_text(text)
  with pytest.raises(UserError, match=r'class_names\.json'):
    run_format.read(workdir)


@pytest.mark.parametrize(
  'config',
  [
    dict(model=[1]),
    dict(input=3),
    dict(input=dict(device_ops=3)),
    dict(evals=[1]),
    dict(evals=dict(val=3)),
    dict(evals=dict(val=dict(ops=3))),
    dict(objective=dict(loss=['softmax'])),
  ],
)
def test_a_config_of_other_types_is_one_error(config, make_weights, tmp_path):
  save(make_weights(), tmp_path, **config)
  with pytest.raises(UserError, match='has values that are wrong'):
    run_format.read(tmp_path)


@pytest.mark.parametrize(
  'sizes, words',
  [
    (dict(width=9 * 10**8), 'width=900000000: no array is that long'),
    (dict(depth=10**9), 'blocks 3 to 999999999'),
    (dict(mlp_dim=24), 'mlp/up/kernel: expected'),
    (dict(width='x'), "width='x': expected a whole number"),
  ],
)
def test_sizes_that_the_arrays_do_not_have_are_one_error(
  sizes, words, make_weights, tmp_path
):
  weights = make_weights()
  save(weights, tmp_path, model=weights.model | sizes)
  with pytest.raises(UserError, match=rf'^step 1 of {tmp_path}: ') as e:
    run_format.read(tmp_path)
  assert words in str(e.value)


def test_a_run_of_more_than_its_model_names_the_part_that_fits(
  make_weights, tmp_path
):
  weights = make_weights()
  params = dict(
    backbone=weights.params, head=dict(last=dict(kernel=np.zeros((2, 3))))
  )
  save(dataclasses.replace(weights, params=params), tmp_path)
  with pytest.raises(UserError, match=r"more than .* part='backbone'"):
    run_format.read(tmp_path)
  found = run_format.read(tmp_path, part='backbone')
  assert first(found) == first(weights)
  with pytest.raises(UserError, match='missing: head/bias'):
    run_format.read(tmp_path, part='head')


def test_a_run_without_a_checkpoint_is_named(tmp_path):
  (tmp_path / 'metrics.jsonl').touch()
  for read in (catalog.load, evaluate.evaluate):
    with pytest.raises(UserError, match='has no checkpoint yet'):
      read(tmp_path)
