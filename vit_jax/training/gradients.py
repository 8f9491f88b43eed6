"""Gradients of a batch, whole or accumulated over micro-batches.

Micro-batches, parts of a batch one after the other, need less memory at once,
and on a TPU small ones may keep their activations on the chip. Where the loss
is a mean over examples, the result is that of the whole batch but for rounding.
An objective declares this by

    mean_over_examples = True

which promises that `loss` and every metric are means over the examples of the
batch, and that `extra` does not depend on the batch. A contrastive loss, or a
teacher's centre, compares examples with one another and must not say so.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from vit_jax.errors import UserError


def check_objective(objective: Any, micro_batches: int) -> None:
  """Raises UserError for a wrong number, or where parts would be wrong."""
  if not isinstance(micro_batches, int) or micro_batches < 1:
    raise UserError(
      f'micro_batches={micro_batches!r}: expected a whole number from 1 up'
    )
  if micro_batches > 1 and not getattr(objective, 'mean_over_examples', False):
    raise UserError(
      f'micro_batches={micro_batches}: {type(objective).__module__} does not '
      'say mean_over_examples = True, so its loss over parts of a batch may '
      'not be that of the batch; use micro_batches=1'
    )


def check_extra(extra: Mapping[str, Any], micro_batches: int) -> None:
  """Raises UserError where parts of a batch would have other statistics."""
  if micro_batches > 1 and 'batch_stats' in extra:
    raise UserError(
      f'micro_batches={micro_batches}: the model normalizes with statistics of '
      'the batch (batch_stats), and those of its parts differ; use '
      'micro_batches=1'
    )


def value_and_grad(
  loss_fn: Callable[..., Any],
  *,
  micro_batches: int = 1,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., tuple[Any, Any]]:
  """Returns `(params, state, batch, rng) -> ((loss, (metrics, extra)), grads)`.

  With one micro-batch it is `jax.value_and_grad`. With k of them, number i
  holds the rows i, i + k, i + 2 k, ...: every device keeps its own rows, and
  what a micro-batch holds does not depend on the mesh. Each draws from a key of
  its own. Devices along the axis `data` add up their gradients in float32 and
  exchange them once, at the end, and draw from different keys; gradients that
  are sharded over `fsdp` are exchanged there for every micro-batch, since no
  device could hold them whole.

  Args:
    loss_fn: `(params, state, batch, rng) -> (loss, (metrics, extra))`, means
      over the batch.
    micro_batches: k, which divides the rows of every device.
    mesh: with the axis `data`, over which batches are sharded first; None: one
      device.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  if micro_batches == 1:
    return grad_fn
  data = 1 if mesh is None else mesh.shape['data']

  def accumulate(params, state, batch, rng):
    parts = {key: _split(key, x, micro_batches) for key, x in batch.items()}

    def add(totals, i):
      sums, _ = totals
      part = {
        key: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)
        for key, x in parts.items()
      }
      key = jax.random.fold_in(rng, i)
      (loss, (metrics, extra)), grads = grad_fn(params, state, part, key)
      sums = jax.tree.map(
        lambda total, x: total + x.astype(total.dtype),
        sums,
        (loss, metrics, grads),
      )
      return (sums, extra), None

    first = {key: x[:, 0] for key, x in parts.items()}
    loss, (metrics, _) = jax.eval_shape(loss_fn, params, state, first, rng)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
      (loss, metrics, params),
    )
    numbers = jnp.arange(micro_batches)
    (sums, extra), _ = jax.lax.scan(add, (zeros, state.extra), numbers)
    return jax.tree.map(lambda x: x / micro_batches, sums), extra

  def accumulate_here(params, state, batch, rng):
    rng = jax.random.fold_in(rng, jax.lax.axis_index('data'))
    sums, extra = accumulate(params, state, batch, rng)
    return jax.lax.pmean(sums, 'data'), extra

  def run(params, state, batch, rng):
    if data == 1:
      sums, extra = accumulate(params, state, batch, rng)
    else:
      sums, extra = jax.shard_map(
        accumulate_here,
        mesh=mesh,
        axis_names={'data'},
        in_specs=(P(), P(), P('data'), P()),
        out_specs=P(),
        # It would exchange gradients inside the loop to keep its promises.
        check_vma=False,
      )(params, state, batch, rng)
    loss, metrics, grads = sums
    return (loss, (metrics, extra)), grads

  return run


def _split(key: str, x: jax.Array, micro_batches: int) -> jax.Array:
  """Returns `[B / k, k, ...]`; row r of the batch is in micro-batch r % k."""
  if x.ndim == 0 or x.shape[0] % micro_batches:
    raise UserError(
      f'micro_batches={micro_batches} does not divide batch[{key!r}] of shape '
      f'{list(x.shape)} (on the devices along the axis data)'
    )
  return x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:])
