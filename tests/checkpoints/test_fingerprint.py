"""Fingerprints of parameters: one for all meshes, another for each change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from vit_jax.checkpoints.fingerprint import fingerprint
from vit_jax.parallel import mesh as mesh_lib

DTYPES = ['float32', 'bfloat16', 'int32', 'uint8', 'bool']


def array(dtype, shape=(8, 4)):
  values = np.random.default_rng(0).integers(0, 2, shape)
  return np.asarray(values, jnp.dtype(dtype))


def test_fingerprint_is_the_same_on_every_mesh():
  tree = {dtype: array(dtype) for dtype in DTYPES}
  want = fingerprint(tree)
  assert list(want) == sorted(DTYPES)
  for mesh, spec in (
    (mesh_lib.make_mesh(data=1, fsdp=8), P('fsdp')),
    (mesh_lib.make_mesh(data=2, fsdp=4), P('data', 'fsdp')),
    (mesh_lib.make_mesh(), P()),
  ):
    placed = jax.device_put(tree, NamedSharding(mesh, spec))
    assert fingerprint(placed) == want


@pytest.mark.parametrize('dtype', DTYPES[:-1])
def test_every_single_bit_changes_the_fingerprint(dtype):
  x = array(dtype, (2, 2))
  number = fingerprint(x)['']
  for bit in range(8 * x.nbytes):
    flipped = bytearray(x.tobytes())
    flipped[bit // 8] ^= 1 << bit % 8
    y = np.frombuffer(bytes(flipped), x.dtype).reshape(x.shape)
    assert fingerprint(y)[''] != number


def test_exchanged_elements_change_the_fingerprint():
  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  others = [x[::-1], x[:, ::-1], x.T.reshape(2, 3), x.reshape(3, 2)]
  assert len({fingerprint(y)[''] for y in [x, *others]}) == 5


def test_a_pair_of_flipped_signs_changes_the_fingerprint():
  x = np.arange(1, 7, dtype=np.float32)
  y = x * np.float32([1, -1, 1, 1, -1, 1])
  assert fingerprint(x) != fingerprint(y)


def test_scalars_and_empty_trees_have_fingerprints():
  assert fingerprint(np.int32(0)) != fingerprint(np.int32(1))
  assert fingerprint({'extra': {}, 'ema': None}) == {}
