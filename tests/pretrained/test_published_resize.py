"""Positions of published weights are resized as by those who trained them."""

import dataclasses

import numpy as np
import pytest

from vit_jax.models import _position
from vit_jax.pretrained import (
  catalog,
  download,
  initialize,
  published,
  resample,
)
from vit_jax.pretrained.formats import vit_jax as ours

# DINOv2's models with registers were trained with antialiasing and without the
# offset of 0.1 (its hub configuration), which is what timm computes.
METHODS = {
  **dict.fromkeys(('augreg', 'vit', 'sam'), 'google'),
  **dict.fromkeys(('bv', 'siglip', 'siglip2'), 'google'),
  **dict.fromkeys(('dino', 'dinov2'), 'dino'),
  'dinov2reg': 'timm',
  **dict.fromkeys(('deit', 'deit3', 'mae'), 'torch'),
}
FIRST = {name.partition('-')[0]: name for name in published.PUBLISHED}


def test_every_name_has_the_method_of_its_family():
  assert {
    name: entry.resize for name, entry in published.PUBLISHED.items()
  } == {name: METHODS[name.partition('-')[0]] for name in published.PUBLISHED}


@pytest.mark.parametrize('family', METHODS)
def test_a_run_that_starts_from_a_name_gets_that_method(
  family, make_weights, monkeypatch, tmp_path
):
  weights = make_weights()
  ours.write(weights, tmp_path / 'x.safetensors')
  tiny = dataclasses.replace(
    published.PUBLISHED[FIRST[family]],
    remotes=(download.Remote('https://localhost/x.safetensors'),),
    model=weights.model | dict(activation='gelu_tanh', norm_epsilon=1e-6),
  )
  monkeypatch.setitem(catalog.PUBLISHED, FIRST[family], tiny)
  larger = make_weights(image_shape=(48, 48, 3))
  found = initialize.initialize(
    dict(params=larger.params),
    [dict(weights=FIRST[family])],
    weights_dir=str(tmp_path),
    on_log=str,
  )
  table = weights.params['position_embedding']
  tables = {
    name: resample.resize_position(table, (6, 6), method=name)
    for name in _position.RESIZE
  }
  same = [
    name
    for name, expected in tables.items()
    if np.array_equal(found['params']['position_embedding'], expected)
  ]
  assert same == [METHODS[family]]
