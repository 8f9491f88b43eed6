"""The mesh, and the batch over it."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib


def test_mesh_takes_the_devices_that_the_other_axes_leave():
  mesh = mesh_lib.make_mesh(tensor=4)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 1, 'tensor': 4}
  assert dict(mesh_lib.make_mesh(1, -1, 2).shape)['fsdp'] == 4
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  'sizes, message',
  [
    (dict(data=3), 'data=3, fsdp=1, tensor=1 does not fit 8 devices'),
    (dict(data=-1, fsdp=3), 'the others must divide 8'),
    (dict(data=1), 'must multiply to 8'),
    (dict(data=-1, fsdp=-1), 'for one axis; wrong: data, fsdp'),
    (dict(data=8, fsdp=0), 'wrong: fsdp'),
    (dict(data=8, fsdp=2.0), 'wrong: fsdp'),
  ],
)
def test_mesh_that_does_not_fit_says_why(sizes, message):
  with pytest.raises(UserError, match=message):
    mesh_lib.make_mesh(**sizes)


def test_batch_size_that_does_not_divide_names_the_nearest_that_do():
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  mesh_lib.check_batch_size(16, mesh)
  with pytest.raises(UserError) as error:
    mesh_lib.check_batch_size(20, mesh)
  assert str(error.value) == (
    'batch_size=20 does not divide over the 8 parts of the batch (mesh '
    'data=2 x fsdp=4 on 8 devices): use 16 or 24, or another mesh'
  )
  with pytest.raises(UserError, match='use 8, or another mesh'):
    mesh_lib.check_batch_size(4, mesh)
  with pytest.raises(UserError, match='batch_size=0'):
    mesh_lib.check_batch_size(0, mesh)
  # The tensor axis does not split the batch.
  mesh_lib.check_batch_size(2, mesh_lib.make_mesh(data=2, tensor=4))


def test_batch_rows_are_spread_over_data_and_fsdp():
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  batch = jax.device_put(np.zeros((8, 3)), mesh_lib.batch_sharding(mesh))
  assert {s.data.shape for s in batch.addressable_shards} == {(2, 3)}
  whole = jax.device_put(np.zeros((8, 3)), mesh_lib.replicated(mesh))
  assert whole.sharding == NamedSharding(mesh, P())
  assert whole.is_fully_replicated
