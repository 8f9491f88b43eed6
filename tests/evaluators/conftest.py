"""Features without a model: images of 1 x 1 pixel whose channels they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import lookup
from vit_jax.parallel import mesh as mesh_lib


def predict(params, batch):
  return {'features': params * batch['image'][:, 0, 0, :]}


@pytest.fixture
def evaluate(tmp_path):
  """Returns a function from features and labels to an evaluator's numbers."""

  def run(
    name, train, test, *, num_classes, devices=8, model=predict, **options
  ):
    path = tmp_path / 'features.npz'
    arrays = {}
    for split, (x, label) in dict(train=train, test=test).items():
      x = np.asarray(x, np.float32)
      arrays[f'{split}_images'] = x[:, None, None, :]
      arrays[f'{split}_labels'] = np.asarray(label)
    np.savez(path, **arrays)
    data = dict(name='arrays', path=str(path), num_classes=num_classes)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    section = dict(
      name=name,
      data_train=dict(data, split='train'),
      data_test=dict(data, split='test'),
      ops='',
      batch_size=64,
      num_threads=0,
    )
    evaluator = lookup.build(
      'evaluators', section | options, 'Evaluator', model, mesh
    )
    params = jax.device_put(jnp.float32(1), mesh_lib.replicated(mesh))
    with jax.transfer_guard('disallow'):
      return evaluator.run(params)

  return run
