"""Loss scales: exact where they cancel, halved at an overflow, resumed."""

import contextlib
import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny_runs
from vit_jax import trees
from vit_jax.checkpoints import manager
from vit_jax.errors import UserError
from vit_jax.optim import chain
from vit_jax.training import (
  loss_scale,
  nonfinite,
  train,
  train_state,
  train_step,
)


class Product:
  """A linear loss whose gradient, `slope`, goes through float16."""

  mean_over_examples = True

  def __init__(self, slope):
    self.slope = slope

  def loss(self, params, state, batch, rng):
    del state, rng
    product = params['kernel'].astype(jnp.float16) * jnp.float16(1)
    loss = jnp.mean(batch['image']) * self.slope * product.astype(jnp.float32)
    return loss, ({}, {})


def make(slope=1.0, *, scale, **options):
  """Returns the jitted step of `Product` under SGD and the state of step 0."""
  params = dict(kernel=jnp.float32(0.0))
  tx, schedule = chain.make(
    params,
    name='sgd',
    learning_rate=1.0,
    momentum=0.0,
    total_steps=100,
    schedule='constant',
    grad_clip_norm=options.pop('clip', None),
  )
  scale = loss_scale.make(scale)
  step = train_step.make_train_step(
    Product(slope),
    tx,
    schedule,
    device_ops=lambda batch, rng, *, train: batch,
    seed=0,
    loss_scale=scale,
    ema_decay=lambda k: 0.5,
    **options,
  )
  dynamic = isinstance(scale, loss_scale.Dynamic)
  state = train_state.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=tx.init(params),
    ema_params=jax.tree.map(jnp.copy, params),
    skipped_updates=jnp.int32(0),
    loss_scale=scale.init() if dynamic else None,
  )
  return jax.jit(step), state


def batch(value=1.0):
  return dict(image=jnp.full((4, 1), value, jnp.float32))


@pytest.mark.parametrize('scale', [1024, 'dynamic', dict(start=4.0)])
@pytest.mark.parametrize('clip', [None, 0.5])
@pytest.mark.parametrize('micro_batches', [1, 2])
def test_a_scale_cancels_to_the_bit_before_clip_and_metrics(
  scale, clip, micro_batches
):
  found = []
  for setting in (None, scale):
    step, state = make(
      0.7, scale=setting, clip=clip, micro_batches=micro_batches
    )
    for _ in range(2):
      state, metrics = step(state, batch())
    found.append((state.params, state.ema_params, state.opt_state, metrics))
  plain, scaled = found
  for key in plain[3]:
    assert scaled[3][key] == plain[3][key], key
  jax.tree.map(np.testing.assert_array_equal, plain[:3], scaled[:3])
  want = 0.5 if clip else 0.7
  assert plain[0]['kernel'] == pytest.approx(-2 * want, rel=1e-3)


@pytest.mark.parametrize('scale, norm', [(None, 0.0), (2.0**20, 1e-8)])
def test_a_gradient_that_float16_cannot_hold_survives_scaled(scale, norm):
  step, state = make(1e-8, scale=scale)
  assert step(state, batch())[1]['grad_norm'] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize('on_nonfinite', ['stop', 'skip'])
def test_an_overflow_halves_and_skips_and_good_steps_double(on_nonfinite):
  # 65,504 is the largest float16: scale x 1000 fits from 64 downwards.
  step, state = make(
    1000.0,
    scale=dict(start=256.0, growth_steps=3),
    on_nonfinite=on_nonfinite,
  )
  scales, skipped, kernels = [], [], []
  for _ in range(8):
    state, metrics = step(state, batch())
    scales.append(float(metrics['loss_scale']))
    skipped.append(int(metrics['skipped_updates']))
    kernels.append(float(state.params['kernel']))
    assert math.isfinite(metrics['loss'])
    assert math.isfinite(metrics['grad_norm']) == (scales[-1] <= 64)
  assert scales == [256, 128, 64, 64, 64, 128, 64, 64]
  assert skipped == [1, 2, 2, 2, 2, 3, 3, 3]
  assert kernels == [0, 0, -1000, -2000, -3000, -3000, -4000, -5000]
  assert state.step == 8 and state.loss_scale.good_steps == 2
  # Averages of the applied updates alone.
  average = 0.0
  for kernel in (-1000, -2000, -3000, -4000, -5000):
    average = 0.5 * average + 0.5 * kernel
  assert state.ema_params['kernel'] == average


def test_a_scale_that_holds_is_doubled_after_each_growth_steps():
  step, state = make(scale=dict(start=4.0, growth_steps=2))
  scales = []
  for _ in range(5):
    state, found = step(state, batch())
    scales.append(float(found['loss_scale']))
  assert scales == [4, 4, 8, 8, 16]


def test_a_loss_that_is_not_finite_leaves_the_scale():
  step, state = make(scale=dict(start=1024.0))
  state, _ = step(state, batch())
  state, metrics = step(state, batch(jnp.nan))
  assert metrics['skipped_updates'] == 1
  assert state.loss_scale == loss_scale.State(1024.0, 1)


@pytest.mark.parametrize(
  'slope, start, want', [(1e38, 1.0, 1.0), (0.0, 2.0**24, 2.0**24)]
)
def test_a_scale_has_limits(slope, start, want):
  step, state = make(slope, scale=dict(start=start, growth_steps=1))
  state, _ = step(state, batch())
  assert state.loss_scale.scale == want


