"""Limits of a mesh: undivided parameters, narrow strips, slices."""

import jax
import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.parallel import limits, mesh as mesh_lib, rules as rules_lib


def check(shapes, mesh, **options):
  options = limits.Options(min_size=1, **options)
  tree = {
    'params': trees.unflatten(
      {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()}
    )
  }
  shardings = rules_lib.state_shardings(tree, mesh, min_size=1)
  tree = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )
  return limits.check(tree, mesh, options)


def test_only_a_small_share_may_stay_undivided():
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  shapes = {'a': (128, 100), 'odd': (13, 10)}  # 130 of 12,930 elements: 1.0 %
  assert check(shapes, mesh).unsplit[0][0] == 'params/odd'
  with pytest.raises(UserError) as e:
    check(shapes, mesh, max_unsplit=0.01)
  assert '1.0% of the state would stay whole' in str(e.value)
  assert 'max_unsplit=0.01' in str(e.value)
  assert 'params/odd [13, 10] over fsdp' in str(e.value)
  assert 'mesh data=1, fsdp=8, tensor=1' in str(e.value)


def test_parameters_in_narrow_strips_are_refused():
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  check({'a': (128, 100)}, mesh)  # 16 rows on each of 8 devices.
  with pytest.raises(UserError, match=r'a \[120, 100\] over fsdp: 15 rows'):
    check({'a': (120, 100)}, mesh)
  check({'a': (120, 100)}, mesh, min_rows=15)


def test_a_whole_head_on_a_device_is_not_narrow():
  mesh = mesh_lib.make_mesh(data=2, tensor=4)
  check({'attention/query/kernel': (64, 4, 16)}, mesh)
  check({'attention/out/kernel': (4, 16, 64)}, mesh)
  with pytest.raises(UserError, match=r'mlp/up/kernel.* over tensor: 8 rows'):
    check({'mlp/up/kernel': (64, 32)}, mesh)


def test_other_heads_than_the_mesh_divides_are_reported():
  mesh = mesh_lib.make_mesh(data=2, tensor=4)
  with pytest.raises(UserError, match=r'query/kernel .64, 3, 16. over tensor'):
    check({'attention/query/kernel': (64, 3, 16)}, mesh)


class FakeDevice:
  """What a mesh asks of a device."""

  platform, device_kind = 'fake', 'fake'

  def __init__(self, number, **attributes):
    self.id = number
    self.__dict__.update(attributes)


def ids(mesh):
  return np.vectorize(lambda device: device.id)(mesh.devices)


def test_only_data_crosses_slices():
  # In an order in which no slice is a piece.
  devices = [
    FakeDevice(i, slice_index=i % 2, process_index=0) for i in range(8)
  ]
  mesh = mesh_lib.make_mesh(fsdp=2, slices=2, devices=devices)
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 2, 'tensor': 1}
  found = ids(mesh)[..., 0]
  np.testing.assert_array_equal(found % 2, [[0, 0], [0, 0], [1, 1], [1, 1]])
  with pytest.raises(UserError, match='multiple of them for data, got 1'):
    mesh_lib.make_mesh(data=1, fsdp=8, slices=2, devices=devices)
  with pytest.raises(UserError, match='slices=4, but the devices are of 2 sli'):
    mesh_lib.make_mesh(slices=4, devices=devices)


def test_tpus_say_their_slices():
  devices = [
    FakeDevice(i, slice_index=i % 2, process_index=0) for i in range(8)
  ]
  np.testing.assert_array_equal(
    ids(mesh_lib.make_mesh(devices=devices)).ravel(), range(8)
  )
  for device in devices:
    device.platform = 'tpu'
    device.coords = (device.id // 2, 0, 0)
    device.core_on_chip = 0
  found = ids(mesh_lib.make_mesh(fsdp=4, devices=devices))[..., 0]
  np.testing.assert_array_equal(found % 2, [[0] * 4, [1] * 4])


def test_processes_are_slices_where_devices_are_of_none():
  devices = [FakeDevice(i, process_index=i % 4) for i in range(8)]
  mesh = mesh_lib.make_mesh(slices=4, devices=devices)
  np.testing.assert_array_equal(ids(mesh).ravel() % 4, [0, 0, 1, 1, 2, 2, 3, 3])
  with pytest.raises(
    UserError, match='slices=2, but the devices are of 4 proc'
  ):
    mesh_lib.make_mesh(slices=2, devices=devices)
