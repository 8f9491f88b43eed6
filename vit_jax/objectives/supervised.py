"""Supervised learning: softmax or sigmoid cross-entropy with any labels."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import lookup, losses
from vit_jax.errors import UserError

# Of a model, for messages.
_CONTRACT = (
  "a model's __call__(image, train=...) returns a dict with logits (and"
  ' features and tokens, for evaluators)'
)

_STATISTICS = 'batch_stats'  # As flax calls the collection.


class Objective:
  """Mean cross-entropy between a model's logits and `batch['label']`."""

  fields = ('image', 'label')  # Of the batch, for the loss.
  # See `training.gradients`. Where some rows have no label, `top1` of
  # micro-batches weighs them equally, however many labels they have.
  mean_over_examples = True

  def __init__(
    self,
    model: nn.Module,
    *,
    loss: str = 'softmax',
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    class_reduction: str | None = None,
    class_weights: Sequence[float] | str | None = None,
    class_counts: Sequence[int] | None = None,
  ):
    """Keeps the model and checks the options.

    Args:
      model: returns `{'logits': float32 [B, Y], ...}`.
      loss: 'softmax', or 'sigmoid' (a binary decision per class, summed over
        classes), which multi-hot labels need.
      label_smoothing: in [0, 1); see `losses.smooth`. Zero where the device ops
        smooth already.
      target_threshold: of 'sigmoid': smoothed, mixed targets above it become 1
        and all others 0. DeiT-III has 0: both classes of a mixture are right;
        "ResNet strikes back" (arXiv:2110.00476) 0.2.
      class_weights: a factor of each class's part of the loss, in the order of
        the ids; 'balanced' is mean(class_counts) / class_counts, as in
        scikit-learn. The mean over the batch is not divided by the weights of
        its labels, unlike torch's for integer labels: examples count alike on
        any number of devices. Evaluations are not weighted.
      class_counts: of 'balanced': how many training images each class has.
      class_reduction: of 'sigmoid': 'sum' over the classes (the default, as
        big_vision) or their 'mean' (torch, timm, DeiT-III), which makes loss
        and gradients smaller by the number of classes.

    Raises:
      UserError: an option out of range, or one without effect.
    """
    self.model = model
    problems = []
    for key, value in (
      ('target_threshold', target_threshold),
      ('class_reduction', class_reduction),
    ):
      if value is not None and loss != 'sigmoid':
        problems.append(f'{key}={value!r} has no effect with loss={loss!r}')
    if target_threshold is not None and not 0 <= target_threshold < 1:
      problems.append(f'target_threshold={target_threshold!r}: [0, 1)')
    if class_reduction not in (None, 'sum', 'mean'):
      problems.append(f"class_reduction={class_reduction!r}: 'sum' or 'mean'")
    if problems:
      raise UserError('objective: ' + '; '.join(problems))
    self._target_threshold = target_threshold
    self._class_mean = class_reduction == 'mean'
    self._cross_entropy = losses.cross_entropy(loss)
    if not 0 <= label_smoothing < 1:
      raise UserError(
        f'objective: label_smoothing={label_smoothing!r} must lie in [0, 1)'
      )
    self._label_smoothing = label_smoothing
    self._class_weights = _class_weights(class_weights, class_counts)

  def init(
    self, rng: jax.Array, batch: Mapping[str, Any]
  ) -> dict[str, dict[str, Any]]:
    """Returns `params` and, of a model with BatchNorm, its statistics, `extra`.

    Args:
      rng: key of the parameters.
      batch: arrays or their shapes; only the shape of `image` is read.

    Raises:
      UserError: the model is not called as README.md says, has no logits, or
        has collections besides params and batch_stats.
    """
    _check_call(self.model)
    image = jnp.zeros((1, *batch['image'].shape[1:]), jnp.float32)
    outputs, variables = self.model.init_with_output(rng, image, train=False)
    self._check_num_classes(_logits(outputs).shape[-1])
    if others := sorted(set(variables) - {'params', _STATISTICS}):
      raise UserError(
        f'{type(self.model).__name__} has the collections {others}; the '
        'supervised objective trains models that have params and batch_stats'
      )
    branches = {'params': variables['params']}
    if _STATISTICS in variables:
      branches['extra'] = {_STATISTICS: variables[_STATISTICS]}
    return branches

  def loss(
    self,
    params: Mapping[str, Any],
    state: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, Any]]]:
    """Returns the mean loss over the batch, `(metrics, extra)`.

    Args:
      params: to differentiate by.
      state: the whole TrainState before the update; only `extra` is read.
      batch: `image` float `[B, H, W, C]` and `label`, int32 `[B]` or float32
        `[B, Y]`. An int label that the model has no class for makes the loss
        NaN (`losses.one_hot`).
      rng: key of dropout and stochastic depth.

    Metrics: `loss`, and `top1` on this batch as it is, augmented, with dropout:
    the fraction of the rows that have a label (`losses.topk_correct`). Of a
    mixed row the class with the larger weight is the right one.
    """
    outputs, extra = self.model.apply(
      {'params': params, **state.extra},
      batch['image'],
      train=True,
      rngs={'dropout': rng},
      # Of the whole batch: it is one array, over however many devices.
      mutable=[_STATISTICS],
    )
    logits_BY = _logits(outputs)
    num_classes = logits_BY.shape[-1]
    targets_BY = losses.targets(batch['label'], num_classes)
    hit_B, labelled_B = losses.topk_correct(logits_BY, targets_BY)
    targets_BY = losses.smooth(targets_BY, self._label_smoothing)
    if self._target_threshold is not None:
      targets_BY = self._binarize(targets_BY)
    self._check_num_classes(num_classes)
    loss = jnp.mean(
      self._cross_entropy(logits_BY, targets_BY, self._class_weights)
    )
    if self._class_mean:
      loss /= num_classes
    top1 = jnp.sum(hit_B) / jnp.maximum(jnp.sum(labelled_B), 1)
    return loss, ({'loss': loss, 'top1': top1}, extra)

  def predict(
    self,
    params: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    *,
    extra: Mapping[str, Any] | None = None,
  ) -> dict[str, jax.Array]:
    """Returns the outputs of the model: `logits`, `features`, `tokens`.

    Args:
      params: of the state, or their average.
      batch: only `image` is read.
      extra: of the state; a model with BatchNorm needs it.
    """
    variables = {'params': params, **(extra or {})}
    return self.model.apply(variables, batch['image'], train=False)

  def _check_num_classes(self, num_classes: int) -> None:
    weights = self._class_weights
    if weights is not None and len(weights) != num_classes:
      raise UserError(
        f'objective: class_weights (or class_counts) has {len(weights)} numbers'
        f' and the model {num_classes} classes: give one for each class, in the'
        ' order of the ids'
      )

  def _binarize(self, targets_BY: jax.Array) -> jax.Array:
    """Returns 1 where a target is above the threshold; a NaN stays one."""
    background = self._label_smoothing / targets_BY.shape[-1]
    if background > self._target_threshold:
      raise UserError(
        f'objective: label_smoothing={self._label_smoothing} gives every class '
        f'{background:.3g}, more than target_threshold='
        f'{self._target_threshold}: all targets would be 1'
      )
    above_BY = (targets_BY > self._target_threshold).astype(targets_BY.dtype)
    return jnp.where(jnp.isnan(targets_BY), targets_BY, above_BY)


