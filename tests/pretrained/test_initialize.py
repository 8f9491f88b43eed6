"""Weights read by `config.init_from`."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.parallel import mesh as mesh_lib, rules as rules_lib
from vit_jax.pretrained import blocks, catalog, resample
from vit_jax.pretrained.initialize import initialize
from vit_jax.pretrained.weights import build_model


@pytest.fixture
def log():
  return []


@pytest.fixture
def start(make_weights, log):
  """Returns `start(init_from entry, **section of the target) -> params`.

  The target's parameters are -1 everywhere, which no weight is.
  """

  def start(entry, image_shape=(32, 32, 3), **section):
    target = make_weights(image_shape, **section)
    named = target.params
    named = blocks.stack(named) if section.get('scan') else named
    params = {name: np.full_like(x, -1) for name, x in named.items()}
    tree = initialize(
      dict(params=trees.unflatten(params)),
      [entry],
      models=dict(params=build_model(target)),
      on_log=log.append,
    )
    return tree['params']

  return start


def assert_same(found, expected):
  found, expected = trees.flatten(found), trees.flatten(expected)
  assert set(found) == set(expected)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_all_parameters_are_taken_from_a_file(make_weights, start, tmp_path):
  weights = make_weights()
  catalog.save(weights, tmp_path / 'x.safetensors')
  assert_same(
    start({'weights': str(tmp_path / 'x.safetensors')}), weights.params
  )


def test_skipped_parameters_keep_their_initial_value(make_weights, start):
  weights = make_weights(num_classes=7, representation_size=8)
  entry = dict(weights=weights, skip=['head/.*', 'representation/.*'])
  params = start(entry, num_classes=3)
  np.testing.assert_array_equal(params['head']['kernel'], np.full((24, 3), -1))
  assert 'representation' not in params
  entry = dict(weights=weights, skip='(head|representation)/.*')
  assert_same(start(entry, num_classes=3), params)
  del params['head']
  expected = trees.unflatten(weights.params)
  del expected['head'], expected['representation']
  assert_same(params, expected)


def test_unmatched_parameters_keep_their_initial_value(make_weights, start):
  weights = make_weights(num_registers=2)
  entry = dict(weights=weights, take=['encoder/.*', 'class_token'])
  params = start(entry, num_classes=9)
  np.testing.assert_array_equal(
    params['class_token'], weights.params['class_token']
  )
  encoder = trees.unflatten(weights.params)['encoder']
  assert_same(params.pop('encoder'), encoder)
  del params['class_token']
  assert all((x == -1).all() for x in jax.tree.leaves(params))


def test_all_differences_are_reported_at_once(make_weights, start):
  weights = make_weights(num_classes=7, num_registers=2, pooling='token')
  with pytest.raises(UserError) as e:
    start(dict(weights=weights), num_classes=3, pooling='map')
  for text in (
    'config.init_from[0]',
    'head/kernel: (24, 7) in the weights, (24, 3) in the model',
    'head/bias: (7,) in the weights, (3,) in the model',
    'class_token: the model does not have it; (1, 1, 24)',
    'registers: the model does not have it; (1, 2, 24)',
    'pooling/probe: the weights do not have it; (1, 1, 24)',
    "skip=['class_token', 'head/.*', 'pooling/.*', 'registers']",
  ):
    assert text in str(e.value)


def test_a_model_of_another_size_gets_no_advice_to_skip(make_weights, start):
  with pytest.raises(UserError) as e:
    start(dict(weights=make_weights(depth=2)))
  assert 'encoder/block_02/mlp/up/kernel: the weights do not' in str(e.value)
  assert 'skip=' not in str(e.value)


def test_patterns_that_match_nothing_are_refused(make_weights, start):
  weights = make_weights()
  for entry in (
    dict(skip=['haed/.*']),
    dict(take=['block_00/.*']),
    dict(skip=['[']),
    dict(skip=['head']),  # Whole names.
  ):
    with pytest.raises(UserError, match='regular expression'):
      start(dict(weights=weights, **entry))


def test_keys_of_an_entry_are_checked(make_weights, start):
  with pytest.raises(UserError, match=r"config.init_from\[0\].*'weigths'"):
    start(dict(weigths='x'))
  with pytest.raises(UserError, match='there are params, params/encoder'):
    start(dict(weights=make_weights(), into='frozen/teacher'))


@pytest.mark.parametrize('method', [None, 'torch'])
def test_positions_are_resized_as_the_weights_want(
  method, make_weights, start, log
):
  weights = dataclasses.replace(make_weights(), source={'resize': 'google'})
  entry = dict(weights=weights) | ({'resize': method} if method else {})
  params = start(entry, image_shape=(48, 24, 3))
  expected = resample.resize_position(
    weights.params['position_embedding'], (6, 3), method=method or 'google'
  )
  np.testing.assert_array_equal(params['position_embedding'], expected)
  assert 'position_embedding: resized from (4, 4, 24) to (6, 3, 24)' in log


def test_patches_and_channels_are_resized(make_weights, start, log):
  weights = make_weights()
  params = start(dict(weights=weights), (64, 64, 10), patch_size=16)
  kernel = weights.params['patch_embedding/kernel']
  expected = resample.resize_patch_kernel(
    resample.adapt_channels(kernel, 10), (16, 16)
  )
  np.testing.assert_array_equal(params['patch_embedding']['kernel'], expected)
  assert any('(8, 8, 3, 24) to (16, 16, 10, 24)' in line for line in log)


def test_a_token_model_becomes_a_mean_model_if_the_config_says_so(
  make_weights, start, tmp_path
):
  path = tmp_path / 'x.npz'
  catalog.save(make_weights(pooling='token'), path)
  for entry in (dict(model=dict(pooling='mean')), dict(skip=['class_token'])):
    params = start(dict(weights=str(path), **entry), pooling='mean')
    assert 'class_token' not in params
    assert not any((x == -1).any() for x in jax.tree.leaves(params))
  with pytest.raises(UserError, match=r"skip=\['class_token'\]"):
    start(dict(weights=str(path)), pooling='mean')
  mean = make_weights(pooling='mean')
  params = start(dict(weights=mean, skip=['class_token']), pooling='token')
  np.testing.assert_array_equal(params['class_token'], np.full((1, 1, 24), -1))


def test_blocks_are_stacked_for_a_model_that_scans(make_weights, start):
  weights = make_weights()
  params = start(dict(weights=weights), scan=True)
  stacked = blocks.stack(trees.flatten(weights.params))
  assert_same(params, trees.unflatten(stacked))
  with pytest.raises(UserError, match=r'\(2, 24\) in the weights, \(3, 24\)'):
    start(dict(weights=make_weights(depth=2)), scan=True)


@pytest.mark.parametrize(
  ('key', 'value'),
  [('activation', 'gelu'), ('norm_epsilon', 1e-12), ('position', 'none')],
)
def test_weights_that_mean_something_else_are_refused(
  key, value, make_weights, start
):
  weights = make_weights(**{key: value})
  skip = ['position_embedding'] if key == 'position' else []
  entry = dict(weights=weights, skip=skip)
  with pytest.raises(UserError, match=f'{key}=.* trained with {value!r}'):
    start(entry)
  start(entry | dict(may_differ=[key]))
  start(dict(weights=weights), **{key: value})


def test_other_branches_and_folders_can_be_filled(make_weights):
  student, teacher = make_weights(), make_weights(width=48, num_heads=4)
  zeros = jax.tree.map(np.zeros_like, (student.params, teacher.params))
  tree = dict(
    params=dict(image=zeros[0], other=np.zeros(1)),
    frozen=dict(teacher=zeros[1]),
  )
  found = initialize(
    tree,
    [
      dict(weights=student, into='params/image'),
      dict(weights=teacher, into='frozen/teacher'),
    ],
    on_log=lambda line: None,
  )
  assert_same(found['params']['image'], student.params)
  assert_same(found['frozen']['teacher'], teacher.params)
  assert found['params']['other'] is tree['params']['other']


class TwoTower(nn.Module):
  image: nn.Module
  text: nn.Module


@pytest.mark.parametrize(
  ('models', 'into'),
  [
    (lambda m: {'frozen/teacher': m}, 'frozen/teacher'),
    # The part of a model with parts, and the model of a part.
    (lambda m: {'params': TwoTower(m, m)}, 'params/image'),
    (lambda m: {'params': m}, 'params/image'),
    (lambda m: {'params/text': m, 'params/image': m}, 'params/image'),
  ],
)
def test_meaning_is_checked_wherever_the_weights_go(models, into, make_weights):
  weights = make_weights(activation='gelu')
  tree = trees.unflatten({into: weights.params})
  models = models(build_model(make_weights()))
  entry = dict(weights=weights, into=into)
  with pytest.raises(UserError, match=r"activation='gelu_tanh'.* with 'gelu'"):
    initialize(tree, [entry], models=models, on_log=str)
  entry['may_differ'] = ['activation']
  initialize(tree, [entry], models=models, on_log=str)


def test_a_part_of_a_source_is_taken_and_compared(make_weights, monkeypatch):
  towers = {k: make_weights(activation=k) for k in ('gelu', 'gelu_tanh')}
  image, text = (build_model(x) for x in towers.values())
  monkeypatch.setattr(vit, 'Model', lambda **keys: TwoTower(image, text))
  params = dict(
    image=towers['gelu'].params,
    text=jax.tree.map(lambda x: x + 1, towers['gelu'].params),
  )
  both = dataclasses.replace(towers['gelu'], params=params)
  tree = dict(params=jax.tree.map(np.zeros_like, params['image']))

  def start(part, tree=tree, models=None):
    entry = dict(weights=both, part=part)
    models = models or {'params': image}
    return initialize(tree, [entry], models=models, on_log=str)['params']

  assert_same(start('image'), params['image'])
  with pytest.raises(UserError, match=r"has activation='gelu', .*'gelu_tanh'"):
    start('text')
  with pytest.raises(UserError, match=r"in 'sound'; there are image, image/"):
    start('sound')
  # All of it, into a state whose models are those of its folders.
  whole = dict(params=jax.tree.map(np.zeros_like, params))
  models = {'params/image': image, 'params/text': text}
  assert_same(start('', whole, models), params)
  models['params/text'] = image
  with pytest.raises(UserError, match=r"text.activation='gelu', .*'gelu_tanh'"):
    start('', whole, models)


def test_unchecked_facts_are_logged(make_weights, log):
  weights = make_weights()
  tree = dict(params={}, frozen=dict(teacher=weights.params))
  models = {'params': build_model(weights)}
  entry = dict(weights=weights, into='frozen/teacher')
  initialize(tree, [entry], models=models, on_log=log.append)
  assert any(
    line.startswith('frozen/teacher: its model is unknown') for line in log
  )
  log.clear()
  models['frozen/teacher'] = models['params']
  initialize(tree, [entry], models=models, on_log=log.append)
  assert not any('unknown' in line for line in log)


def test_nothing_changes_if_an_entry_is_wrong(make_weights, start):
  weights = make_weights()
  tree = dict(params=jax.tree.map(np.zeros_like, weights.params))
  with pytest.raises(UserError):
    initialize(
      tree,
      [dict(weights=weights), dict(weights=weights, into='x')],
      on_log=lambda line: None,
    )
  assert not any(x.any() for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('concrete', [True, False])
def test_each_device_gets_its_part_alone(concrete, make_weights):
  weights = make_weights()
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  shardings = rules_lib.state_shardings(weights_tree(weights), mesh, min_size=1)
  target = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s),
    weights_tree(weights),
    shardings,
  )
  if concrete:
    target = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), target
    )
  with jax.transfer_guard('disallow'):
    found = initialize(
      target, [dict(weights=weights)], on_log=lambda line: None
    )['params']
  split = 0
  for name, array in trees.flatten(found).items():
    expected = trees.flatten(weights.params)[name]
    assert array.sharding == trees.flatten(shardings)[f'params/{name}']
    assert array.dtype == jnp.bfloat16
    np.testing.assert_array_equal(array, expected.astype(jnp.bfloat16))
    split += array.addressable_shards[0].data.size < array.size
  assert split > 10


def weights_tree(weights):
  return dict(params=weights.params)
