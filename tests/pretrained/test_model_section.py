"""From arrays to a section and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.pretrained import model_section
from vit_jax.pretrained.names import vit

MODELS = {
  'token': dict(pooling='token'),
  'mean': dict(pooling='mean', num_registers=3),
  'map': dict(pooling='map', num_classes=None),
  'features': dict(pooling='mean', final_norm='features'),
  'scale': dict(layer_scale=1e-5, qk_norm=True, qkv_bias=False),
  'hidden': dict(representation_size=7, patch_size=(8, 4)),
  'mlp_head': dict(head_hidden_dim=9),
}


@pytest.mark.parametrize('model', MODELS)
def test_facts_shown_by_arrays_are_found(model, make_weights):
  weights = make_weights(**MODELS[model])
  named = trees.flatten(weights.params)
  section = vit.section(vit.infer(named))
  assert weights.model | section == section | weights.model
  assert model_section.problems(named, section) == []


def test_a_variant_means_its_sizes(make_weights):
  weights = make_weights(width=32, depth=1, mlp_dim=128, num_heads=2)
  section = vit.section(vit.infer(trees.flatten(weights.params)))
  assert section == dict(
    name='vit', variant='mu/8', num_classes=5, pooling='token'
  )


def test_every_problem_is_a_line(make_weights):
  weights = make_weights()
  named = trees.flatten(weights.params)
  del named['head/bias']
  named['encoder/norm/scale'] = np.zeros(3)
  named['new'] = np.zeros(3)
  assert model_section.problems(
    named, weights.model, labels={'head/bias': 'classifier.bias'}
  ) == [
    'missing: classifier.bias (our head/bias)',
    'encoder/norm/scale: expected (24,) in our layout, got (3,)',
    'unexpected: new (3,)',
  ]


def test_a_variant_that_is_given_replaces_sizes(make_weights):
  weights = make_weights()
  named = trees.flatten(weights.params)
  found = weights.model | dict(activation='gelu')
  _, section = model_section.override(named, found, dict(variant='S/16'))
  assert section == dict(
    name='vit', num_classes=5, activation='gelu', variant='S/16'
  )
  _, section = model_section.override(
    named, found, dict(name='mine.vit', width=3)
  )
  assert section == dict(name='mine.vit', width=3)
  same, section = model_section.override(named, found, None)
  assert section == found and same == named


def test_heads_and_class_tokens_come_and_go(make_weights):
  weights = make_weights()
  named = trees.flatten(weights.params)
  fewer, section = model_section.override(
    named, weights.model, dict(num_classes=None, pooling='map')
  )
  assert set(named) - set(fewer) == {'head/kernel', 'head/bias', 'class_token'}
  more, _ = model_section.override(fewer, section, dict(pooling='token'))
  assert set(more) - set(fewer) == {'class_token'}
  assert more['class_token'].shape == (1, 1, 24)
  # A number of classes does not drop what is there.
  same, _ = model_section.override(named, weights.model, dict(num_classes=9))
  assert set(same) == set(named)
  assert jnp.asarray(more['class_token']).sum() == 0