def _class_weights(weights: Any, counts: Any) -> np.ndarray | None:
  """Returns the weight of each class, float32 `[Y]`, or None for no weights."""
  if (weights == 'balanced') != (counts is not None):
    raise UserError(
      "objective: class_weights='balanced' and class_counts, the number of"
      ' training images of each class, go together; got'
      f' class_weights={weights!r} and class_counts={counts!r}'
    )
  if weights is None:
    return None
  if counts is not None:
    wrong = [
      i for i, n in enumerate(counts) if lookup.expected(int, n) or n < 1
    ]
    if wrong or not len(counts):
      raise UserError(
        'objective: class_counts needs a whole number >= 1 for each class;'
        f' wrong at the ids {wrong[:10]}. For a class without images give'
        ' class_weights as a list'
      )
    counts = np.asarray(counts, np.float64)
    return (counts.mean() / counts).astype(np.float32)
  fits = not isinstance(weights, str) and all(
    lookup.expected(float, w) is None and w >= 0 for w in weights
  )
  if not fits or not any(weights):
    raise UserError(
      f'objective: class_weights={weights!r}: expected a list of a number >= 0'
      " for each class, not all of them 0, or 'balanced'"
    )
  return np.asarray(weights, np.float32)


def _check_call(model: nn.Module) -> None:
  parameters = inspect.signature(type(model).__call__).parameters
  if 'train' not in parameters and not any(
    p.kind is p.VAR_KEYWORD for p in parameters.values()
  ):
    raise UserError(
      f'{type(model).__name__}.__call__({", ".join(parameters)}) does not take'
      f' train; {_CONTRACT}'
    )


def _logits(outputs: Mapping[str, jax.Array]) -> jax.Array:
  if not isinstance(outputs, Mapping):
    what = type(outputs).__name__
    if isinstance(outputs, jax.Array):
      what = f'an array {list(outputs.shape)}'
    raise UserError(f'the model returns {what}, not a dict; {_CONTRACT}')
  if 'logits' not in outputs:
    raise UserError(
      f'the model returns {sorted(outputs)} but no logits, which the '
      'supervised objective needs: set model.num_classes'
    )
  return outputs['logits']
