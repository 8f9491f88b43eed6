"""vtab_label: classes of the VTAB tasks that TFDS has no label for."""

import math

import numpy as np

from vit_jax.data.ops_language import Example, Op, image_of
from vit_jax.errors import UserError

# Classes are the intervals between neighbours; the first is without bound.
_CLEVR_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)
_KITTI_DISTANCES = (8.0, 20.0, 999.0)  # In metres; the last is no vehicle.
_KITTI_VEHICLES = 3  # Types 0, 1 and 2: car, van and truck.


def vtab_label(task: str) -> Op:
  """Makes the class of a VTAB task from the feature that `label` holds.

  The tasks of "A Large-scale Study of Representation Learning with the Visual
  Task Adaptation Benchmark" (arXiv:1910.04867), classes as in its code
  (google-research/task_adaptation). The feature of TFDS, which the source reads
  with `label_key`, and the classes are

    clevr_count            objects (of `clevr`): 3 to 10 of them, 8 classes
    clevr_distance         objects: depth of the closest one, 6 classes
    kitti_distance         objects (of `kitti`): depth of the closest car, van
                           or truck, or none, 4 classes
    dsprites_location      value_x_position (of `dsprites`): 16 of 32 columns
    dsprites_orientation   value_orientation: 16 of 40 angles

  It follows `decode`: images of dSprites, whose pixels are 0 and 1, become 0
  and 255.

  Raises:
    UserError: an unknown task; per example, a label without what the task needs
      or an image that is not decoded.
  """
  if task not in _TASKS:
    raise UserError(f'unknown task {task!r}; there are: {", ".join(_TASKS)}')

  def op(example: Example, rng: np.random.Generator) -> Example:
    del rng
    try:
      label = _TASKS[task](example['label'])
    except (KeyError, TypeError, ValueError) as e:
      raise UserError(
        f"'label' does not hold the feature of {task}: {e!r}. Give the source "
        'the label_key of the task'
      ) from e
    example = example | {'label': int(label)}
    if task.startswith('dsprites'):
      example['image'] = image_of(example) * np.uint8(255)
    return example

  return op


def _clevr_count(objects) -> int:
  return len(objects['size']) - 3


def _clevr_distance(objects) -> int:
  depth = np.asarray(objects['pixel_coords'])[:, 2].min()
  return np.searchsorted(_CLEVR_DISTANCES, depth)


def _kitti_distance(objects) -> int:
  is_vehicle = np.asarray(objects['type']) < _KITTI_VEHICLES
  location = np.asarray(objects['location'], np.float32).reshape(-1, 3)
  depth = min(location[is_vehicle, 2], default=math.inf)
  return np.searchsorted(_KITTI_DISTANCES, depth)


def _dsprites_location(x: float) -> int:
  return round(float(x) * 31) // 2  # 32 columns from 0 to 1.


def _dsprites_orientation(angle: float) -> int:
  return int(round(float(angle) / (2 * math.pi) * 39) / 2.5)  # 40, 0 to 2 pi.


_TASKS = {
  'clevr_count': _clevr_count,
  'clevr_distance': _clevr_distance,
  'kitti_distance': _kitti_distance,
  'dsprites_location': _dsprites_location,
  'dsprites_orientation': _dsprites_orientation,
}
