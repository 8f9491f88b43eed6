"""The tasks of a model with several heads: labels, losses, outputs.

Shapes: B batch, Y classes or labels of a task.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import lookup, losses
from vit_jax.errors import UserError

LOSSES = ('softmax', 'sigmoid', 'mse', 'mae')


@dataclasses.dataclass(frozen=True)
class Task:
  """A head, and what it learns.

  Attributes:
    label: the field of the batch, or several of one number each, in order.
    loss: 'softmax', one class of several; 'sigmoid', yes or no for each of
      several labels; 'mse' or 'mae', the squared or absolute error of a number.
    num_classes: Y; not with 'mse' and 'mae', which have one number.
    weight: of the loss in the sum over the tasks.
    label_smoothing: of 'softmax', see `losses.smooth`.
    mean, std: of the numbers to predict: the error is that of
      (number - mean) / std. Predictions are in the units of the label.

  Missing labels are -1 of 'softmax', negative or NaN of 'sigmoid', NaN of a
  number.
  """

  label: str | Sequence[str]
  loss: str = 'softmax'
  num_classes: int | None = None
  weight: float = 1.0
  label_smoothing: float = 0.0
  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    if not isinstance(self.label, str):  # Hashable, for jax.jit.
      object.__setattr__(self, 'label', tuple(self.label))

  @property
  def fields(self) -> tuple[str, ...]:
    """The fields of the batch that have the label."""
    return (self.label,) if isinstance(self.label, str) else tuple(self.label)

  @property
  def is_number(self) -> bool:
    """Whether a number is predicted, not classes."""
    return self.loss in ('mse', 'mae')

  @property
  def num_outputs(self) -> int:
    """Width of the head."""
    return 1 if self.is_number else self.num_classes

  def problems(self) -> list[str]:
    """Returns a text for each value that is wrong."""
    found = []
    if not self.fields or not all(isinstance(x, str) for x in self.fields):
      found.append(f'label={self.label!r}: expected a field, or a list of them')
    if self.loss not in LOSSES:
      found.append(f'loss={self.loss!r}: expected one of {list(LOSSES)}')
      return found
    if self.is_number and self.num_classes is not None:
      found.append(f'num_classes={self.num_classes} with loss={self.loss!r}')
    elif not self.is_number and (self.num_classes or 0) < 1:
      found.append(f'num_classes={self.num_classes}: expected 1 or more')
    num = 1 if self.loss != 'sigmoid' else self.num_classes
    if len(self.fields) not in (1, num):
      found.append(f'{len(self.fields)} fields for {num} labels')
    if self.weight < 0:
      found.append(f'weight={self.weight}: expected 0 or more')
    if not 0 <= self.label_smoothing < 1:
      found.append(f'label_smoothing={self.label_smoothing}: [0, 1)')
    if self.label_smoothing and self.loss != 'softmax':
      found.append(f'label_smoothing has no effect with loss={self.loss!r}')
    if not self.is_number and (self.mean, self.std) != (0, 1):
      found.append(f'mean and std have no effect with loss={self.loss!r}')
    if self.std <= 0:
      found.append(f'std={self.std}: expected more than 0')
    return found

  def target(
    self, batch: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Returns targets float32 `[B, Y]` and where they are known, bool.

    Of 'softmax' bool is `[B, 1]`: rows are known or not. A class that the model
    does not have is a row of NaN (`losses.one_hot`). Unknown targets are 0.

    Raises:
      UserError: labels of a shape or kind that the task does not take.
    """
    if isinstance(self.label, str):
      label = batch[self.label]
    else:
      label = jnp.stack([batch[x] for x in self.fields], axis=-1)
    if self.loss == 'softmax':
      if label.ndim == 2 and label.shape[-1] == 1:
        label = label[:, 0]
      known = label >= 0 if label.ndim == 2 else (label != -1)[:, None]
      known = jnp.all(known, axis=-1, keepdims=True)
      if label.ndim == 1:
        label = jnp.where(known[:, 0], label, 0)
      target = losses.targets(label, self.num_classes)
      return jnp.where(known, target, 0), known
    if label.ndim == 1:
      label = label[:, None]
    if label.ndim != 2 or label.shape[-1] != self.num_outputs:
      raise UserError(
        f'{" and ".join(self.fields)}: got labels {label.dtype}'
        f'{list(label.shape)}; loss={self.loss!r} expects [B, '
        f'{self.num_outputs}]'
      )
    label = label.astype(jnp.float32)
    known = ~jnp.isnan(label)
    if self.loss == 'sigmoid':
      known &= label >= 0
    return jnp.where(known, label, 0), known

  def losses_of(self, outputs_BY: jax.Array, target_BY: jax.Array) -> jax.Array:
    """Returns the loss of each output `[B, Y]`; of 'softmax' of rows `[B, 1]`.

    Args:
      outputs_BY: of the head.
      target_BY: from `target`.
    """
    if self.loss == 'softmax':
      target_BY = losses.smooth(target_BY, self.label_smoothing)
      return losses.softmax_cross_entropy(outputs_BY, target_BY)[:, None]
    if self.loss == 'sigmoid':
      positive = target_BY * jax.nn.log_sigmoid(outputs_BY)
      return -positive - (1 - target_BY) * jax.nn.log_sigmoid(-outputs_BY)
    error_BY = outputs_BY - (target_BY - self.mean) / self.std
    return error_BY**2 if self.loss == 'mse' else jnp.abs(error_BY)

  def in_units(self, outputs_BY: jax.Array) -> jax.Array:
    """Returns what is predicted: logits, or numbers in the label's units."""
    if not self.is_number:
      return outputs_BY
    return outputs_BY * self.std + self.mean


def parse(
  tasks: Mapping[str, Mapping[str, Any]], where: str
) -> dict[str, Task]:
  """Returns the tasks of a section by name.

  Raises:
    UserError: names or options that are wrong, all in one message.
  """
  if not isinstance(tasks, lookup.SECTION) or not tasks:
    raise UserError(
      f'{where} is a dict of tasks by name, as in tasks=dict(breed=dict('
      f"label='label', num_classes=37)); got {tasks!r}"
    )
  found, problems = {}, []
  for name, section in tasks.items():
    if not isinstance(name, str) or not re.fullmatch(
      '[A-Za-z][A-Za-z0-9_]*', name
    ):
      problems.append(f'{name!r} cannot be a name; use letters, digits and _')
      continue
    task = found[name] = lookup.call(Task, section, f'{where}.{name}')
    problems += [f'{name}: {text}' for text in task.problems()]
  if problems:
    raise UserError(f'{where}: ' + '; '.join(problems))
  return found


def output_name(name: str, task: Task) -> str:
  """Returns the key of `predict`: 'logits/<task>', or 'value/<task>'."""
  return f'{"value" if task.is_number else "logits"}/{name}'
