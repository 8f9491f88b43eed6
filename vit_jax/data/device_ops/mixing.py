"""Mixup and CutMix: images and labels are mixed with those of a partner row.

The rows of a global batch form consecutive groups of `group_size`. A row's
partner is in its group: the row at the mirrored position (`'reverse'`: timm,
DeiT) or the one before (`'roll'`: big_vision). A group that one device holds
needs no communication; otherwise devices exchange the images of partners.

DeiT draws once per process, that is for 64 images (B) or 256 (Ti and S):
`group_size=64` repeats that on any mesh.

The fields `image` and `label` are mixed. All others stay those of the row, also
other images: put views that are mixed together into one `image`, `[B, G, H, W,
C]`, whose views share the weight and the box of their row.
"""

import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp

from vit_jax import losses
from vit_jax.errors import UserError

Batch = dict[str, jax.Array]

_MODES = ('batch', 'pair', 'elem')
_PARTNERS = ('reverse', 'roll')


class Box(NamedTuple):
  """Boxes in images, int32, each field of one shape; the ends are exclusive."""

  top: jax.Array
  bottom: jax.Array
  left: jax.Array
  right: jax.Array

  @classmethod
  def of_cutmix(
    cls,
    weight: jax.Array,
    row: jax.Array,
    column: jax.Array,
    size: tuple[int, int],
  ) -> Self:
    """Returns the box of CutMix around a centre, clipped to the image.

    Its sides before clipping are int(H r) and int(W r) with
    r = sqrt(1 - weight), rounded down to even (arXiv:1905.04899; timm 0.3.2,
    which DeiT used; timm 1.0.31 keeps odd sides).

    Args:
      weight: of the image that the box is pasted into, in [0, 1], any shape.
      row: of the centre, uniform over the image.
      column: likewise.
      size: height and width of the images.
    """
    ratio = jnp.sqrt(1 - weight)
    ends = []
    for centre, side in zip((row, column), size, strict=True):
      half = jnp.int32(side * ratio) // 2
      ends.append(jnp.clip(centre - half, 0, side))
      ends.append(jnp.clip(centre + half, 0, side))
    return cls(*ends)

  def area(self) -> jax.Array:
    """Returns the number of pixels, int32."""
    return (self.bottom - self.top) * (self.right - self.left)

  def inside(self, size: tuple[int, int]) -> jax.Array:
    """Returns bool `[..., H, W]`: which pixels of an image lie in the box."""
    top, bottom, left, right = (jnp.asarray(x)[..., None, None] for x in self)
    shape = (*top.shape[:-2], *size)
    row = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2)
    column = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


