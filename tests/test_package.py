"""What `import vit_jax` offers, and how it shows itself."""

import dataclasses
import inspect
import pydoc

import pytest

import vit_jax
from vit_jax.inference import model as inference_model
from vit_jax.inference.model import Model


def test_the_package_offers_load_and_nothing_that_is_not_there():
  assert vit_jax.__all__ == ['list_models', 'load']
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    _ = vit_jax.lod
  # What `help(vit_jax)` prints.
  text = pydoc.plain(pydoc.render_doc(vit_jax))
  assert "vit_jax.load('augreg-B/16-i1k-384')" in text
  assert 'load(source: ' in text and 'list_models(pattern: ' in text
  assert '__getattr__' not in text


def test_the_package_s_load_takes_what_the_model_s_load_takes():
  theirs = inspect.signature(inference_model.load).parameters
  ours = inspect.signature(vit_jax.load).parameters
  assert [(p.name, p.kind, p.default) for p in ours.values()] == [
    (p.name, p.kind, p.default) for p in theirs.values()
  ]
  for name in ours:
    assert f'{name}: ' in vit_jax.load.__doc__


def test_names_of_published_weights_are_listed():
  assert 'augreg-B/16' in vit_jax.list_models()
  found = vit_jax.list_models('dino*-S/1[46]')
  assert found == ['dino-S/16', 'dinov2-S/14', 'dinov2reg-S/14']
  assert vit_jax.list_models('nothing*') == []


def test_no_repr_prints_arrays(tiny_weights):
  weights = tiny_weights()
  weights = dataclasses.replace(weights, source=dict(path='x/y.npz'))
  assert repr(weights) == (
    'Weights(mu/8, 19,269 parameters, 5 classes, from x/y.npz)'
  )
  assert repr(Model(weights)) == 'Model(mu/8, 19,269 parameters, 5 classes)'
