"""Every initial value against the law that its code base states."""

import re

import jax
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models.vit import Model

D, F, PIXELS = 192, 768, 16 * 16 * 3

OPTIONS = {
  'patches': dict(
    num_registers=50, representation_size=100, head_hidden_dim=120
  ),
  'convolutions': dict(
    stem='conv', pooling='map', scan=True, head_bias_init=-2.0
  ),
}


def uniform(limit):
  def check(x):
    assert 0.98 * limit < np.abs(x).max() <= limit * 1.000001
    np.testing.assert_allclose(x.std(), limit / np.sqrt(3), rtol=0.05)

  return check


def normal(std):
  def check(x):
    np.testing.assert_allclose(x.std(), std, rtol=0.15)
    assert np.abs(x).max() > 2.1 * std  # Not cut off at two deviations.

  return check


def constant(value):
  return lambda x: np.testing.assert_array_equal(x, np.float32(value))


def lecun(fan_in):
  def check(x):
    # Cut off at two deviations, then scaled to variance 1 / fan in.
    np.testing.assert_allclose(x.std(), fan_in**-0.5, rtol=0.05)
    assert np.abs(x).max() < 2.3 * fan_in**-0.5

  return check


def xavier(fan_in, fan_out):
  return uniform(np.sqrt(6 / (fan_in + fan_out)))


# Of all schemes, then of each: vision_transformer's models_vit.py; timm 0.3.2's
# vision_transformer.py with torch's Conv2d.reset_parameters; MoCo v3's vits.py.
SHARED = {
  '.*/scale': constant(1),
  '.*norm.*/bias|.*attention/.*/bias': constant(0),
  '(representation|head/hidden)/bias': constant(0),
  'position_embedding': normal(0.02),
  # A fan in of one, for D outputs.
  'pooling/probe': xavier(1, D),
}
XAVIER_KERNELS = {
  '.*attention/.*/kernel': xavier(D, D),
  '.*mlp/(up|down)/kernel': xavier(D, F),
}
TORCH_CONVOLUTIONS = {
  # Channels double up to D: 24, 48, 96, 192.
  'patch_embedding/convolution_0/kernel': uniform((9 * 3) ** -0.5),
  'patch_embedding/convolution_1/kernel': uniform((9 * 24) ** -0.5),
  'patch_embedding/convolution_2/kernel': uniform((9 * 48) ** -0.5),
  'patch_embedding/convolution_3/kernel': uniform((9 * 96) ** -0.5),
  'patch_embedding/out/(kernel|bias)': uniform(D**-0.5),
}
LAWS = {
  'google': XAVIER_KERNELS
  | {
    '.*mlp/(up|down)/bias': normal(1e-6),
    'patch_embedding/kernel': lecun(PIXELS),
    'patch_embedding/(out/)?bias': constant(0),
    'patch_embedding/convolution_0/kernel': lecun(9 * 3),
    'patch_embedding/convolution_1/kernel': lecun(9 * 24),
    'patch_embedding/convolution_2/kernel': lecun(9 * 48),
    'patch_embedding/convolution_3/kernel': lecun(9 * 96),
    'patch_embedding/out/kernel': lecun(D),
    'class_token': constant(0),
    'registers': normal(0.02),
    'representation/kernel': lecun(D),
    'head/hidden/kernel': lecun(100),
    'head/kernel': constant(0),
  },
  'torch': TORCH_CONVOLUTIONS
  | {
    '.*(attention|mlp)/.*/kernel': normal(0.02),
    '.*mlp/(up|down)/bias': constant(0),
    'patch_embedding/(kernel|bias)': uniform(PIXELS**-0.5),
    'class_token|registers': normal(0.02),
    'representation/kernel': normal(0.02),
    'head/hidden/kernel': normal(0.02),
    'head/kernel': normal(0.02),
  },
  'moco': XAVIER_KERNELS
  | TORCH_CONVOLUTIONS
  | {
    '.*mlp/(up|down)/bias': constant(0),
    # sqrt(6 / (3 * patch * patch + width)).
    'patch_embedding/kernel': uniform(np.sqrt(6 / (PIXELS + D))),
    'patch_embedding/bias': constant(0),
    'class_token|registers': normal(1e-6),
    'representation/kernel': xavier(D, 100),
    'head/hidden/kernel': xavier(100, 120),
    'head/kernel': xavier(D, 30),
  },
}


def params_of(**options):
  model = Model('Ti/16', 30, **dict(depth=2) | options)
  image = np.zeros((1, 64, 64, 3), np.float32)
  params = jax.jit(model.init)(jax.random.key(0), image)['params']
  return {k: np.asarray(v) for k, v in trees.flatten(params).items()}


@pytest.mark.parametrize('scheme', LAWS)
@pytest.mark.parametrize('options', OPTIONS)
def test_every_parameter_starts_by_the_law_of_its_scheme(scheme, options):
  options = OPTIONS[options]
  laws = LAWS[scheme] | SHARED
  if options.get('representation_size') and scheme == 'moco':
    laws['head/kernel'] = xavier(120, 30)
  laws['head/bias'] = constant(options.get('head_bias_init', 0))
  for name, value in params_of(weight_init=scheme, **options).items():
    (check,) = [law for k, law in laws.items() if re.fullmatch(k, name)]
    stacked = name.startswith('encoder/blocks/')
    for x in value if stacked else [value]:
      check(x)
    if stacked and np.ptp(value):
      assert (value[0] != value[1]).any(), f'{name}: blocks start equal'


@pytest.mark.parametrize('scheme', LAWS)
def test_head_zero_init_wins_over_the_scheme(scheme):
  options = dict(weight_init=scheme, depth=1)
  image = np.zeros((1, 16, 16, 3), np.float32)

  def head(zero):
    model = Model('Ti/16', 30, head_zero_init=zero, **options)
    params = jax.jit(model.init)(jax.random.key(0), image)['params']
    return np.asarray(params['head']['kernel'])

  np.testing.assert_array_equal(head(True), 0)
  drawn = lecun(D) if scheme == 'google' else LAWS[scheme]['head/kernel']
  drawn(head(False))


@pytest.mark.parametrize(
  ('given', 'std'),
  [('google', 0.02), ('big_vision', D**-0.5), (0.3, 0.3)],
)
def test_the_position_table_has_the_standard_deviation_that_is_asked_for(
  given, std
):
  normal(std)(params_of(position_init=given, depth=1)['position_embedding'])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(weight_init='xavier'), "expected one of 'google', 'torch', 'moco'"),
    (dict(position_init='moco'), "0, or one of 'google', 'big_vision'"),
    (dict(position_init=0.0), 'expected a standard deviation above 0'),
    (
      dict(position_init=0.1, position='sincos2d'),
      "position_init=0.1 needs position='learned'",
    ),
    (dict(init='torch'), 'did you mean weight_init'),
  ],
)
def test_an_initial_value_that_does_not_exist_is_an_error(options, message):
  with pytest.raises(UserError, match=message):
    Model('Ti/16', **options)