@dataclasses.dataclass(frozen=True)
class Mix:
  """Mixup, CutMix or a choice between them; see `mixup_cutmix`."""

  mixup_alpha: float
  cutmix_alpha: float
  switch_rate: float = 0.5
  rate: float = 1.0
  mode: str = 'batch'
  group_size: int | None = None
  partner: str = 'reverse'
  dominant: bool = False
  label_smoothing: float = 0.0
  num_classes: int | None = None

  training_only = True
  mixes = True  # Of such ops a batch takes one.

  def __post_init__(self):
    problems = []
    for key in ('mixup_alpha', 'cutmix_alpha'):
      if getattr(self, key) < 0:
        problems.append(f'{key}={getattr(self, key)!r} must be at least 0')
    if not (self.mixup_alpha or self.cutmix_alpha):
      problems.append('alpha must be above 0: leave the op out to mix nothing')
    for key in ('rate', 'switch_rate'):
      if not 0 <= getattr(self, key) <= 1:
        problems.append(f'{key}={getattr(self, key)!r} must lie in [0, 1]')
    if not 0 <= self.label_smoothing < 1:
      problems.append(
        f'label_smoothing={self.label_smoothing!r} must lie in [0, 1)'
      )
    if self.mode not in _MODES:
      problems.append(f'mode={self.mode!r}: expected one of {_MODES}')
    if self.partner not in _PARTNERS:
      problems.append(f'partner={self.partner!r}: expected one of {_PARTNERS}')
    if self.mode == 'pair' and self.partner != 'reverse':
      problems.append("mode='pair' needs partner='reverse'")
    for key, least in (('group_size', 2), ('num_classes', 1)):
      value = getattr(self, key)
      if value is not None and (not isinstance(value, int) or value < least):
        problems.append(
          f'{key}={value!r}: expected a whole number from {least} up'
        )
    if problems:
      raise UserError('; '.join(problems))

  def __call__(
    self, batch: Batch, rng: jax.Array | None, *, train: bool
  ) -> Batch:
    """Returns the mixed batch; in evaluation the batch as it is.

    Args:
      batch: `image` float `[B, ..., H, W, C]`; if present, `label`, int `[B]`
        or `[B, Y]`, which becomes float32 `[B, Y]`.
      rng: of this op in this step.
      train: whether to mix.

    Raises:
      UserError: no images or integer ones, or class ids and no `num_classes`.
    """
    if not train:
      return batch
    if 'image' not in batch:
      raise UserError(f"the batch has no 'image'; it has {sorted(batch)}")
    image = batch['image']
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise UserError(
        f'the images are {image.dtype}: normalize must come before it'
      )
    size = image.shape[-3:-1]
    weight_B, is_cut_B, box = self.draw(rng, len(image), size)
    cut_BHW = 1.0 - box.inside(size)
    weight_BHW = jnp.where(
      is_cut_B[:, None, None], cut_BHW, weight_B[:, None, None]
    )
    views = (1,) * (image.ndim - 4)
    weight = weight_BHW.reshape(len(image), *views, *size, 1)
    weight = weight.astype(image.dtype)
    mixed = {'image': weight * image + (1 - weight) * self.partners(image)}
    if 'label' in batch:
      mixed['label'] = self._mix_labels(batch['label'], weight_B[:, None])
    return batch | mixed

  def partners(self, rows: jax.Array) -> jax.Array:
    """Returns `[B, ...]` with each row replaced by its partner.

    Written as a reshape and a reversal, which the compiler splits into at most
    one exchange between neighbours; a gather would become an all-reduce.
    """
    grouped = rows.reshape(self._grouped(len(rows)) + rows.shape[1:])
    if self.partner == 'reverse':
      return grouped[:, ::-1].reshape(rows.shape)
    return jnp.roll(grouped, 1, axis=1).reshape(rows.shape)

  def draw(
    self, rng: jax.Array, num_rows: int, size: tuple[int, int]
  ) -> tuple[jax.Array, jax.Array, Box]:
    """Returns for each row its own weight, whether it is cut, and the box.

    Returns:
      float32 `[B]`, in [0, 1], of CutMix that of the pixels that are left;
      bool `[B]`; four int32 `[B]`.
    """
    groups, rows = self._grouped(num_rows)
    shape = groups, {'batch': 1, 'pair': rows // 2, 'elem': rows}[self.mode]
    weight_key, rest_key = jax.random.split(rng)
    # One draw for both; an alpha of 0 is never chosen.
    alpha = jnp.array([self.mixup_alpha or 1.0, self.cutmix_alpha or 1.0])
    alpha = alpha.reshape(2, 1, 1)
    mixed, cut = jax.random.beta(weight_key, alpha, alpha, (2, *shape))
    switch, mixes, row, column = jax.random.uniform(rest_key, (4, *shape))
    is_cut = (switch < self.switch_rate) | (self.mixup_alpha == 0)
    is_cut &= self.cutmix_alpha > 0
    weight = jnp.where(is_cut, cut, mixed)
    if self.dominant:
      weight = jnp.maximum(weight, 1 - weight)
    weight = jnp.where(mixes < self.rate, weight, 1.0)
    centre = jnp.int32(row * size[0]), jnp.int32(column * size[1])
    box = Box.of_cutmix(weight, *centre, size)
    left = 1 - box.area() / (size[0] * size[1])
    weight = jnp.where(is_cut, left, weight)

    def spread(x):
      if self.mode == 'pair':
        x = jnp.concatenate([x, x[:, ::-1]], axis=1)
      return jnp.broadcast_to(x, (groups, rows)).reshape(-1)

    return spread(weight), spread(is_cut), Box(*map(spread, box))

  def _mix_labels(self, label: jax.Array, weight_B1: jax.Array) -> jax.Array:
    """Returns the labels as float32 `[B, Y]`, mixed."""
    num_classes = label.shape[1] if label.ndim == 2 else self.num_classes
    if num_classes is None:
      raise UserError(
        'the labels are class ids, and the data does not say how many classes '
        'there are: add num_classes='
      )
    own_BY, other_BY = (
      losses.targets(x, num_classes, self.label_smoothing)
      for x in (label, self.partners(label))
    )
    return weight_B1 * own_BY + (1 - weight_B1) * other_BY

  def _grouped(self, num_rows: int) -> tuple[int, int]:
    """Returns the number of groups and the rows of each."""
    rows = min(self.group_size or num_rows, num_rows)
    if num_rows % rows:
      raise UserError(
        f'group_size={rows} does not divide the batch of {num_rows}'
      )
    if rows < 2 or (rows % 2 and self.partner == 'reverse'):
      raise UserError(
        f'a group has {rows} rows; to pair them it takes an even number'
      )
    return num_rows // rows, rows


def mixup(
  alpha: float,
  *,
  rate: float = 1.0,
  mode: str = 'batch',
  group_size: int | None = None,
  partner: str = 'reverse',
  dominant: bool = False,
  label_smoothing: float = 0.0,
  num_classes: int | None = None,
) -> Mix:
  """Blends images and labels (arXiv:1710.09412): `w x + (1 - w) partner`.

  The weight w is from Beta(alpha, alpha). Arguments are those of
  `mixup_cutmix`; big_vision's `mixup=dict(p=0.2)` is
  `mixup(0.2, partner='roll', dominant=True)`.

  Args:
    dominant: whether w is replaced by max(w, 1 - w): a row stays nearer to its
      own image than to its partner's.
  """
  options = locals()
  return Mix(options.pop('alpha'), 0.0, **options)


def cutmix(
  alpha: float = 1.0,
  *,
  rate: float = 1.0,
  mode: str = 'batch',
  group_size: int | None = None,
  partner: str = 'reverse',
  label_smoothing: float = 0.0,
  num_classes: int | None = None,
) -> Mix:
  """Pastes a box of the partner (arXiv:1905.04899); see `mixup_cutmix`.

  The labels are mixed by the areas after the box was clipped to the image.
  """
  options = locals()
  return Mix(0.0, options.pop('alpha'), **options)


def mixup_cutmix(
  mixup_alpha: float = 0.8,
  cutmix_alpha: float = 1.0,
  *,
  switch_rate: float = 0.5,
  rate: float = 1.0,
  mode: str = 'batch',
  group_size: int | None = None,
  partner: str = 'reverse',
  label_smoothing: float = 0.0,
  num_classes: int | None = None,
) -> Mix:
  """Mixes by mixup or CutMix, chosen for each draw, as in timm and DeiT.

  Args:
    mixup_alpha: of mixup's Beta distribution.
    cutmix_alpha: of CutMix's.
    switch_rate: of CutMix.
    rate: of mixing at all.
    mode: the rows of one draw: 'batch' (all rows of a group), 'pair' (a row and
      its partner), 'elem' (one row).
    group_size: rows that are mixed with each other; None is the whole global
      batch, and so is a size above it. It must divide the batch.
    partner: 'reverse' or 'roll', see the module docstring.
    label_smoothing: of both labels before they are mixed, see `losses.smooth`;
      the objective must not smooth again.
    num_classes: of labels that are class ids; by default that of the data.

  Raises:
    UserError: a value out of range; when tracing, a batch that does not divide
      into groups, images that are not normalized yet, unknown classes.
  """
  return Mix(**locals())
