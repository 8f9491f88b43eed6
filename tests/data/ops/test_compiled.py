import logging
import sys
import types

import pytest

from vit_jax.data import ops
from vit_jax.data.ops import _compiled


@pytest.fixture
def fresh(monkeypatch):
  """A process that has not compiled anything yet."""
  _compiled.kernels.cache_clear()
  monkeypatch.delitem(sys.modules, 'vit_jax.data.ops._kernels', raising=False)
  monkeypatch.delattr(ops, '_kernels', raising=False)
  yield
  _compiled.kernels.cache_clear()


def test_without_numba_there_are_no_kernels(fresh, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, 'numba', None)
  assert _compiled.kernels() is None
  assert not caplog.records


def test_a_numba_that_does_not_work_is_told_and_left_out(
  fresh, monkeypatch, caplog
):
  monkeypatch.setitem(sys.modules, 'numba', types.ModuleType('numba'))
  with caplog.at_level(logging.WARNING):
    assert _compiled.kernels() is None
  (record,) = caplog.records
  assert "AttributeError: module 'numba' has no attribute" in record.message
