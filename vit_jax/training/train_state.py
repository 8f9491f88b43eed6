"""The one state of a training run, created already sharded."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax.errors import UserError
from vit_jax.parallel import sharding

# Step t draws from fold_in(key(seed), t); the parameters from the number of a
# step that no run reaches.
INIT_STEP = 2**32 - 1


@flax.struct.dataclass
class TrainState:
  """Everything that a training step reads and writes.

  Attributes:
    step: int32 [], the number of steps taken; also the position in the data.
    params: the trained arrays, float32.
    opt_state: of the optax chain.
    ema_params: Polyak average of `params`, or None.
    extra: what the objective keeps between steps: a centre, a queue.
    frozen: weights that are used but not trained: a teacher, a locked tower.
    skipped_updates: int32 [], steps whose update was not applied because a
      loss or gradient was not finite.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  ema_params: Any = None
  extra: dict[str, Any] = flax.struct.field(default_factory=dict)
  frozen: dict[str, Any] = flax.struct.field(default_factory=dict)
  skipped_updates: jax.Array | np.int32 = np.int32(0)


def abstract_init(
  objective: Any, batch_spec: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[Any, Any]:
  """Returns the shapes of `(params, extra)`; computes nothing.

  For building an optimizer, which wants to see the parameters first.
  """
  return jax.eval_shape(lambda: _init(objective, batch_spec, seed=0))


def create(
  objective: Any,
  optimizer: optax.GradientTransformation,
  batch_spec: Mapping[str, jax.ShapeDtypeStruct],
  mesh: jax.sharding.Mesh,
  *,
  seed: int,
  ema: bool,
  rules: Iterable[tuple[str, sharding.Rule]] | None = None,
  min_size: int = sharding.MIN_SIZE,
) -> tuple[TrainState, Callable[[], TrainState]]:
  """Returns the abstract state and the function that makes a fresh one.

  The parameters come from `fold_in(key(seed), INIT_STEP)` and are the same
  bits on every mesh. No device ever holds more than its part of the state.

  Args:
    objective: has `init(rng, batch) -> (params, extra)`.
    optimizer: the optax chain.
    batch_spec: shapes and dtypes of a batch as `objective.init` sees it.
    mesh: from `sharding.make_mesh`.
    seed: of the run.
    ema: whether to keep an average of the parameters; it starts as a copy.
    rules: see `sharding.state_shardings`.
    min_size: see `sharding.state_shardings`.

  Returns:
    A TrainState of `jax.ShapeDtypeStruct` with shardings, and a jitted function
    without arguments that returns the state of step 0.
  """

  def init() -> TrainState:
    params, extra = _init(objective, batch_spec, seed)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
      # A copy: the state is donated, and no buffer may be donated twice.
      ema_params=jax.tree.map(jnp.copy, params) if ema else None,
      extra=extra,
      skipped_updates=jnp.zeros((), jnp.int32),
    )

  shapes = jax.eval_shape(init)
  shardings = sharding.state_shardings(shapes, mesh, rules, min_size=min_size)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )
  return abstract, jax.jit(init, out_shardings=shardings)


def ema_update(
  ema_params: Any,
  params: Any,
  step: jax.Array | int,
  *,
  decay: float,
  warmup: bool = False,
) -> Any:
  """Returns `d * ema_params + (1 - d) * params`, leaf by leaf.

  `d` is `decay`; with `warmup` it is `min(decay, (1 + step) / (10 + step))`, so
  that a short run does not average in its random start (the rule of
  tf.train.ExponentialMovingAverage).

  Args:
    ema_params: the average so far.
    params: after the update.
    step: number of that update, from 1.
    decay: from 0 (a copy of `params`) to below 1.
    warmup: whether to average over fewer steps at the start.

  Raises:
    UserError: a decay outside its range.
  """
  if not 0 <= decay < 1:
    raise UserError(f'ema: decay={decay}: expected 0 <= decay < 1')
  d = jnp.float32(decay)
  if warmup:
    step = jnp.asarray(step, jnp.float32)
    d = jnp.minimum(d, (1 + step) / (10 + step))
  return jax.tree.map(
    lambda e, p: (d * e + (1 - d) * p).astype(e.dtype), ema_params, params
  )


def _init(objective, batch_spec, seed):
  rng = jax.random.fold_in(jax.random.key(seed), np.uint32(INIT_STEP))
  # Zeros: only shapes matter, and the compiler drops the forward pass.
  batch = {k: jnp.zeros(x.shape, x.dtype) for k, x in batch_spec.items()}
  return objective.init(rng, batch)
