"""Tiny models that take twenty steps with the optimizers of recipes."""

import importlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import lookup, trees
from vit_jax.optim import chain
from vit_jax.training import durations, train_state, train_step

NUM_STEPS = 20
_STEPS_PER_EPOCH = 2
_BATCH, _SIDE, _CLASSES = 8, 16, 8
_SIZE = dict(variant='mu/8', depth=2, num_classes=_CLASSES, dtype='float32')
# Random, or of another precision, so that no other code has the same numbers;
# and what compiles slowly.
_LEFT_OUT = ('variant', 'residual_dtype', 'stochastic_depth_rate', 'remat')
# What makes the features.
_LAST = ('encoder/norm/', 'pooling/attention/out/', 'pooling/mlp/down/')


class Recipe:
  """The optimizer and the objective of a recipe, for a tiny model.

  Attributes:
    model: the section of the tiny model.
    optimizer: of the recipe, with its durations in steps.
    objective: of the recipe.
    params: initial values in float32, by name. No bias is 0.
  """

  def __init__(
    self,
    file: str,
    arg: str = '',
    *,
    optimizer: Mapping[str, Any] | None = None,
    gain: float = 1.0,
    **model,
  ):
    """Reads a recipe.

    Args:
      file: its name.
      arg: its options.
      optimizer: what differs from the recipe, such as durations in steps for a
        run of twenty; those in epochs remain, an epoch has two steps.
      gain: factor of what the head reads, and so of its gradient.
      **model: fields of the model that differ.
    """
    recipe = importlib.import_module(f'vit_jax.configs.{file}')
    config = recipe.get_config(arg).to_dict()
    self.model = {
      key: value
      for key, value in config['model'].items()
      if key not in _LEFT_OUT
    }
    self.model |= _SIZE | model
    self.optimizer = durations.in_steps(
      config['optimizer'] | dict(optimizer or {}), _STEPS_PER_EPOCH, 'optimizer'
    )
    module = lookup.build('models', self.model, 'Model')
    self._roles = module.ROLES
    self.objective = lookup.build(
      'objectives', config['objective'], 'Objective', module
    )
    image = jnp.zeros((_BATCH, _SIDE, _SIDE, 3))
    shapes = jax.eval_shape(
      lambda: self.objective.init(jax.random.key(0), dict(image=image))
    )
    rng = np.random.default_rng(0)
    self.params = {
      name: _initial(name, rng.normal(size=x.shape), gain)
      for name, x in trees.flatten(shapes['params']).items()
    }
    self.params['head/bias'] += self.model.get('head_bias_init', 0.0)

  def make(self, params: Any) -> tuple:
    """Returns the optax chain and the rate, as a run makes them."""
    return chain.make(
      params, total_steps=NUM_STEPS, roles=self._roles, **self.optimizer
    )

  def rates(self) -> list[float]:
    """Returns the learning rates of the twenty updates."""
    rate = jax.jit(self.make(trees.unflatten(self.params))[1])
    return [float(rate(k)) for k in range(1, NUM_STEPS + 1)]

  def train(self, batches: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Returns `params` after twenty training steps, and metrics of each."""
    params = jax.tree.map(jnp.asarray, trees.unflatten(self.params))
    tx, rate = self.make(params)
    step = jax.jit(
      train_step.make_train_step(
        self.objective,
        tx,
        rate,
        device_ops=lambda batch, rng, train: batch,
        seed=0,
      )
    )
    state = train_state.TrainState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params)
    )
    rows = []
    for batch in batches:
      state, metrics = step(state, batch)
      rows.append({key: float(x) for key, x in metrics.items()})
    metrics = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    return metrics | dict(params=_to_numpy(state.params))

  def replay(self, gradients: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns parameters after updates in float64 with given gradients."""
    with jax.enable_x64(True):
      params = trees.unflatten(
        {name: jnp.float64(x) for name, x in self.params.items()}
      )
      tx, _ = self.make(params)

      @jax.jit
      def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

      state = tx.init(params)
      for grads in gradients:
        params, state = update(params, state, trees.unflatten(grads))
      return _to_numpy(params)

  def assert_same_changes(
    self,
    actual: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    *,
    rtol: float,
    rounded: bool = False,
  ) -> None:
    """Compares what twenty steps made of the initial values.

    Args:
      actual: parameters by name.
      expected: likewise.
      rtol: of differences to the largest change in an array.
      rounded: whether the parameters are float32, which after each update may
        be half a unit of their last place off.

    Biases of keys are not compared. The softmax does not depend on them: their
    gradients are nothing but rounding, which Adam and Adafactor divide by its
    own size.
    """
    assert actual.keys() == expected.keys() == self.params.keys()
    for name, start in self.params.items():
      if name.endswith('attention/key/bias'):
        continue
      change = np.abs(expected[name] - start).max()
      assert change > 0, name
      roundings = NUM_STEPS * 2.0**-24 * np.abs(expected[name])
      tolerance = rtol * change + (roundings if rounded else 0.0)
      difference = np.abs(actual[name] - expected[name])
      assert np.all(difference <= tolerance), (
        f'{name}: {difference.max():.3g}, {difference.max() / change:.3g} of '
        'the largest change'
      )


def batches(
  labels: str, num_classes: int = _CLASSES
) -> list[dict[str, np.ndarray]]:
  """Returns twenty batches, whose gradients have norms of different sizes.

  In every third one the images are much alike and have one label.

  Args:
    labels: 'integer'; 'mixed': of two classes, as by mixup; or 'smooth': mixed
      and smoothed by 0.1.
    num_classes: of the labels.
  """
  rng = np.random.default_rng(1)
  found = []
  for k in range(NUM_STEPS):
    image = rng.normal(size=(_BATCH, _SIDE, _SIDE, 3))
    label = rng.permutation(num_classes)[:_BATCH]
    if k % 3 == 0:
      image = image[:1] + 0.1 * image
      label[:] = label[0]
    if labels == 'integer':
      label = np.int32(label)
    else:
      share, one_hot = rng.beta(0.8, 0.8), np.eye(num_classes)[label]
      label = share * one_hot + (1 - share) * one_hot[::-1]
      if labels == 'smooth':
        label = 0.9 * label + 0.1 / num_classes
      label = np.float32(label)
    found.append(dict(image=np.float32(image), label=label))
  return found


def _initial(name: str, noise: np.ndarray, gain: float) -> np.ndarray:
  """Returns values such that no bias is 0 and no factor 1."""
  x = (0.1 if name.endswith('kernel') else 0.02) * noise
  if name.endswith(('scale_attention', 'scale_mlp')):
    x = 1e-4 * (1 + x)  # LayerScale, as DeiT III begins.
  elif name.endswith('scale'):
    x = 1 + x
  return np.float32(gain * x if name.startswith(_LAST) else x)


def _to_numpy(params: Any) -> dict[str, np.ndarray]:
  return {name: np.asarray(x) for name, x in trees.flatten(params).items()}
