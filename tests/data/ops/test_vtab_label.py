"""Labels of VTAB tasks, worked by hand."""

import numpy as np
import pytest

from vit_jax.data import ops_language
from vit_jax.errors import UserError


def label_of(task, label):
  op = ops_language.parse(f'vtab_label({task!r})', trusted=True)
  example = {'label': label, 'image': np.ones((2, 2, 3), np.uint8)}
  return op(example, np.random.default_rng(0))


def clevr(*depths):
  return dict(size=[0] * len(depths), pixel_coords=[(1, 2, z) for z in depths])


def kitti(*pairs):
  return dict(
    type=[kind for kind, _ in pairs], location=[(1, 2, z) for _, z in pairs]
  )


@pytest.mark.parametrize(
  'task, label, expected',
  [
    ('clevr_count', clevr(9, 9, 9), 0),
    ('clevr_count', clevr(*[9] * 10), 7),
    ('clevr_distance', clevr(12, 7.9, 9), 0),
    # As tf.where(thresholds < depth): a threshold is in the class below.
    ('clevr_distance', clevr(8.0, 9), 0),
    ('clevr_distance', clevr(8.1, 9), 1),
    ('clevr_distance', clevr(9.7), 4),
    ('clevr_distance', clevr(11), 5),
    ('kitti_distance', kitti((0, 7), (3, 1)), 0),
    ('kitti_distance', kitti((1, 25), (2, 19)), 1),
    ('kitti_distance', kitti((0, 21)), 2),
    ('kitti_distance', kitti((3, 5)), 3),
    ('kitti_distance', kitti(), 3),
    ('dsprites_location', 0.0, 0),
    ('dsprites_location', np.float32(2 / 31), 1),
    ('dsprites_location', 1.0, 15),
    ('dsprites_orientation', 0.0, 0),
    ('dsprites_orientation', np.float32(2 * np.pi * 2 / 39), 0),
    ('dsprites_orientation', np.float32(2 * np.pi * 3 / 39), 1),
    ('dsprites_orientation', np.float32(2 * np.pi), 15),
  ],
)
def test_a_task_has_its_classes(task, label, expected):
  found = label_of(task, label)
  assert found['label'] == expected and type(found['label']) is int
  level = 255 if task.startswith('dsprites') else 1
  assert (found['image'] == level).all()


def test_mistakes_are_named():
  with pytest.raises(UserError, match="unknown task 'x'; there are: clevr_cou"):
    label_of('x', 0)
  for task in ('clevr_count', 'clevr_distance', 'kitti_distance'):
    with pytest.raises(UserError, match=f'feature of {task}.*label_key'):
      label_of(task, 3)
