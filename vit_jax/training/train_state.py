"""The one state of a training run, created already sharded."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.errors import UserError
from vit_jax.optim import schedules
from vit_jax.parallel import rules as rules_lib
from vit_jax.training import loss_scale as loss_scale_lib

# Step t draws from fold_in(key(seed), t); the parameters from the number of a
# step that no run reaches.
INIT_STEP = 2**32 - 1
# What an objective's `init` may return and `config.init_from` may fill.
BRANCHES = ('params', 'extra', 'frozen')


@flax.struct.dataclass
class TrainState:
  """Everything that a training step reads and writes.

  Attributes:
    step: int32 [], the number of steps taken; also the position in the data.
    params: the trained arrays, float32.
    opt_state: of the optax chain.
    ema_params: Polyak average of `params`, or None.
    extra: what the objective's loss returns for the next step: a centre, a
      queue, the batch statistics of a model.
    frozen: weights that are used but not trained: a teacher, a locked tower.
      No step changes, differentiates or averages them.
    skipped_updates: int32 [], steps whose update was not applied because a
      loss or gradient was not finite.
    loss_scale: of a dynamic loss scale, or None.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  ema_params: Any = None
  extra: dict[str, Any] = flax.struct.field(default_factory=dict)
  frozen: dict[str, Any] = flax.struct.field(default_factory=dict)
  skipped_updates: jax.Array | np.int32 = np.int32(0)
  loss_scale: loss_scale_lib.State | None = None


def init_branches(
  objective: Any, rng: jax.Array, batch: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns `params`, `extra` and `frozen` of an objective, {} by default.

  Args:
    objective: has `init(rng, batch)`, which returns a mapping with `params`
      and, where it needs them, `extra` and `frozen`.
    rng: key of the parameters.
    batch: arrays or their shapes, after the device ops. The objective gets
      zeros: the compiler drops the forward pass that only makes parameters.

  Raises:
    UserError: something else than such a mapping.
  """
  zeros = {k: jnp.zeros(x.shape, x.dtype) for k, x in batch.items()}
  found = objective.init(rng, zeros)
  where = f'{type(objective).__module__}: init()'
  if not isinstance(found, Mapping):
    raise UserError(
      f'{where} returned a {type(found).__name__}; expected a dict with params '
      "and, if need be, extra and frozen: return {'params': params}"
    )
  unknown = sorted(map(str, set(found) - set(BRANCHES)))
  if unknown or 'params' not in found:
    what = f'unknown branches {unknown}' if unknown else 'no params'
    raise UserError(
      f'{where} returned {what}; expected params and, if need be, extra and '
      f'frozen, got {sorted(map(str, found))}'
    )
  return {key: found.get(key, {}) for key in BRANCHES}


def weights(
  objective: Any, state: TrainState, *, ema: bool = False
) -> dict[str, Any]:
  """Returns what `objective.predict` computes with, by branch.

  That is `params`, or in its place the average, and the branches `extra` and
  `frozen` if `predict` has arguments of these names. They are not averaged: the
  batch statistics of a model are those of `params`, averages over batches by
  themselves.
  """
  taken = inspect.signature(objective.predict).parameters
  others = {k: getattr(state, k) for k in ('extra', 'frozen') if k in taken}
  return {'params': state.ema_params if ema else state.params, **others}


def create(
  objective: Any,
  optimizer: optax.GradientTransformation,
  batch_spec: Mapping[str, jax.ShapeDtypeStruct],
  mesh: jax.sharding.Mesh,
  *,
  seed: int,
  ema: bool,
  rules: Iterable[tuple[str, rules_lib.Rule]] | None = None,
  min_size: int = rules_lib.MIN_SIZE,
  loss_scale: Any = None,
) -> tuple[TrainState, Callable[[], TrainState]]:
  """Returns the abstract state and the function that makes a fresh one.

  The parameters come from `fold_in(key(seed), INIT_STEP)` and are the same
  bits on every mesh. No device ever holds more than its part of the state.

  Args:
    batch_spec: shapes and dtypes of a batch as `objective.init` sees it.
    ema: whether to keep an average of the parameters; it starts as a copy.
    loss_scale: from `loss_scale.make`; only a dynamic one has a state.

  Returns:
    A TrainState of `jax.ShapeDtypeStruct` with shardings, and a jitted function
    without arguments that returns the state of step 0.
  """

  dynamic = isinstance(loss_scale, loss_scale_lib.Dynamic)

  def init() -> TrainState:
    rng = jax.random.fold_in(jax.random.key(seed), np.uint32(INIT_STEP))
    branches = init_branches(objective, rng, batch_spec)
    params = branches['params']
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      opt_state=optimizer.init(params),
      # A copy: the state is donated, and no buffer may be donated twice.
      ema_params=jax.tree.map(jnp.copy, params) if ema else None,
      skipped_updates=jnp.zeros((), jnp.int32),
      loss_scale=loss_scale.init() if dynamic else None,
      **branches,
    )

  abstract = sharded(jax.eval_shape(init), mesh, rules, min_size=min_size)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  return abstract, jax.jit(init, out_shardings=shardings)


def sharded(tree: Any, mesh: jax.sharding.Mesh, *rules, **options) -> Any:
  """Returns shapes with the shardings of `rules.state_shardings`."""
  shardings = rules_lib.state_shardings(tree, mesh, *rules, **options)
  return jax.tree.map(lambda x, s: x.update(sharding=s), tree, shardings)


def ema_decay(
  *, decay: float | Mapping[str, Any], total_steps: int, warmup: bool = False
) -> Callable[[jax.Array], jax.Array]:
  """Returns the decay of the average as a function of the update, from 1.

  With `warmup` it is `min(decay, (1 + k) / (10 + k))` at update k, so that a
  short run does not average in its random start (the rule of
  tf.train.ExponentialMovingAverage).

  Args:
    decay: from 0 (a copy of `params`) to 1 (no change), or a schedule of such
      numbers, see `schedules.between`: DINO's teacher has
      `dict(name='cosine', start=0.996, end=1.0)`.
    total_steps: of the run.
    warmup: whether to average over fewer steps at the start.

  Raises:
    UserError: a decay outside its range.
  """
  value = schedules.between(
    decay, total_steps=total_steps, where='ema.decay', most=1
  )

  def at(step: jax.Array | int) -> jax.Array:
    d = value(step)
    if warmup:
      step = jnp.asarray(step, jnp.float32)
      d = jnp.minimum(d, (1 + step) / (10 + step))
    return d

  return at


def ema_update(ema_params: Any, params: Any, decay: jax.Array) -> Any:
  """Returns `decay * ema_params + (1 - decay) * params`, leaf by leaf."""
  return jax.tree.map(
    lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype),
    ema_params,
    params,
  )
