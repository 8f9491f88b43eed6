"""The training step: the same twenty lines for every objective."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.training import (
  gradients,
  loss_scale as loss_scale_lib,
  train_state,
)


def make_train_step(
  objective: Any,
  tx: optax.GradientTransformation,
  schedule: Callable[[jax.Array], jax.Array],
  *,
  device_ops: Callable[..., dict[str, jax.Array]],
  seed: int,
  trained: Mapping[str, bool] | None = None,
  ema_decay: Callable[[jax.Array], jax.Array] | None = None,
  on_nonfinite: str = 'stop',
  micro_batches: int = 1,
  mesh: jax.sharding.Mesh | None = None,
  loss_scale: float | loss_scale_lib.Dynamic | None = None,
) -> Callable[..., tuple[train_state.TrainState, dict[str, jax.Array]]]:
  """Returns the pure function `(state, batch) -> (new state, metrics)`.

  Everything random comes from `fold_in(key(seed), state.step)`, so a step is a
  function of the state and the batch alone.

  Args:
    tx: the optimizer; its update number k uses `schedule(k)`.
    schedule: learning rate of update number k, from 1.
    device_ops: `(batch, rng, *, train) -> batch` on uint8 images.
    trained: which parameters learn, see `chain.trained_names`; None is all.
      The backward pass of the others is not computed.
    ema_decay: from `train_state.ema_decay`; None keeps no average.
    on_nonfinite: `'stop'` applies the update (whoever reads the metrics
      stops the run); `'skip'` leaves parameters, optimizer and averages as
      they were and counts it in `state.skipped_updates`.
    micro_batches: into how many parts the batch is cut after the device ops,
      see `gradients`.
    mesh: over which the batch is sharded, for more than one micro-batch.
    loss_scale: from `loss_scale.make`. Loss and gradients are divided by it
      once, after the micro-batches were added up and before anything reads
      them. A dynamic one skips updates like `on_nonfinite='skip'`, always.

  Metrics (float32 scalars): what the objective reports, `loss`, `grad_norm`
  (global norm over the parameters that learn, before clipping) and
  `learning_rate`, the rate of this very update; `skipped_updates` where updates
  may be skipped, and of a dynamic loss scale `loss_scale`, that of this step.
  """
  if on_nonfinite not in ('stop', 'skip'):
    raise UserError(f"on_nonfinite={on_nonfinite!r}: expected 'stop' or 'skip'")
  dynamic = isinstance(loss_scale, loss_scale_lib.Dynamic)

  def scale_of(state):
    return state.loss_scale.scale if dynamic else jnp.float32(loss_scale)

  def stop_gradient_if_frozen(name, leaf):
    learns = trained is None or trained[name]
    return leaf if learns else jax.lax.stop_gradient(leaf)

  def loss_fn(params, state, batch, rng):
    params = trees.map_named(stop_gradient_if_frozen, params)
    loss, others = objective.loss(params, state, batch, rng)
    if loss_scale is not None:
      loss = loss * scale_of(state)
    return loss, others

  value_and_grad = gradients.value_and_grad(
    loss_fn, micro_batches=micro_batches, mesh=mesh
  )

  def train_step(state, batch):
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    ops_rng, loss_rng = jax.random.split(rng)
    batch = device_ops(batch, ops_rng, train=True)
    (loss, (metrics, extra)), grads = value_and_grad(
      state.params, state, batch, loss_rng
    )
    if loss_scale is not None:
      loss, grads = jax.tree.map(
        lambda x: (x / scale_of(state)).astype(x.dtype), (loss, grads)
      )
    with jax.named_scope('optimizer'):
      updates, opt_state = tx.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    # The optimizer counts the updates that it applied, not the steps.
    update_number = step - state.skipped_updates
    new = state.replace(
      step=step, params=params, opt_state=opt_state, extra=extra
    )
    if ema_decay is not None:
      average = train_state.ema_update(
        state.ema_params, params, ema_decay(update_number)
      )
      new = new.replace(ema_params=average)
    metrics = dict(metrics, loss=loss, grad_norm=optax.tree.norm(grads))
    metrics['learning_rate'] = schedule(update_number)
    if on_nonfinite == 'skip' or dynamic:
      finite = jnp.isfinite(loss) & jnp.isfinite(metrics['grad_norm'])
      skipped = state.skipped_updates + jnp.where(finite, 0, 1)
      kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, state)
      new = kept.replace(step=step, skipped_updates=skipped)
      metrics['skipped_updates'] = skipped
    if dynamic:
      metrics['loss_scale'] = state.loss_scale.scale
      scale = loss_scale.update(state.loss_scale, finite, loss)
      new = new.replace(loss_scale=scale)
    return new, metrics

  return train_step
