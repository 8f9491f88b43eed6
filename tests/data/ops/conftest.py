"""Ops with the Numba kernels and without."""

import pytest

from vit_jax.data.ops import resize


@pytest.fixture(params=['compiled', 'plain'])
def route(request, monkeypatch):
  if request.param == 'plain':
    monkeypatch.setattr(resize, 'kernels', lambda: None)
