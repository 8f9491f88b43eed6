"""onehot: class ids to one-hot and multi-hot vectors."""

import numpy as np

from vit_jax.data.ops_language import Example, Op
from vit_jax.errors import UserError


def onehot(num_classes: int) -> Op:
  """Turns class ids into a vector: `label` becomes float32 `[num_classes]`.

  One id gives a one-hot vector; a list of ids (an image with several labels,
  or with none) gives a multi-hot vector. Needed for multi-label sources, whose
  lists differ in length and cannot be batched; for one label per image the
  loss does it on the device.

  Raises:
    UserError: per example, an id outside `0 .. num_classes - 1`.
  """

  def op(example: Example, rng: np.random.Generator) -> Example:
    del rng
    if 'label' not in example:
      raise UserError(f"the example has no 'label'; it has {sorted(example)}")
    ids = np.asarray(example['label'])
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
      raise UserError(f"'label' must hold class ids; got {ids.dtype}")
    ids = ids.reshape(-1).astype(np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
      raise UserError(
        f'label {ids.tolist()} is outside 0 .. {num_classes - 1}; is '
        f'num_classes={num_classes} right?'
      )
    hot = np.zeros([num_classes], np.float32)
    hot[ids] = 1
    return example | {'label': hot}

  return op
