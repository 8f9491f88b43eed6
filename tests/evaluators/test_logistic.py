"""Logistic regression streams over the rows: equal results, bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.evaluators import _features, _logistic
from vit_jax.parallel import mesh as mesh_lib


@pytest.fixture
def mesh():
  return mesh_lib.make_mesh()


def _random(n, width, num_classes):
  rng = np.random.default_rng(0)
  label = rng.integers(0, num_classes, n).astype(np.int32)
  x = np.eye(num_classes, width)[label] + rng.normal(size=(n, width))
  return _features.Features(np.float32(x), label)


def test_blocks_of_rows_give_the_results_of_all_rows(mesh, monkeypatch):
  data = _random(301, 5, 7)

  def fit():
    heads = _logistic.lbfgs(
      data, mesh, num_classes=7, l2=1.0, max_iterations=100
    )
    return jax.device_get(heads), _logistic.scores(heads, data, mesh)

  heads, scores = fit()
  monkeypatch.setattr(_logistic, '_MAX_LOGITS', 7 * 10)
  blocks, rows = _logistic._put(data, mesh, 7)
  assert blocks == 10 and len(rows[0]) == 8 * 4 * 10  # Four blocks a device.
  blockwise_heads, blockwise_scores = fit()
  for name, value in heads.items():
    # Sums in another order; the minimum is found to 1e-4 of the gradient.
    np.testing.assert_allclose(blockwise_heads[name], value, atol=1e-3)
  assert blockwise_scores['top1'] == scores['top1']
  assert blockwise_scores['top5'] == scores['top5']
  np.testing.assert_allclose(
    blockwise_scores['loss'], scores['loss'], rtol=1e-4
  )


def test_memory_is_that_of_a_block_and_not_of_all_rows(mesh):
  num_classes, width, num_rows = 1000, 8, 2**21
  all_logits = 4 * num_rows // 8 * num_classes  # Bytes on each of 8 devices.
  block = 2**14

  def array(shape, dtype, where):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  split, replicated = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
  rows = (
    array((num_rows, width), jnp.float32, split),
    array((num_rows,), jnp.int32, split),
    array((num_rows,), jnp.bool_, split),
  )
  l2 = array((), jnp.float32, replicated)
  options = dict(block=block, mesh=mesh)
  fit = _logistic._lbfgs.lower(
    *rows, l2, num_classes=num_classes, max_iterations=10, **options
  )
  heads = {
    'kernel': array((2, width, num_classes), jnp.float32, replicated),
    'bias': array((2, num_classes), jnp.float32, replicated),
  }
  score = _logistic._sums.lower(heads, *rows, **options)
  for program in (fit, score):
    used = program.compile().memory_analysis().temp_size_in_bytes
    # A few arrays of the size of a block's logits, 64 MiB.
    assert used < 5 * 4 * block * num_classes < all_logits / 3
