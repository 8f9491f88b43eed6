"""Differences between a run and the checkpoint it would continue."""

import jax
import numpy as np
import pytest

from vit_jax.checkpoints import format as checkpoint_format, resume
from vit_jax.errors import UserError
from vit_jax.models import vit

CONFIG = {
  'model': {'name': 'vit', 'variant': 'B/16', 'patch': [4, 4]},
  'optimizer': {'learning_rate': 1e-3, 'schedule': {'name': 'cosine'}},
}
SHAPES = {'params/a': (2, 3), 'params/b': (4,), 'step': ()}


def meta_of(shapes=SHAPES):
  named = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  return checkpoint_format.make_meta(7, named, CONFIG, {})


def state_of(shapes=SHAPES, dtype=np.float32):
  return {n: jax.ShapeDtypeStruct(s, dtype) for n, s in shapes.items()}


def check(config=CONFIG, state=None, meta=None):
  resume.check(meta or meta_of(), state or state_of(), config, '/run')


def lines_of(**arguments):
  with pytest.raises(UserError) as error:
    check(**arguments)
  return [line.strip() for line in str(error.value).splitlines()]


def test_every_difference_is_shown_at_once():
  model = {'name': 'vit', 'variant': 'S/16', 'num_registers': 4}
  state = state_of({'params/b': (5,), 'params/c': (1,), 'step': ()})
  assert lines_of(config=dict(CONFIG, model=model), state=state) == [
    'the checkpoint of step 7 in /run is not of the model and optimizer of '
    'this config:',
    "model.variant: 'B/16' in the checkpoint, 'S/16' in the config",
    'model.patch: [4, 4] in the checkpoint, not set in the config',
    'model.num_registers: not set in the checkpoint, 4 in the config',
    '- params/c float32[1]',
    '+ params/a float32[2, 3]',
    '! params/b is float32[4], the config means float32[5]',
    'Nothing was changed. Put the config back as it was, or use another '
    'workdir',
  ]


def test_a_state_that_another_version_shaped_is_no_fault_of_the_config():
  old = SHAPES | {'opt_state/0/v/encoder/blocks/norm/scale': (1,)}
  new = SHAPES | {'opt_state/0/blocks_40/v/encoder/blocks/norm/scale': (40, 8)}
  arguments = dict(meta=meta_of(old), state=state_of(new))
  assert 'this version of vit_jax stores the state' in lines_of(**arguments)[-1]
  config = dict(CONFIG, optimizer={'learning_rate': 1.0})
  for changed in (
    arguments | dict(config=config),
    arguments | dict(state=state_of(new | {'params/b': (5,)})),
  ):
    assert 'Put the config back' in lines_of(**changed)[-1]


def test_another_dtype_is_a_difference():
  assert lines_of(state=state_of(dtype=np.float16))[1] == (
    '! params/a is float32[2, 3], the config means float16[2, 3]'
  )


def test_long_lists_of_leaves_are_cut():
  shapes = {f'params/{i:02}': (1,) for i in range(20)}
  lines = lines_of(state=state_of(dict(SHAPES, **shapes)))
  assert lines[8:10] == [
    '- params/07 float32[1]',
    '... and 12 more missing (-)',
  ]


def test_settings_that_change_only_the_cost_may_differ():
  model = dict(CONFIG['model'], remat='full', attention='einsum')
  check(config=dict(CONFIG, model=model))
  # Nor are they told where another setting is refused.
  lines = lines_of(config=dict(CONFIG, model=dict(model, variant='S/16')))
  assert not any('remat' in line or 'attention' in line for line in lines)


BASE = dict(
  patch_size=8,
  width=8,
  depth=2,
  mlp_dim=16,
  num_heads=2,
  num_classes=4,
  stochastic_depth_rate=0.5,
)
# For each setting of the model another value than that of BASE, which shows.
OTHER = dict(
  patch_size=4,
  width=16,
  depth=1,
  mlp_dim=8,
  num_heads=1,
  num_classes=5,
  stem='conv',
  pooling='mean',
  num_registers=1,
  position='sincos2d',
  position_resize='timm',
  final_norm='features',
  representation_size=8,
  head_hidden_dim=8,
  head_dropout_rate=0.1,
  layer_scale=0.1,
  stochastic_depth_rate=0.1,
  stochastic_depth_schedule='constant',
  dropout_rate=0.1,
  attention_dropout_rate=0.1,
  qk_norm=True,
  activation='gelu_quick',
  norm_epsilon=0.1,
  qkv_bias=False,
  dtype='bfloat16',
  residual_dtype='bfloat16',
  scan=True,
  remat='full',
  attention='einsum',
  weight_init='torch',
  position_init=0.1,
  head_bias_init=-10.0,
  head_zero_init=False,
)


def test_each_setting_of_the_model_is_refused_or_computes_the_same():
  fields = set(vit.ViT.__dataclass_fields__) - {'name', 'parent'}
  assert set(OTHER) == fields, 'give every setting another value'
  cost = set(vit.FIELDS['cost'])
  config = {'model': {'name': 'vit', **BASE}}
  meta = checkpoint_format.make_meta(1, {}, config, {})
  for key in fields - cost:
    changed = {'model': config['model'] | {key: OTHER[key]}}
    with pytest.raises(UserError, match=f'model.{key}: '):
      resume.check(meta, {}, changed, '/run')
  want = initial_parameters_and_gradient()
  for key in cost:
    found = initial_parameters_and_gradient(**{key: OTHER[key]})
    # Additions may come in another order.
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
      found,
      want,
    )


def initial_parameters_and_gradient(**options):
  model = vit.ViT(**BASE | options)
  image = np.random.default_rng(0).normal(size=(4, 16, 16, 3))
  keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}

  def loss(params):
    outputs = model.apply(params, image, train=True, rngs=keys)
    return (outputs['features'] ** 2).sum() + outputs['logits'].sum()

  @jax.jit
  def run():
    params = model.init(keys, image)
    return params, jax.grad(loss)(params)

  return run()


def test_other_settings_may_differ_and_are_listed():
  optimizer = {'learning_rate': 5e-4, 'schedule': {'name': 'linear'}}
  config = dict(CONFIG, optimizer=optimizer, seed=1)
  check(config=config)
  assert resume.differences(meta_of()['config'], config) == [
    'optimizer.learning_rate: 0.001 in the checkpoint, 0.0005 in the config',
    "optimizer.schedule.name: 'cosine' in the checkpoint, 'linear' in the "
    'config',
    'seed: not set in the checkpoint, 1 in the config',
  ]
  assert resume.differences(meta_of()['config'], CONFIG) == []


def test_not_a_number_is_no_difference():
  config = {'model': {'head_bias_init': float('nan')}}
  meta = checkpoint_format.make_meta(1, {}, config, {})
  resume.check(meta, {}, checkpoint_format.as_json(config), '/run')
  with pytest.raises(UserError, match='head_bias_init'):
    resume.check(meta, {}, {'model': {'head_bias_init': 0.0}}, '/run')
