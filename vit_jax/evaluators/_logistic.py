"""Softmax regression on a matrix of features: by SGD, and by L-BFGS.

Heads come in stacks: `kernel` [R, D, C] and `bias` [R, C], float32, are R
classifiers that share the features.
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

  Args:
    train: features and labels.
    mesh: the devices; the features are split over them.
    num_classes: C.
    seed: of the first weights and of the order.
    learning_rates: for a batch of 256.
    epochs: passes over the features.
    batch_size: rows of a step, at most all of them.
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
  velocity = {key: np.zeros_like(x) for key, x in heads.items()}
  heads, velocity = (
    {key: _features.put(x, mesh) for key, x in tree.items()}
    for tree in (heads, velocity)
  )
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
      _features.put(order.reshape(num_steps, size), mesh),
      _features.put(rates * np.float32(factor), mesh),
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

  What scikit-learn's `LogisticRegression(C=1 / l2)` does, on the devices and in
  float32: the same minimum, and like there it is reached when no derivative of
  the mean loss exceeds 1e-4, or else given up after so many iterations. The
  bias is free. Logits for all rows are held at once, 4 N C bytes over all
  devices together.

  Args:
    train: features and labels.
    mesh: the devices; the features are split over them.
    num_classes: C.
    l2: CLIP's lambda.
    max_iterations: of L-BFGS.
  """
  return _lbfgs(
    *_rows(train, mesh),
    _features.put(np.float32(l2), mesh),
    num_classes=num_classes,
    max_iterations=max_iterations,
    out_sharding=mesh_lib.replicated(mesh),
  )


def scores(
  heads: Heads, test: _features.Features, mesh: jax.sharding.Mesh
) -> dict[str, np.ndarray]:
  """Returns `top1`, `loss`, and with 6 classes or more `top5`, each `[R]`.

  They are the fractions of hits and the mean cross-entropy in nats; NaN for a
  head that is not finite.
  """
  sums = jax.device_get(
    _sums(heads, *_rows(test, mesh), out_sharding=mesh_lib.replicated(mesh))
  )
  finite_R = sums.pop('finite')
  means = {key: sum_R / len(test.x) for key, sum_R in sums.items()}
  return {key: np.where(finite_R, x, np.nan) for key, x in means.items()}


def _rows(features: _features.Features, mesh) -> list[jax.Array]:
  """Returns features, labels and which rows count, split over the devices."""
  counted_N = np.ones(len(features.x), bool)
  columns = features.x, features.label, counted_N
  return [_features.put_rows(x, mesh) for x in columns]


def _logits(head, x_MD):
  # TPUs and recent GPUs multiply in fewer digits unless told otherwise.
  highest = jax.lax.Precision.HIGHEST
  logits_MC = jnp.matmul(x_MD, head['kernel'], precision=highest)
  return logits_MC + head['bias'][None]


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
  """Takes one step for each row of the order; -1 in it stands for nothing."""
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
  jax.jit, static_argnames=('num_classes', 'max_iterations', 'out_sharding')
)
def _lbfgs(
  x_MD, label_M, counted_M, l2, *, num_classes, max_iterations, out_sharding
):
  def loss(head):
    penalty = 0.5 * l2 * jnp.sum(head['kernel'] ** 2) / jnp.sum(counted_M)
    return _mean_loss(head, x_MD, label_M, counted_M) + penalty

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
  return jax.lax.with_sharding_constraint(heads, out_sharding)


@functools.partial(jax.jit, static_argnames='out_sharding')
def _sums(heads, x_MD, label_M, counted_M, *, out_sharding):
  """Returns hits, summed losses and which heads are finite, each `[R]`."""

  def of_head(head):
    logits_MC = _logits(head, x_MD)
    hit_M = jnp.argmax(logits_MC, axis=-1) == label_M
    sums = {'top1': jnp.sum(hit_M & counted_M)}
    sums['loss'] = _summed_loss(logits_MC, label_M, counted_M)
    if logits_MC.shape[-1] > 5:
      best_M5 = jax.lax.top_k(logits_MC, 5)[1]
      hit_M = jnp.any(best_M5 == label_M[:, None], axis=-1)
      sums['top5'] = jnp.sum(hit_M & counted_M)
    leaves = jax.tree.leaves(head)
    finite = jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()
    return sums | {'finite': finite}

  # One after the other: their logits together may be too large.
  sums = jax.lax.map(of_head, heads)
  return jax.lax.with_sharding_constraint(sums, out_sharding)
