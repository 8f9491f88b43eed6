"""Softmax regression on a matrix of features: by SGD, and by L-BFGS.

Heads come in stacks: `kernel` [R, D, C] and `bias` [R, C], float32, are R
classifiers that share the features. Logits are computed in blocks of rows:
those of all rows, 4 N C bytes, would be 5 GB on ImageNet.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import losses
from vit_jax.evaluators import _features
from vit_jax.parallel import mesh as mesh_lib

Heads = dict[str, jax.Array]

_MOMENTUM = 0.9
_TOLERANCE = 1e-4  # scikit-learn's, of the largest gradient.
_MAX_LOGITS = 2**24  # That a device computes at once: 64 MiB in float32.


def sgd(
  train: _features.Features,
  mesh: jax.sharding.Mesh,
  *,
  num_classes: int,
  seed: int,
  learning_rates: Sequence[float],
  epochs: int,
  batch_size: int,
) -> Heads:
  """Returns one head for each learning rate, trained side by side.

  DINO's `eval_linear.py`: SGD with momentum 0.9 and no weight decay from
  weights of deviation 0.01; in epoch e the rate is learning_rate * batch_size /
  256 * (1 + cos(pi e / epochs)) / 2. The last batch of an epoch may be smaller.
  The bits depend on the seed and not on the number of devices.
  """
  num_rows, width = train.x.shape
  x_MD = _features.put_rows(train.x, mesh)
  label_N = _features.put(train.label, mesh)
  rates = np.float32(learning_rates) * np.float32(batch_size / 256)
  rng = np.random.default_rng(seed)
  kernel_DC = 0.01 * rng.standard_normal((width, num_classes))
  shape = (len(rates), width, num_classes)
  heads = {
    'kernel': np.broadcast_to(np.float32(kernel_DC), shape),
    'bias': np.zeros((len(rates), num_classes), np.float32),
  }
  put = functools.partial(_features.put, mesh=mesh)
  velocity = jax.tree.map(lambda x: put(np.zeros_like(x)), heads)
  heads = jax.tree.map(put, heads)
  size = min(batch_size, num_rows)
  num_steps = math.ceil(num_rows / size)
  for epoch in range(epochs):
    # One epoch at a time: XLA's CPU devices wait for each other for ever if
    # many programs that communicate are under way.
    jax.block_until_ready(heads)
    order = np.full(num_steps * size, -1, np.int32)
    order[:num_rows] = rng.permutation(num_rows)
    factor = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    heads, velocity = _sgd_epoch(
      heads,
      velocity,
      x_MD,
      label_N,
      put(order.reshape(num_steps, size)),
      put(rates * np.float32(factor)),
      mesh=mesh,
    )
  return heads


def lbfgs(
  train: _features.Features,
  mesh: jax.sharding.Mesh,
  *,
  num_classes: int,
  l2: float,
  max_iterations: int,
) -> Heads:
  """Returns the head that minimises the summed loss + l2 / 2 |kernel|^2.

  scikit-learn's `LogisticRegression(C=1 / l2)` on the devices and in float32:
  it has the same minimum, and stops likewise when no derivative of the mean
  loss exceeds 1e-4, or after `max_iterations`. The bias is not penalised.
  """
  block, rows = _put(train, mesh, num_classes)
  return _lbfgs(
    *rows,
    _features.put(np.float32(l2), mesh),
    num_classes=num_classes,
    max_iterations=max_iterations,
    block=block,
    mesh=mesh,
  )


def scores(
  heads: Heads, test: _features.Features, mesh: jax.sharding.Mesh
) -> dict[str, np.ndarray]:
  """Returns `top1`, `loss`, and with 6 classes or more `top5`, each `[R]`.

  They are the fraction of correct rows and the mean cross-entropy in nats; NaN
  for a head that is not finite.
  """
  block, rows = _put(test, mesh, heads['bias'].shape[-1])
  sums = jax.device_get(_sums(heads, *rows, block=block, mesh=mesh))
  finite_R = sums.pop('finite')
  means = {key: sum_R / len(test.x) for key, sum_R in sums.items()}
  return {key: np.where(finite_R, x, np.nan) for key, x in means.items()}


def _put(
  features: _features.Features, mesh: jax.sharding.Mesh, num_classes: int
) -> tuple[int, list[jax.Array]]:
  """Returns the rows of a block on each device, and all rows on the devices.

  The rows are features, labels and whether a row is real, not padding.
  """
  per_device = math.ceil(len(features.x) / mesh_lib.padded(1, mesh))
  num_blocks = math.ceil(per_device * num_classes / _MAX_LOGITS)
  block = math.ceil(per_device / num_blocks)
  columns = features.x, features.label, np.ones(len(features.x), bool)
  return block, [_features.put_rows(x, mesh, block=block) for x in columns]


def _sum_over_blocks(function, argument, rows, block: int, mesh):
  """Returns the sum of `function(argument, *rows)` over blocks of rows.

  Its gradient holds the intermediate values of one block at a time.

  Args:
    function: returns a tree of sums over the rows that it is given.
    rows: arrays `[M, ...]` from `_put`.
    block: rows of a block on each device.
  """
  parts = mesh_lib.padded(1, mesh)

  def blocks(x_M):
    """Returns `[K, block on every device, ...]`, as sharded as before."""
    x = x_M.reshape(parts, -1, block, *x_M.shape[1:]).swapaxes(0, 1)
    x = x.reshape(-1, parts * block, *x_M.shape[1:])
    spec = jax.sharding.PartitionSpec(None, *mesh_lib.batch_sharding(mesh).spec)
    split = jax.sharding.NamedSharding(mesh, spec)
    return jax.lax.with_sharding_constraint(x, split)

  rows = tuple(blocks(x_M) for x_M in rows)
  function = jax.checkpoint(function)
  if len(rows[0]) == 1:
    return function(argument, *(x[0] for x in rows))

  def add(sums, rows):
    return jax.tree.map(jnp.add, sums, function(argument, *rows)), None

  shapes = jax.eval_shape(function, argument, *(x[0] for x in rows))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, rows)[0]


def _logits(head, x_MD):
  return _features.matmul(x_MD, head['kernel']) + head['bias'][None]


def _rank(logits_BC, label_B):
  """Returns how many classes come before the label; of equals the first does.

  As `jax.lax.top_k` orders them, for which XLA gathers the logits of all
  devices.
  """
  own_B1 = jnp.take_along_axis(logits_BC, label_B[:, None], axis=-1)
  is_earlier_BC = jnp.arange(logits_BC.shape[-1])[None] < label_B[:, None]
  before_BC = (logits_BC > own_B1) | ((logits_BC == own_B1) & is_earlier_BC)
  return jnp.sum(before_BC, axis=-1)


def _summed_loss(logits_MC, label_M, counted_M):
  targets_MC = jax.nn.one_hot(label_M, logits_MC.shape[-1])
  loss_M = losses.softmax_cross_entropy(logits_MC, targets_MC)
  return jnp.sum(jnp.where(counted_M, loss_M, 0))


def _mean_loss(head, x_MD, label_M, counted_M):
  loss = _summed_loss(_logits(head, x_MD), label_M, counted_M)
  return loss / jnp.sum(counted_M)


@functools.partial(
  jax.jit, static_argnames='mesh', donate_argnames=('heads', 'velocity')
)
def _sgd_epoch(heads, velocity, x_MD, label_N, order_TB, rate_R, *, mesh):
  """Takes one step for each row of the order, in which -1 is padding."""
  num_owners = mesh.shape['data'] * mesh.shape['fsdp']
  x_SND = x_MD.reshape(num_owners, -1, x_MD.shape[-1])
  num_owned = x_SND.shape[1]
  first_S = num_owned * jnp.arange(num_owners)

  def pick(index_B):
    """Returns the rows `[B, D]` on every device; each owner gives its own."""
    index_SB = index_B[None] - first_S[:, None]
    owned_SB = (index_SB >= 0) & (index_SB < num_owned)
    index_SB = jnp.where(owned_SB, index_SB, 0)
    rows_SBD = jnp.take_along_axis(x_SND, index_SB[..., None], axis=1)
    # All terms of the sum but one are zero: it is exact.
    x_BD = jnp.sum(jnp.where(owned_SB[..., None], rows_SBD, 0), axis=0)
    return jax.lax.with_sharding_constraint(x_BD, mesh_lib.replicated(mesh))

  def loss(heads, *batch):
    # The heads do not touch: the gradient of the sum holds each one's own.
    return jnp.sum(jax.vmap(lambda head: _mean_loss(head, *batch))(heads))

  def step(carry, index_B):
    heads, velocity = carry
    counted_B = index_B >= 0
    label_B = label_N[jnp.where(counted_B, index_B, 0)]
    grads = jax.grad(loss)(heads, pick(index_B), label_B, counted_B)
    velocity = jax.tree.map(lambda v, g: _MOMENTUM * v + g, velocity, grads)
    heads = jax.tree.map(
      lambda w, v: w - rate_R.reshape(-1, *[1] * (w.ndim - 1)) * v,
      heads,
      velocity,
    )
    return (heads, velocity), None

  carry, _ = jax.lax.scan(step, (heads, velocity), order_TB)
  return jax.lax.with_sharding_constraint(carry, mesh_lib.replicated(mesh))


@functools.partial(
  jax.jit, static_argnames=('num_classes', 'max_iterations', 'block', 'mesh')
)
def _lbfgs(
  x_MD, label_M, counted_M, l2, *, num_classes, max_iterations, block, mesh
):
  def summed_loss(head, x_BD, label_B, counted_B):
    return _summed_loss(_logits(head, x_BD), label_B, counted_B)

  def loss(head):
    rows = x_MD, label_M, counted_M
    total = _sum_over_blocks(summed_loss, head, rows, block, mesh)
    penalty = 0.5 * l2 * jnp.sum(head['kernel'] ** 2)
    return (total + penalty) / jnp.sum(counted_M)

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def goes_on(carry):
    _, _, iteration, largest = carry
    return (iteration < max_iterations) & (largest > _TOLERANCE)

  def step(carry):
    head, state, iteration, _ = carry
    value, grad = value_and_grad(head, state=state)
    updates, state = solver.update(
      grad, state, head, value=value, grad=grad, value_fn=loss
    )
    largest = jnp.max(jnp.stack([jnp.abs(g).max() for g in grad.values()]))
    return optax.apply_updates(head, updates), state, iteration + 1, largest

  head = {
    'kernel': jnp.zeros((x_MD.shape[1], num_classes)),
    'bias': jnp.zeros(num_classes),
  }
  start = (head, solver.init(head), 0, jnp.inf)
  head = jax.lax.while_loop(goes_on, step, start)[0]
  heads = jax.tree.map(lambda x: x[None], head)
  return jax.lax.with_sharding_constraint(heads, mesh_lib.replicated(mesh))


@functools.partial(jax.jit, static_argnames=('block', 'mesh'))
def _sums(heads, x_MD, label_M, counted_M, *, block, mesh):
  """Returns correct rows, summed losses and which heads are finite, `[R]`."""

  def of_block(head, x_BD, label_B, counted_B):
    logits_BC = _logits(head, x_BD)
    correct_B = jnp.argmax(logits_BC, axis=-1) == label_B
    sums = {'top1': jnp.sum(correct_B & counted_B)}
    sums['loss'] = _summed_loss(logits_BC, label_B, counted_B)
    if logits_BC.shape[-1] > 5:
      sums['top5'] = jnp.sum((_rank(logits_BC, label_B) < 5) & counted_B)
    return sums

  def of_head(head):
    rows = x_MD, label_M, counted_M
    sums = _sum_over_blocks(of_block, head, rows, block, mesh)
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(head)]
    return sums | {'finite': jnp.stack(finite).all()}

  sums = jax.lax.map(of_head, heads)
  return jax.lax.with_sharding_constraint(sums, mesh_lib.replicated(mesh))
