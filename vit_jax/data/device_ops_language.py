"""The language of the device ops: ops on a batch, inside the jitted step.

Written like the host ops (`data/ops_language.py`), as in
`'normalize(-1, 1)|mixup(0.2)'`, with names from `device_ops/`. A factory takes
the arguments once, `num_classes` of the data by default, and returns one of
- `(batch, rng, *, train) -> batch`: jax code on a dict of `[B, ...]` arrays
  that keeps shapes and sharding. With `train=False` it must be deterministic
  and do without `rng`;
- `ImageOp`: a function of one image and its key, applied to every image of
  every image field of the batch (`data/fields.py`).
"""

import collections
import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import fields as fields_lib, ops_language
from vit_jax.data.ops import _from_files
from vit_jax.errors import UserError

Batch = dict[str, Any]

FOLDER = 'data/device_ops'

# The ops that text from a file may name. Those of training alone are among
# them, since a run's text has them; in evaluation they do nothing.
FROM_FILES = (
  'crop',
  'cutmix',
  'flip_lr',
  'mixup',
  'mixup_cutmix',
  'normalize',
  'random_crop',
  'random_erasing',
)
# The largest number is that of max_value=65535.
_LIMITS = _from_files.Limits(FROM_FILES, 'device_ops', 'max_number', 2**16)


class DeviceOp(Protocol):
  """A batch on the device in, a batch out."""

  def __call__(
    self, batch: Batch, rng: jax.Array | None, *, train: bool
  ) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class ImageOp:
  """An op on one image, `[H, W, C]`, applied to every image of a field.

  Each image draws from a key of its own, folded from the key of the op and the
  row of the image in the global batch, and with several images in a row (views
  of multi_crop) from its number in the row. So what an image becomes is the
  same on any mesh.

  Attributes:
    train: `(image, key) -> image`; None does in training what `evaluate` does.
    evaluate: `image -> image` without chance; None leaves images as they are.
  """

  train: Callable[[jax.Array, jax.Array], jax.Array] | None = None
  evaluate: Callable[[jax.Array], jax.Array] | None = None

  @property
  def training_only(self) -> bool:
    return self.evaluate is None

  def __call__(
    self, name: str, images: jax.Array, rng: jax.Array | None, *, train: bool
  ) -> jax.Array:
    """Returns the images after the op.

    `images` are `[B, ..., H, W, C]`. Fields draw independently of each other;
    `rng` is None in evaluation.
    """
    leading = images.shape[: max(1, images.ndim - 3)]
    fn, args = self.evaluate, (images,)
    if train and self.train is not None:
      if name != 'image':
        rng = jax.random.fold_in(rng, np.uint32(zlib.crc32(name.encode())))
      fn, args = self.train, (images, _keys(rng, leading))
    if fn is None:
      return images
    for _ in leading:
      fn = jax.vmap(fn)
    return fn(*args)


def parse(
  text: str,
  num_classes: int | None = None,
  *,
  roles: Mapping[str, str] | None = None,
  trusted: bool = False,
) -> DeviceOp:
  """Returns the device ops that `text` names as one.

  Each op draws from a key of its own, folded from `rng`, its name and how many
  ops of this name came before it: to add, remove or move an op does not change
  what the others draw. `rng` may be None with `train=False`.

  Args:
    text: the ops.
    num_classes: of the data, for ops that turn class ids into soft labels.
    roles: of the fields, as the source declares them (`fields.declared`).
    trusted: whether the user wrote the text, see `ops_language`.

  Raises:
    UserError: syntax, an unknown op or bad arguments, all in one message;
      several ops that mix; classes that are not those of the data; what a text
      that is not trusted may not ask for.
  """
  counts: collections.Counter[str] = collections.Counter()
  ops = []
  for segment, op in ops_language.build(
    text,
    FOLDER,
    limits=None if trusted else _LIMITS,
    **({} if num_classes is None else {'num_classes': num_classes}),
  ):
    salt = zlib.crc32(f'{segment.name}#{counts[segment.name]}'.encode())
    counts[segment.name] += 1
    ops.append((segment, op, np.uint32(salt)))
  _check(ops, num_classes)

  def apply(batch: Batch, rng: jax.Array | None, *, train: bool) -> Batch:
    images: set[str] = set()
    for segment, op, salt in ops:
      key = None if rng is None else jax.random.fold_in(rng, salt)
      with ops_language.named(segment):
        if not isinstance(op, ImageOp):
          batch = op(batch, key, train=train)
          continue
        # What was an image once remains one as a float.
        images.update(fields_lib.images(batch, roles))
        for name in sorted(images & batch.keys()):
          image = op(name, batch[name], key, train=train)
          batch = batch | {name: image}
    return batch

  return apply


def of_evaluation(text: str) -> str:
  """Returns `text` without the ops that act in training alone.

  The text may be from a file: no module is imported for it. Ops of the user's
  own stay, and those that `parse` will refuse.

  Raises:
    UserError: text that is not a list of ops.
  """
  kept = []
  for segment in ops_language.segments(text):
    op = None
    with contextlib.suppress(UserError):  # Of an op that `_LIMITS` refuse.
      ((_, op),) = ops_language.build(segment.text, FOLDER, limits=_LIMITS)
    if not getattr(op, 'training_only', False):
      kept.append(segment.text)
  return '|'.join(kept)


def _keys(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns keys of the given shape, each folded from its indices."""
  keys, fold = rng, jax.vmap(jax.random.fold_in, (None, 0))
  for size in shape:
    keys = fold(keys, jnp.arange(size, dtype=jnp.int32))
    fold = jax.vmap(fold, (0, None))
  return keys


def _check(ops: list[tuple], num_classes: int | None) -> None:
  """Raises UserError for a second mixing op or another number of classes."""
  mixing = [s.text for s, op, _ in ops if getattr(op, 'mixes', False)]
  if len(mixing) > 1:
    raise UserError(
      f'{" and ".join(mixing)}: a batch is mixed once; mixup_cutmix chooses '
      'between the two for each draw'
    )
  for segment, _, _ in ops:
    given = segment.kwargs.get('num_classes')
    if None not in (given, num_classes) and given != num_classes:
      raise UserError(
        f'{segment.text}: num_classes={given}, but the data has {num_classes} '
        'classes: leave num_classes out'
      )