def metrics(norm=1.0, scale=8.0, skipped=1, loss=1.0):
  return {
    'train/loss': loss,
    'train/grad_norm': norm,
    'train/loss_scale': scale,
    'train/skipped_updates': skipped,
  }


class Input:
  """Batches without a fault."""

  num_classes = None
  source = types.SimpleNamespace(describe=str)

  def batches(self, step):
    while True:
      yield dict(index=np.arange(2), image=np.zeros((2, 1), np.float32))


@pytest.mark.parametrize('on_nonfinite', ['stop', 'skip'])
def test_a_run_goes_on_while_the_scale_can_be_lowered(on_nonfinite):
  def check():
    return nonfinite.Check(
      on_nonfinite, input=Input(), total_steps=30, max_consecutive_skips=2
    )

  going = check()
  for step, norm in enumerate([math.inf, math.nan, math.inf], 1):
    found = going.problem(step, metrics(norm, skipped=step), pytest.fail)
    assert found is None
  assert going.skipped_updates == 3
  lowest = check()
  first = lowest.problem(1, metrics(math.inf, 1.0), lambda: None)
  second = lowest.problem(2, metrics(math.inf, 1.0, 2), lambda: None)
  assert (first is None) == (on_nonfinite == 'skip')
  assert 'train/grad_norm is inf' in second
  bad_loss = check().problem(1, metrics(math.nan, loss=math.nan), lambda: None)
  assert (bad_loss is None) == (on_nonfinite == 'skip')
  assert 'all 30 updates' in check().problem(
    30, metrics(math.inf, skipped=30), lambda: None
  )


@pytest.mark.parametrize(
  'setting, words',
  [
    ('auto', "loss_scale='auto': expected 'dynamic', a number"),
    (0, 'loss_scale=0: expected'),
    (True, 'loss_scale=True: expected'),
    (dict(start=0.5), 'start=0.5: expected 1 to'),
    (dict(growth_steps=0), 'growth_steps=0: expected 1 or more'),
    (dict(groth_steps=5), "did you mean 'growth_steps'"),
  ],
)
def test_settings_that_mean_nothing_are_refused(setting, words):
  with pytest.raises(UserError, match=words):
    loss_scale.make(setting)


def half(**changes):
  """A run in float16 whose first scales overflow."""
  config = tiny_runs.eventful(
    loss_scale=dict(start=2.0**24, growth_steps=2),
    total_steps=16,
    **changes,
  )
  return config | dict(model=config['model'] | dict(dtype='float16'))


def state_of(config, workdir):
  run = train.build(config)
  opened = manager.Checkpointer(workdir / 'checkpoints')
  with contextlib.closing(opened) as checkpointer:
    state, _ = checkpointer.restore(run.abstract_state, config=config)
  return trees.flatten(state)


def test_a_killed_run_in_float16_continues_with_the_same_bits(
  tmp_path, monkeypatch, capsys
):
  train.train(tmp_path / 'whole', **half())
  assert 'updates were skipped' in capsys.readouterr().out
  rows = tiny_runs.rows(tmp_path / 'whole', timing=False)
  scales = [row['train/loss_scale'] for row in rows]
  assert scales[:3] == [2.0**24, 2.0**24, 2.0**23]
  assert any(b > a for a, b in itertools.pairwise(scales))
  assert rows[-1]['train/skipped_updates'] < 14

  restored = nonfinite.Check.problem

  def kill(self, step, *args):
    if step == 8:  # After the checkpoint of step 6.
      raise KeyboardInterrupt
    return restored(self, step, *args)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(nonfinite.Check, 'problem', kill)
    train.train(tmp_path / 'killed', **half())
  train.train(tmp_path / 'killed', **half())
  assert tiny_runs.rows(tmp_path / 'killed', timing=False) == rows
  whole, killed = (state_of(half(), tmp_path / x) for x in ('whole', 'killed'))
  assert {'loss_scale/scale', 'loss_scale/good_steps'} <= whole.keys()
  for name, leaf in whole.items():
    assert leaf.sharding == killed[name].sharding
    np.testing.assert_array_equal(leaf, killed[name], err_msg=name)


@pytest.mark.parametrize('setting', [None, 1024.0])
def test_without_a_dynamic_scale_the_state_has_no_leaf_of_it(setting):
  run = train.build({'total_steps': 2} | tiny_runs.plain(loss_scale=setting))
  names = trees.flatten(run.abstract_state)
  assert not [name for name in names if 'loss_scale' in name]


def test_float16_without_a_scale_gets_advice():
  assert '--config.loss_scale=dynamic' in loss_scale.hint(
    dict(dtype='float16'), None
  )
  assert loss_scale.hint(dict(dtype='float16'), 'dynamic') is None
  assert loss_scale.hint(dict(dtype='bfloat16'), None) is None


def test_the_quickstart_learns_in_float16(tmp_path):
  from vit_jax.configs import quickstart

  config = quickstart.get_config()
  with config.unlocked():
    config.model.dtype = 'float16'
    config.loss_scale = 'dynamic'
    config.total_epochs = 6.0
    config.optimizer.warmup_epochs = 1.0
    config.ema.decay = 0.9
    config.evals.test.every_epochs = 6.0
    config.checkpoint.every_epochs = 6.0
    config.pictures = {}
  results = train.train(tmp_path, **config)
  assert results['test/top1'] > 0.6
