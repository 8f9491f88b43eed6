"""The confusion matrix as a picture and as a table."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.parallel import mesh as mesh_lib
from vit_jax.visualize import confusion_matrix


def predict(params, batch):
  return {'logits': params * batch['image'][:, 0, 0, :].astype(jnp.float32)}


@pytest.mark.parametrize('num_classes', [3, 30, 70])
def test_the_table_counts_and_the_diagonal_is_dark(tmp_path, num_classes):
  # Of class 1 two images in three are taken for class 2; class 0 is right.
  labels = [0, 1, 1, 1]
  answers = [0, 1, 2, 2]
  names = ['$a$', 'b\x1b', *(f'c{i}' for i in range(2, num_classes))]
  np.savez(
    tmp_path / 'data.npz',
    test_images=np.eye(num_classes, dtype=np.float32)[answers][:, None, None],
    test_labels=np.array(labels),
    class_names=names,
  )
  data = dict(name='arrays', path=str(tmp_path / 'data.npz'), split='test')
  mesh = mesh_lib.make_mesh()
  picture = confusion_matrix.Picture(predict, mesh, data=data, ops='')
  assert picture.image.shape == (1, 1, num_classes)
  params = jax.device_put(jnp.float32(1), mesh_lib.replicated(mesh))
  path = picture.draw(params, tmp_path / 'matrix.png')
  with open(path.with_suffix('.csv'), encoding='utf-8', newline='') as file:
    header, *rows = csv.reader(file)
  assert header[:4] == ['label / answer', '$a$', r'b\x1b', 'c2']
  assert rows[0][:4] == ['$a$', '1', '0', '0']
  assert rows[1][:4] == [r'b\x1b', '0', '1', '2']
  assert len(rows) == num_classes
  pixels = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
  # The darkest blue is that of a class without mistakes.
  assert (abs(pixels.astype(int) - (8, 48, 107)).max(-1) <= 2).any()
