"""Every model of the folder: outputs, training, options, tables.

A new file of `models/` is found and tested without a change here. It exports
`Model(variant, num_classes, **overrides)`, `VARIANTS` by name with the smallest
first, and `FIELDS`, see `models/_vit_tables.py`.
"""

import importlib
import inspect

import jax
import numpy as np
import pytest

from vit_jax import lookup
from vit_jax.errors import UserError

NAMES = lookup.names('models')
IMAGE = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
DOCUMENTED = {'logits', 'features', 'tokens', 'prefix_tokens'}
DOCUMENTED |= {'image_embedding', 'text_embedding'}


def _tiny(name, num_classes=5, **overrides):
  """Returns the smallest model of a file."""
  module = importlib.import_module(f'vit_jax.models.{name}')
  variant = next(iter(module.VARIANTS))
  try:
    module.Model(variant)
  except UserError:  # A model with patches, whose size the name lacks.
    variant = f'{variant}/8'
  return module.Model(variant, num_classes, **overrides)


def test_the_folder_offers_models_alone():
  for name in NAMES:
    module = importlib.import_module(f'vit_jax.models.{name}')
    assert {'Model', 'VARIANTS', 'FIELDS'} <= set(vars(module)), name


@pytest.mark.parametrize('name', NAMES)
def test_a_model_learns_and_returns_documented_float32(name):
  model = _tiny(name)
  variables = jax.jit(model.init)(jax.random.key(0), IMAGE)
  assert set(variables) <= {'params', 'batch_stats'}

  @jax.jit
  def step(variables):
    def loss(params):
      outputs = model.apply(variables | {'params': params}, IMAGE)
      log_p = jax.nn.log_softmax(outputs['logits'])
      return -log_p[0, 1] - log_p[1, 2], outputs

    grad = jax.value_and_grad(loss, has_aux=True)
    (value, outputs), gradient = grad(variables['params'])
    params = jax.tree.map(
      lambda p, g: p - 0.05 * g, variables['params'], gradient
    )
    return variables | {'params': params}, value, outputs

  losses = []
  for _ in range(5):
    variables, value, outputs = step(variables)
    losses.append(float(value))
  assert np.isfinite(losses).all() and losses[-1] < losses[0]
  assert set(outputs) <= DOCUMENTED
  assert {'features', 'logits'} <= set(outputs)
  assert outputs['logits'].shape == (2, 5)
  assert len(outputs['features']) == 2
  leaves = jax.tree.leaves((variables['params'], outputs))
  assert {leaf.dtype for leaf in leaves} == {np.dtype('float32')}


@pytest.mark.parametrize('name', NAMES)
def test_a_model_without_classes_has_no_head(name):
  model = _tiny(name, num_classes=None)

  def run(key):
    return model.apply(model.init(key, IMAGE), IMAGE, train=False)

  outputs = jax.eval_shape(run, jax.random.key(0))
  assert 'features' in outputs and 'logits' not in outputs


@pytest.mark.parametrize('name', NAMES)
def test_every_option_of_a_model_has_a_kind(name):
  module = importlib.import_module(f'vit_jax.models.{name}')
  model = _tiny(name)
  fields = set(type(model).__dataclass_fields__) - {'parent', 'name'}
  listed = {field for fields in module.FIELDS.values() for field in fields}
  assert listed == fields
  assert type(model).FIELDS is module.FIELDS
  takes = inspect.signature(module.Model).parameters
  assert {'variant', 'num_classes'} <= set(takes)


@pytest.mark.parametrize('name', NAMES)
def test_an_unknown_option_of_a_model_is_named(name):
  with pytest.raises(UserError, match='no_such_option'):
    _tiny(name, no_such_option=1)
