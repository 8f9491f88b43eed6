"""Ops on the whole batch, on the device, inside the jitted step.

Images travel from the host as uint8; what turns them into floats, and what
mixes images of a batch, happens here. The text is that of the host ops
(`data/ops_language.py`): `'normalize(-1, 1)|mixup(0.2)'`. A name means a public
function of a file of `device_ops/` (`FILES`) or, with a dot in it, a factory of
the user's own, where the text is trusted.

A factory takes the arguments once and returns one of
- `(batch, rng, *, train) -> batch`: jax code on a dict of `[B, ...]` arrays
  that keeps shapes and sharding. With `train=False` it must be deterministic
  and do without `rng`;
- `per_image.PerImage`: a function of one image and its key;
- `mixing.Mix`, one at most: rows are mixed with partners.

Ops work in the order in which they are written, and there is one rule more:
rows change places before all of them. The partners that a `Mix` needs are taken
from the batch as it came, uint8, and what stands before the `Mix` is applied to
the rows and again to their partners, with the draws that are the partners' own.
So `normalize|random_erasing|mixup` is DeiT's order, with erased boxes that are
mixed like the rest, and yet no image is ever sent in float32.
"""

import collections
import contextlib
import importlib
import zlib
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import ops_language
from vit_jax.data.device_ops import normalize as normalize_file
from vit_jax.data.device_ops.mixing import Mix
from vit_jax.data.device_ops.per_image import PerImage
from vit_jax.data.ops import _from_files
from vit_jax.errors import UserError

Batch = dict[str, Any]

# Those of `device_ops/` whose public functions are ops.
FILES = ('normalize', 'per_image', 'mixing', 'random_erasing')

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

STATISTICS = normalize_file.STATISTICS


class DeviceOp(Protocol):
  """A batch on the device in, a batch out."""

  def __call__(
    self, batch: Batch, rng: jax.Array | None, *, train: bool
  ) -> Batch: ...


def parse(
  text: str,
  num_classes: int | None = None,
  *,
  trusted: bool = False,
  max_number: float = _from_files.MAX_NUMBER,
) -> DeviceOp:
  """Returns the device ops that `text` names as one.

  Each op draws from a key of its own, folded from `rng`, its name and how many
  ops of this name came before it: to add, remove or move an op does not change
  what the others draw. `rng` may be None with `train=False`.

  Args:
    text: the ops.
    num_classes: of the data, for ops that turn class ids into soft labels.
    trusted: whether the user wrote the text, and no file; see `language`.
    max_number: the largest that ops may have as an argument where they are not
      trusted.

  Raises:
    UserError: syntax, an unknown op or bad arguments, all in one message;
      several ops that mix; classes that are not those of the data; what a text
      that is not trusted may not ask for.
  """
  limits = _from_files.Limits(
    FROM_FILES, 'device_ops', 'max_number', max_number
  )
  counts: collections.Counter[str] = collections.Counter()
  ops = []
  for segment, op in ops_language.build(
    text, _find, limits=None if trusted else limits
  ):
    salt = zlib.crc32(f'{segment.name}#{counts[segment.name]}'.encode())
    counts[segment.name] += 1
    ops.append((segment, op, np.uint32(salt)))
  mixing = [i for i, (_, op, _) in enumerate(ops) if isinstance(op, Mix)]
  _check_mixing([ops[i][:2] for i in mixing], num_classes)

  def run(some, batch, rng, train, row_B):
    for segment, op, salt in some:
      key = None if rng is None else jax.random.fold_in(rng, salt)
      with _named(segment):
        if isinstance(op, PerImage):
          batch = op(batch, key, train=train, row_B=row_B)
        else:
          batch = op(batch, key, train=train)
    return batch

  def apply(batch: Batch, rng: jax.Array | None, *, train: bool) -> Batch:
    if not (train and mixing):
      return run(ops, batch, rng, train, None)
    num_rows = len(next(iter(batch.values())))
    row_B = jnp.arange(num_rows, dtype=jnp.int32)
    i = mixing[0]
    segment, mix, salt = ops[i]
    with _named(segment):
      partners = {name: mix.partners(rows) for name, rows in batch.items()}
      partner_row_B = mix.partners(row_B)
    batch = run(ops[:i], batch, rng, train, row_B)
    partners = run(ops[:i], partners, rng, train, partner_row_B)
    with _named(segment):
      key = jax.random.fold_in(rng, salt)
      batch = mix.apply(batch, partners, key, num_classes)
    return run(ops[i + 1 :], batch, rng, train, row_B)

  return apply


def of_evaluation(text: str) -> str:
  """Returns `text` without the ops that act in training alone.

  The text may be from a file: no module is imported for it. Ops of the user's
  own stay, and those that `parse` will refuse.

  Raises:
    UserError: text that is no list of ops.
  """
  kept = []
  limits = _from_files.Limits(
    FROM_FILES, 'device_ops', 'max_number', _from_files.MAX_NUMBER
  )
  for segment in ops_language.segments(text):
    if '.' not in segment.name:
      try:
        op = ops_language.build(segment.text, _find, limits=limits)[0][1]
      except UserError:
        op = None
      trains_only = isinstance(op, PerImage) and op.evaluate is None
      if trains_only or isinstance(op, Mix):
        continue
    kept.append(segment.text)
  return '|'.join(kept)


@contextlib.contextmanager
def _named(segment: ops_language.Segment):
  """Puts the text of an op before the errors that it raises for users."""
  try:
    yield
  except UserError as e:
    raise UserError(f'{segment.text}: {e}') from e


def _check_mixing(
  mixing: list[tuple[ops_language.Segment, Mix]], num_classes: int | None
) -> None:
  if len(mixing) > 1:
    texts = ' and '.join(segment.text for segment, _ in mixing)
    raise UserError(
      f'{texts}: a batch is mixed once; mixup_cutmix chooses between the two '
      'for each draw'
    )
  for segment, mix in mixing:
    said = mix.num_classes
    if said is not None and num_classes is not None and said != num_classes:
      raise UserError(
        f'{segment.text}: num_classes={said}, but the data has {num_classes} '
        'classes: leave num_classes out'
      )


def _find(name: str) -> Any:
  if '.' in name:
    return ops_language.find_dotted(name)
  choices = {}
  for file in FILES:
    module = importlib.import_module(f'vit_jax.data.device_ops.{file}')
    choices |= ops_language.public_functions(module)
  if name not in choices:
    raise ops_language.unknown(name, choices)
  return choices[name]
