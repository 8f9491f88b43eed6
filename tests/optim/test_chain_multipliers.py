"""Multipliers of the rate beside weight decay, and layers LAMB cannot grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim import descent
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.optim import chain

MULTS = [('head/.*', 4.0)]


@pytest.mark.parametrize('scales_decay', [None, True, False])
def test_multipliers_scale_weight_decay_or_not(scales_decay):
  params = descent.params()
  zeros = jax.tree.map(jnp.zeros_like, params)

  def updates(grads, **options):
    tx, _ = descent.make(name='sgd', momentum=0.0, weight_decay=0.5, **options)
    return tx.update(grads, tx.init(params), params)[0]['head']['kernel']

  options = dict(
    learning_rate_mults=MULTS, mults_scale_weight_decay=scales_decay
  )
  # The decay alone: 0.1 * 0.5 of the parameter, four times that as in timm.
  factor = 1 if scales_decay is False else 4
  np.testing.assert_allclose(
    updates(zeros, **options),
    -0.05 * factor * params['head']['kernel'],
    rtol=1e-6,
  )
  # The gradient's part is multiplied in any case.
  ones = jax.tree.map(jnp.ones_like, params)
  np.testing.assert_allclose(
    updates(ones, **options) - updates(zeros, **options), -0.4, rtol=1e-5
  )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(weight_decay=0.1), 'has no effect without learning_rate_mults'),
    (dict(learning_rate_mults=MULTS), 'has no effect with weight_decay=0'),
    (
      dict(name='lamb', learning_rate_mults=MULTS, weight_decay=0.1),
      "is not for name='lamb'",
    ),
  ],
)
def test_an_order_of_multipliers_without_effect_is_an_error(options, message):
  with pytest.raises(UserError, match=f'mults_scale_weight_decay {message}'):
    descent.make(mults_scale_weight_decay=False, **options)


def test_layers_that_lamb_cannot_grow_are_named():
  zero, one = jnp.zeros((3, 2)), jnp.ones((3, 2))
  blocks = {
    # One of three is enough: they have one norm.
    'attention': {
      'query': {'kernel': zero},
      'key': {'kernel': one},
      'value': {'kernel': zero},
    },
    # The second of three blocks is zero.
    'mlp': {'up': {'kernel': one.at[1].set(0)}},
  }
  params = {
    'encoder': {'blocks': blocks},
    'head': {'kernel': zero, 'bias': zero},
    'representation': {'kernel': one},
  }

  def warning(**section):
    section = dict(name='lamb') | section
    return chain.zero_start_warning(params, section, vit.ViT.ROLES)

  assert warning(name='adamw') is None
  assert warning().startswith(
    'WARNING: encoder/blocks/mlp/up/kernel, head/kernel: all zeros at the start'
  )
  assert (
    "weight_init='torch'" in warning() and 'head_zero_init=False' in warning()
  )
  assert warning(freeze=['.*/mlp/.*', 'head/.*']) is None
  biases = warning(weight_decay_mults=[('.*bias', 1.0), ('.*', 0.0)])
  assert biases.startswith('WARNING: head/bias: all')
