"""Tiny versions of recipes, trained on scikit-learn's digits for some seconds.

A recipe keeps its own model options, loss, augmentation and optimizer. The
model has two narrow blocks; sizes in the ops shrink to 16 pixels, and with them
padding, crops and the groups of mixing; all durations shrink by one factor.
Classes are ten, which the initial bias of a head follows.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import losses, trees
from vit_jax.commands import _recipe
from vit_jax.data import pipeline
from vit_jax.training import train

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
NUM_CLASSES = 10
BATCH_SIZE = 64
_PIXELS = 16
_MODEL = dict(width=48, depth=2, mlp_dim=192, num_heads=3, patch_size=8)
_SIZE = re.compile(r'\b((?:resize\w*|\w*crop)\()\d+')
# A twentieth of a digit does not say which it is.
_CROP = re.compile(r'(random_resized_crop\(\d+)(?!.*scale)')
_GROUP = re.compile(r'\bgroup_size=\d+')
# Of the training data at full length, for durations in epochs.
_NUM_EXAMPLES = dict(
  imagenet2012=1_281_167, imagenet21k=13_153_500, cifar10=50_000
)


@dataclasses.dataclass(frozen=True)
class Case:
  """A recipe as it is trained here.

  Attributes:
    recipe: name and options, as after `--config=`.
    steps: updates.
    learning_rate: peak rate, where the recipe's is for many more updates.
    start: the case whose weights fine-tuning starts from.
  """

  recipe: str
  steps: int = 300
  learning_rate: float | None = None
  start: 'Case | None' = None


@dataclasses.dataclass(frozen=True)
class Measured:
  """Of some weights, on training images that are not mixed or erased.

  Attributes:
    loss: the recipe's loss, without smoothing.
    top1: fraction of the images.
    rms: of each parameter.
    grad: largest absolute value of the gradient of each parameter.
  """

  loss: float
  top1: float
  rms: dict[str, float]
  grad: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Result:
  """What a training did.

  Attributes:
    start: before the first update.
    end: after the last.
    average: of the averaged weights, where the recipe has them.
    unchanged: names of the parameters that no update changed.
    chance: see `chance`.
    params: after the last update.
  """

  start: Measured
  end: Measured
  average: Measured | None
  unchanged: list[str]
  chance: float
  params: Any


def tiny(case: Case, **model: Any) -> dict[str, Any]:
  """Returns the config of a case; `model` are changes of its model section."""
  config = _recipe.load(f'{CONFIGS}/{case.recipe}').to_dict()
  name = config['input']['data'].get('dataset')
  num_examples = _NUM_EXAMPLES.get(name, 1437)
  full_batch = config['input']['batch_size']
  full_steps = config.get('total_steps')
  if full_steps is None:
    full_steps = config['total_epochs'] * num_examples / full_batch
  optimizer = {}
  for key, value in config['optimizer'].items():
    duration, _, unit = key.rpartition('_')
    if unit == 'epochs':
      key, value = f'{duration}_steps', value * num_examples / full_batch
    if unit in ('epochs', 'steps') and value:
      value = max(1, round(value * case.steps / full_steps))
    optimizer[key] = value
  if case.learning_rate:
    factor = case.learning_rate / optimizer['learning_rate']
    optimizer['learning_rate'] *= factor
    if 'end_learning_rate' in optimizer:
      optimizer['end_learning_rate'] *= factor
  classes = dict(num_classes=NUM_CLASSES)
  if 'head_bias_init' in config['model']:
    classes['head_bias_init'] = -math.log(NUM_CLASSES)
  ops = _SIZE.sub(rf'\g<1>{_PIXELS}', config['input']['ops'])
  ops = _CROP.sub(r'\1, scale=(0.6, 1.0)', ops)
  ops = ops.replace('padding=4', 'padding=1')
  device_ops = _SIZE.sub(
    rf'\g<1>{_PIXELS}', config['input'].get('device_ops', '')
  )
  return dict(
    model=config['model'] | _MODEL | classes | model,
    objective=config['objective'],
    input=config['input']
    | dict(
      data=dict(name='digits', split='train'),
      ops=f'decode(3)|resize({_PIXELS})|{ops}',
      device_ops=_GROUP.sub('group_size=16', device_ops),
      batch_size=BATCH_SIZE,
      num_threads=0,
    ),
    optimizer=optimizer,
    total_steps=case.steps,
    # A new head is not the one that the weights started with.
    seed=0 if case.start is None else 1,
    ema=config.get('ema'),
    mesh=dict(devices=jax.devices()[:1]),
  )


def learn(case: Case, **model: Any) -> Result:
  """Trains a case."""
  config = tiny(case, **model)
  run = train.build(config)
  sharding = next(iter(run.batch_spec.values())).sharding
  # An epoch, augmented once; what is drawn on the device is drawn each time.
  count = int(run.input.steps_per_epoch)
  batches = [
    pipeline.to_global(batch, sharding)
    for batch in itertools.islice(run.input.batches(), count)
  ]
  state = run.init()
  if case.start is not None:
    skip = _recipe.load(f'{CONFIGS}/{case.recipe}').init_from[0].get('skip', '')
    source = trees.flatten(trained(case.start).params)
    params = trees.map_named(
      lambda name, x: x if re.fullmatch(skip, name) else source[name],
      state.params,
    )
    state = state.replace(params=jax.tree.map(jnp.array, params))
    if state.ema_params is not None:
      state = state.replace(ema_params=jax.tree.map(jnp.array, params))
  before = jax.tree.map(np.array, state.params)
  measured = jax.tree.map(lambda *x: jnp.concatenate(x), *batches[:4])
  measure = _measure(run, config, measured)
  start = measure(state.params, state)
  for batch in itertools.islice(itertools.cycle(batches), case.steps):
    state, _ = run.step(state, batch)
  same = jax.tree.map(
    lambda a, b: np.array_equal(a, b), before, jax.device_get(state.params)
  )
  average = state.ema_params
  return Result(
    start=start,
    end=measure(state.params, state),
    average=average and measure(average, state),
    unchanged=[name for name, equal in trees.flatten(same).items() if equal],
    chance=chance(config['objective']),
    params=jax.device_get(state.params),
  )


@functools.cache
def trained(case: Case) -> Result:
  """Returns `learn(case)`, of which fine-tuning needs the weights again."""
  return learn(case)


def chance(objective: dict[str, Any]) -> float:
  """Returns the loss of predicting the frequencies of the classes."""
  p = 1 / NUM_CLASSES
  if objective.get('loss', 'softmax') == 'softmax':
    return float(np.log(NUM_CLASSES))
  binary = -(p * np.log(p) + (1 - p) * np.log(1 - p))
  return float(binary * _num_summed(objective))


def _num_summed(objective: dict[str, Any]) -> int:
  return 1 if objective.get('class_reduction') == 'mean' else NUM_CLASSES


def _measure(run, config, batch):
  kind = config['objective'].get('loss', 'softmax')
  cross_entropy = losses.cross_entropy(kind)
  scale = _num_summed(config['objective']) / NUM_CLASSES
  scale = 1 if kind == 'softmax' else scale

  @jax.jit
  def measure(params, state):
    rng = jax.random.key(0)
    clean = run.device_ops(batch, rng, train=False)
    grads = jax.grad(
      lambda params: run.objective.loss(params, state, clean, rng)[0]
    )(params)
    logits_BY = run.objective.predict(params, clean)['logits']
    targets_BY = losses.one_hot(batch['label'], NUM_CLASSES)
    right = jnp.argmax(logits_BY, -1) == batch['label']
    loss = scale * jnp.mean(cross_entropy(logits_BY, targets_BY))
    rms = jax.tree.map(lambda x: jnp.sqrt(jnp.mean(x**2)), params)
    grad = jax.tree.map(lambda x: jnp.max(jnp.abs(x)), grads)
    return loss, jnp.mean(right), rms, grad

  def floats(tree):
    return {name: float(x) for name, x in trees.flatten(tree).items()}

  def measured(params, state):
    loss, top1, rms, grad = jax.device_get(measure(params, state))
    return Measured(float(loss), float(top1), floats(rms), floats(grad))

  return measured
