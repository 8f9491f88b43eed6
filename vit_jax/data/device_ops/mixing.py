"""Mixup and CutMix: images and labels become mixtures with those of a partner.

The rows of a global batch form groups of `group_size` that follow each other.
A row's partner is in its group: the one from the other end (`'reverse'`: timm,
DeiT) or the one before (`'roll'`: big_vision). Where a group lies on one device
nothing is communicated; else the partners travel as uint8, as they came from
the host, and the ops before this one are applied to them where they arrive.

DeiT draws once per process, that is for 64 images (B) or 256 (Ti and S):
`group_size=64` repeats that on any mesh.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vit_jax import losses
from vit_jax.data.device_ops import _boxes
from vit_jax.errors import UserError

Batch = dict[str, jax.Array]

_MODES = ('batch', 'pair', 'elem')
_PARTNERS = ('reverse', 'roll')


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
    for key in ('group_size', 'num_classes'):
      value = getattr(self, key)
      if value is not None and (not isinstance(value, int) or value < 2):
        problems.append(f'{key}={value!r}: expected a whole number from 2 up')
    if problems:
      raise UserError('; '.join(problems))

  def __call__(
    self, batch: Batch, rng: jax.Array | None, *, train: bool
  ) -> Batch:
    """Mixes a batch of normalized images with itself."""
    if not train:
      return batch
    partners = {name: self.partners(rows) for name, rows in batch.items()}
    return self.apply(batch, partners, rng, None)

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
  ) -> tuple[jax.Array, jax.Array, _boxes.Box]:
    """Returns for each row its own weight, whether it is cut, and the box.

    Args:
      rng: of this op in this step.
      num_rows: of the global batch.
      size: height and width of the images.

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
    box = _boxes.of_cutmix(weight, *centre, size)
    left = 1 - _boxes.area(box) / (size[0] * size[1])
    weight = jnp.where(is_cut, left, weight)

    def spread(x):
      if self.mode == 'pair':
        x = jnp.concatenate([x, x[:, ::-1]], axis=1)
      return jnp.broadcast_to(x, (groups, rows)).reshape(-1)

    return spread(weight), spread(is_cut), tuple(map(spread, box))

  def apply(
    self, batch: Batch, partners: Batch, rng: jax.Array, num_classes: int | None
  ) -> Batch:
    """Returns the mixed batch: `image`, and `label` as float32 `[B, Y]`.

    Args:
      batch: `image` float `[B, H, W, C]`, `label` int `[B]` or `[B, Y]`.
      partners: the same fields of the partners.
      rng: of this op in this step.
      num_classes: Y, where `self.num_classes` does not say it.

    Raises:
      UserError: images that are integers, or ids of unknown many classes.
    """
    image, label = batch['image'], batch['label']
    if not jnp.issubdtype(image.dtype, jnp.floating):
      raise UserError(
        f'the images are {image.dtype}: normalize must come before it'
      )
    size = image.shape[1:3]
    weight_B, is_cut_B, box = self.draw(rng, len(image), size)
    in_box_BHW = _boxes.inside(box, size)
    cut_BHW = 1.0 - in_box_BHW
    weight_BHW = jnp.where(
      is_cut_B[:, None, None], cut_BHW, weight_B[:, None, None]
    )
    weight_BHW1 = weight_BHW[..., None].astype(image.dtype)
    image = weight_BHW1 * image + (1 - weight_BHW1) * partners['image']
    num_classes = self._num_classes(label, num_classes)
    own_BY, other_BY = (
      losses.targets(x, num_classes, self.label_smoothing)
      for x in (label, partners['label'])
    )
    weight_B1 = weight_B[:, None]
    label = weight_B1 * own_BY + (1 - weight_B1) * other_BY
    return batch | {'image': image, 'label': label}

  def _num_classes(self, label: jax.Array, num_classes: int | None) -> int:
    if label.ndim == 2:
      return label.shape[1]
    num_classes = self.num_classes or num_classes
    if num_classes is None:
      raise UserError(
        'the labels are class ids, and the data does not tell how many classes '
        'there are: add num_classes='
      )
    return num_classes

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
  return Mix(
    alpha,
    0.0,
    rate=rate,
    mode=mode,
    group_size=group_size,
    partner=partner,
    dominant=dominant,
    label_smoothing=label_smoothing,
    num_classes=num_classes,
  )


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
  return Mix(
    0.0,
    alpha,
    rate=rate,
    mode=mode,
    group_size=group_size,
    partner=partner,
    label_smoothing=label_smoothing,
    num_classes=num_classes,
  )


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
  """Mixup or CutMix, chosen anew for each draw, as timm and DeiT do.

  Args:
    mixup_alpha: of mixup's Beta distribution.
    cutmix_alpha: of CutMix's.
    switch_rate: of CutMix.
    rate: of mixing at all.
    mode: what a draw is for: 'batch' (all rows of a group), 'pair' (a row and
      its partner, who get the same), 'elem' (a row).
    group_size: rows that are mixed among themselves; None is the whole global
      batch, and so is a size above it. It must divide the batch.
    partner: 'reverse' or 'roll', see the top of this file.
    label_smoothing: of both labels before they are mixed, see `losses.smooth`;
      the objective must not smooth again.
    num_classes: needed where labels are class ids and the data does not know.

  Raises:
    UserError: a value out of range; when tracing, a batch that does not divide
      into groups, images that are not normalized yet, unknown classes.
  """
  return Mix(
    mixup_alpha,
    cutmix_alpha,
    switch_rate=switch_rate,
    rate=rate,
    mode=mode,
    group_size=group_size,
    partner=partner,
    label_smoothing=label_smoothing,
    num_classes=num_classes,
  )
