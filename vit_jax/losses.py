"""Losses and top-k accuracy of logits, one number per row: pure functions.

Everything is computed in float32 whatever dtype comes in. Nothing is averaged
here: only the caller knows which rows count.
"""

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError


def softmax_cross_entropy(
  logits_BY: jax.Array,
  targets_BY: jax.Array,
  weights_Y: jax.Array | None = None,
) -> jax.Array:
  """Returns `-sum_y w_y target_y log softmax(logits)_y`, float32 `[B]`.

  Rows of targets are used as they are: where they do not sum to 1 the loss is
  that much larger. The weights w of classes are 1 where there are none.

  Raises:
    UserError: the two shapes differ.
  """
  logits_BY, targets_BY = _checked(logits_BY, targets_BY)
  losses_BY = targets_BY * jax.nn.log_softmax(logits_BY)
  return -jnp.sum(_weighted(losses_BY, weights_Y), axis=-1)


def sigmoid_cross_entropy(
  logits_BY: jax.Array,
  targets_BY: jax.Array,
  weights_Y: jax.Array | None = None,
) -> jax.Array:
  """Returns the summed binary cross-entropies of the classes, float32 `[B]`.

  `-sum_y w_y [t_y log sigmoid(x_y) + (1 - t_y) log sigmoid(-x_y)]`: the sum
  over classes as in big_vision's `sigmoid_xent`. timm and torch average over
  classes instead; their loss is this one divided by Y. The weights w of classes
  are 1 where there are none.

  Raises:
    UserError: the two shapes differ.
  """
  logits_BY, targets_BY = _checked(logits_BY, targets_BY)
  positive = targets_BY * jax.nn.log_sigmoid(logits_BY)
  negative = (1 - targets_BY) * jax.nn.log_sigmoid(-logits_BY)
  return -jnp.sum(_weighted(positive + negative, weights_Y), axis=-1)


# What `loss='softmax'` means in a config.
CROSS_ENTROPIES = {
  'softmax': softmax_cross_entropy,
  'sigmoid': sigmoid_cross_entropy,
}


def cross_entropy(name: str):
  """Returns the function of `CROSS_ENTROPIES`, or raises UserError."""
  if name not in CROSS_ENTROPIES:
    raise UserError(f'loss={name!r}; expected one of {list(CROSS_ENTROPIES)}')
  return CROSS_ENTROPIES[name]


def one_hot(
  label_B: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
  """Returns targets float32 `[B, Y]` for integer labels.

  A label outside `[0, num_classes)` becomes a row of NaN. The usual row of
  zeros would drop the example from a softmax loss without a word; inside a
  compiled step a NaN is the one thing that is sure to be noticed.

  Args:
    label_B: integer class ids.
    num_classes: Y.
    label_smoothing: see `smooth`.
  """
  targets_BY = jax.nn.one_hot(label_B, num_classes, dtype=jnp.float32)
  known_B = (label_B >= 0) & (label_B < num_classes)
  targets_BY = jnp.where(known_B[:, None], targets_BY, jnp.nan)
  return smooth(targets_BY, label_smoothing)


def smooth(targets_BY: jax.Array, label_smoothing: float) -> jax.Array:
  """Returns `(1 - s) * targets + s / Y`.

  Label smoothing of Szegedy et al. 2016 (arXiv:1512.00567, section 7); torch's
  `CrossEntropyLoss(label_smoothing=s)` does the same, with soft targets too.
  """
  if not label_smoothing:
    return targets_BY
  uniform = label_smoothing / targets_BY.shape[-1]
  return (1 - label_smoothing) * targets_BY + uniform


def targets(
  label: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
  """Returns targets float32 `[B, Y]` for any label of a batch.

  Args:
    label: integer class ids `[B]`, or soft or multi-hot labels `[B, Y]`, which
      are taken as they are, then smoothed.
    num_classes: Y.
    label_smoothing: see `smooth`.

  Raises:
    UserError: a label of another shape or kind.
  """
  if label.ndim == 1 and jnp.issubdtype(label.dtype, jnp.integer):
    return one_hot(label, num_classes, label_smoothing)
  if label.ndim == 2 and label.shape[-1] == num_classes:
    return smooth(label.astype(jnp.float32), label_smoothing)
  raise UserError(
    f'got labels {label.dtype}{list(label.shape)}; expected int32 [B], or '
    f'[B, {num_classes}] for soft and multi-hot labels (the model has '
    f'num_classes={num_classes})'
  )


def topk_correct(
  logits_BY: jax.Array, targets_BY: jax.Array, k: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Returns bool `[B]`: is a right class among the top k; is there one at all.

  The right classes of a row are those with its largest target, if that is
  positive: the label itself, any listed class of a multi-hot row (big_vision's
  rule), the dominant class of a mixed one. Of equal logits the first k count.
  """
  best_B1 = jnp.max(targets_BY, axis=-1, keepdims=True)
  right_BY = (targets_BY == best_B1) & (targets_BY > 0)
  if k == 1:
    top_BK = jnp.argmax(logits_BY, axis=-1)[:, None]
  else:
    top_BK = jax.lax.top_k(logits_BY, k)[1]
  hit_BK = jnp.take_along_axis(right_BY, top_BK, axis=-1)
  return jnp.any(hit_BK, axis=-1), jnp.any(right_BY, axis=-1)


def _weighted(losses_BY, weights_Y):
  return losses_BY if weights_Y is None else losses_BY * weights_Y[None]


def _checked(logits_BY, targets_BY):
  """Returns both as float32; a silent broadcast would be a wrong loss."""
  if logits_BY.ndim != 2 or logits_BY.shape != targets_BY.shape:
    raise UserError(
      f'logits {list(logits_BY.shape)} and targets {list(targets_BY.shape)}: '
      'both must be [B, Y]'
    )
  return logits_BY.astype(jnp.float32), targets_BY.astype(jnp.float32)
