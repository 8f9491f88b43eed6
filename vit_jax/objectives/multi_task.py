"""Several heads on one backbone: classes, several labels, numbers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import losses
from vit_jax.errors import UserError
from vit_jax.models import _pooling, _tasks

# See tests/objectives/test_conformance.py.
TINY = dict(
  model=dict(name='vit', variant='mu/4'),
  options=dict(
    tasks=dict(
      breed=dict(label='label', num_classes=4),
      attributes=dict(label='attributes', num_classes=3, loss='sigmoid'),
      age=dict(label='age', loss='mse', weight=0.5),
    )
  ),
  fields=dict(attributes=((3,), 'bool'), age=((), 'float32')),
)


class Objective:
  """The weighted sum of the losses of tasks, a head each on the features.

  The parameters of the heads are in `head/<task>` beside those of the model,
  so that settings for `head/.*` mean them all.
  """

  def __init__(self, model: nn.Module, *, tasks: Mapping[str, Any]):
    """Takes the tasks.

    Args:
      model: without a head; `features` [B, D] are what the heads read. A ViT's
        options of its head (`head_hidden_dim` and so on) are those of all.
      tasks: keyword arguments of `_tasks.Task` by name.

    Raises:
      UserError: a model with a head, wrong tasks.
    """
    self.model = model
    self.tasks = _tasks.parse(tasks, 'objective.tasks')
    if getattr(model, 'num_classes', None):
      raise UserError(
        f'objective multi_task: config.model.num_classes={model.num_classes} '
        'makes a head that no task reads; set it to None: each task has a head'
      )
    names = [x for task in self.tasks.values() for x in task.fields]
    self.fields = tuple(dict.fromkeys(['image', *names]))
    self._heads = {
      name: _pooling.Head(num_classes=task.num_outputs, **_head_options(model))
      for name, task in self.tasks.items()
    }

  def init(
    self, rng: jax.Array, batch: Mapping[str, Any]
  ) -> dict[str, dict[str, Any]]:
    """Returns `params`; only the shape of `image` is read.

    Raises:
      UserError: a model without `features` [B, D], or with statistics.
    """
    image = jnp.zeros((1, *batch['image'].shape[1:]), jnp.float32)
    outputs, variables = self.model.init_with_output(rng, image, train=False)
    features = outputs.get('features')
    if features is None or features.ndim != 2 or set(variables) != {'params'}:
      shapes = {key: list(x.shape) for key, x in outputs.items()}
      raise UserError(
        'objective multi_task: expected a model of params alone that returns '
        f'features [B, D]; got {sorted(variables)} and {shapes}'
      )
    heads = {}
    for i, (name, head) in enumerate(self._heads.items()):
      key = jax.random.fold_in(rng, i)
      heads[name] = head.init(key, features, train=False)['params']
    return {'params': {**variables['params'], 'head': heads}}

  def loss(
    self,
    params: Mapping[str, Any],
    state: Any,
    batch: Mapping[str, jax.Array],
    rng: jax.Array,
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, Any]]]:
    """Returns the weighted sum of the tasks' losses, `(metrics, extra)`.

    The loss of a task is the mean over what is known in the whole batch: the
    rows of 'softmax', the single decisions of 'sigmoid', the numbers. It is 0
    in a batch without any.

    Metrics: `loss`; `<task>_loss`; of 'softmax' `<task>_top1`, of 'sigmoid'
    `<task>_accuracy`, of numbers `<task>_mae` in the units of the label.
    """
    del state
    model_rng, head_rng = jax.random.split(rng)
    outputs = self.model.apply(
      {'params': _without_heads(params)},
      batch['image'],
      train=True,
      rngs={'dropout': model_rng},
    )
    total, metrics = jnp.float32(0), {}
    for i, (name, task) in enumerate(self.tasks.items()):
      outputs_BY = self._heads[name].apply(
        {'params': params['head'][name]},
        outputs['features'],
        train=True,
        rngs={'dropout': jax.random.fold_in(head_rng, i)},
      )
      target_BY, known = task.target(batch)
      loss = _mean(task.losses_of(outputs_BY, target_BY), known)
      total += task.weight * loss
      metrics[f'{name}_loss'] = loss
      metrics |= _training_metric(name, task, outputs_BY, target_BY, known)
    return total, ({'loss': total, **metrics}, {})

  def predict(
    self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """Returns the model's outputs, and those of each task.

    These are `logits/<task>` [B, Y], or `value/<task>` [B] in the units of the
    label where the task is a number.
    """
    outputs = self.model.apply(
      {'params': _without_heads(params)}, batch['image'], train=False
    )
    for name, task in self.tasks.items():
      found = self._heads[name].apply(
        {'params': params['head'][name]}, outputs['features'], train=False
      )
      found = task.in_units(found)
      found = found[:, 0] if task.is_number else found
      outputs[_tasks.output_name(name, task)] = found
    return outputs


def part(
  named: Mapping[str, Any],
  section: Mapping[str, Any],
  options: Mapping[str, Any],
  name: str | None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
  """Returns the plain model of one task, out of a run.

  The output of a model of a number is the number in the units of the label.

  Args:
    named: the parameters of the run.
    section: `config.model` of the run.
    options: `config.objective` of the run.
    name: of the task.

  Returns:
    Parameters, model section, and the options of the objective that would train
    this task alone.

  Raises:
    UserError: no such task.
  """
  tasks = _tasks.parse(options.get('tasks'), 'objective.tasks')
  if name not in tasks:
    said = (
      'the run has several heads' if name is None else f'{name!r} is no task'
    )
    raise UserError(
      f'{said}: give a task, as in part={next(iter(tasks))!r}; tasks are '
      f"{', '.join(tasks)}. model={{'num_classes': None}} is the model without "
      'a head'
    )
  task, prefix = tasks[name], f'head/{name}/'
  found = {k: x for k, x in named.items() if not k.startswith('head/')}
  for key, x in named.items():
    if key.startswith(prefix):
      found['head/' + key.removeprefix(prefix)] = x
  if task.is_number:
    found['head/kernel'] = found['head/kernel'] * np.float32(task.std)
    found['head/bias'] = task.in_units(found['head/bias']).astype(np.float32)
  alone = {} if task.is_number else {'loss': task.loss}
  section = {**section, 'num_classes': task.num_outputs}
  return found, section, alone | {'label': task.label}


def _head_options(model: nn.Module) -> dict[str, Any]:
  """Returns the options of the heads: the model's, or the defaults of ViT."""
  options = dict(
    head_hidden_dim=None,
    head_dropout_rate=0.0,
    activation='gelu_tanh',
    weight_init='google',
    head_bias_init=0.0,
    head_zero_init=None,
  )
  return {key: getattr(model, key, x) for key, x in options.items()}


def _without_heads(params: Mapping[str, Any]) -> dict[str, Any]:
  return {key: x for key, x in params.items() if key != 'head'}


def _mean(values: jax.Array, known: jax.Array) -> jax.Array:
  """Returns the mean of the values that are known; 0 if there is none."""
  count = jnp.maximum(jnp.sum(known), 1)
  return jnp.sum(jnp.where(known, values, 0)) / count


def _training_metric(
  name: str, task: _tasks.Task, outputs_BY, target_BY, known
) -> dict[str, jax.Array]:
  if task.loss == 'softmax':
    hit_B, _ = losses.topk_correct(outputs_BY, target_BY)
    return {f'{name}_top1': _mean(hit_B[:, None], known)}
  if task.loss == 'sigmoid':
    right_BY = (outputs_BY > 0) == (target_BY > 0.5)
    return {f'{name}_accuracy': _mean(right_BY, known)}
  error_BY = jnp.abs(task.in_units(outputs_BY) - target_BY)
  return {f'{name}_mae': _mean(error_BY, known)}
