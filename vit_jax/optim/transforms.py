"""Optimizers (Adam, SGD, Lion, Adafactor, Muon, LAMB) as optax transforms.

Each function is one optimizer of a config. It takes the roles of the model's
parameters; its keywords are the options that the config may give. The library
does the mathematics; what is here chooses its variant as published and fits it
to parameters with names.
"""

import inspect
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.optim import schedules
from vit_jax.optim.roles import Roles


def make(
  name: str, roles: Roles, **options: Any
) -> optax.GradientTransformation:
  """Returns the transform of a name that `problems` finds nothing wrong with.

  Its updates point up the gradient and have no learning rate in them yet.
  """
  return _MAKERS[name](roles, **options)


def problems(name: str, options: dict[str, Any]) -> list[str]:
  """Returns what is wrong with a name and its options."""
  if name not in _MAKERS:
    return [f'name={name!r}; expected one of {list(_MAKERS)}']
  found = []
  parameters = inspect.signature(_MAKERS[name]).parameters.values()
  taken = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
  for key in sorted(set(options) - set(taken)):
    found.append(
      f'{key} has no effect with name={name!r}, which takes '
      f'{", ".join(taken)}: remove it'
    )
  for key in ('b1', 'b2', 'momentum'):
    if key in options and not schedules.in_range(options[key], ge=0, lt=1):
      found.append(f'{key}={options[key]!r} must be a number in [0, 1)')
  for key in ('eps', 'clip_update_rms'):
    if key in options and not schedules.in_range(options[key], gt=0):
      found.append(f'{key}={options[key]!r} must be a number > 0')
  dtypes = ('float32', 'bfloat16')
  if options.get('mu_dtype', 'float32') not in dtypes:
    found.append(f'mu_dtype={options["mu_dtype"]!r}; expected {dtypes}')
  if name in ('sgd', 'adafactor') and options.get('momentum') == 0:
    for key in ('nesterov', 'mu_dtype'):
      if key in options and key in taken:
        found.append(f'{key} has no effect with momentum=0: remove it')
  return found


def _adam(
  roles: Roles,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  mu_dtype: str = 'float32',
) -> optax.GradientTransformation:
  del roles
  return _stored('mu', mu_dtype, optax.scale_by_adam(b1=b1, b2=b2, eps=eps))


def _sgd(
  roles: Roles,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  mu_dtype: str = 'float32',
) -> optax.GradientTransformation:
  del roles
  if not momentum:
    return optax.identity()
  return _stored('trace', mu_dtype, optax.trace(momentum, nesterov))


def _lion(
  roles: Roles,
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  mu_dtype: str = 'float32',
) -> optax.GradientTransformation:
  """Lion (arXiv:2302.06675): the sign of an average of gradients."""
  del roles
  return _stored('mu', mu_dtype, optax.scale_by_lion(b1=b1, b2=b2))


def _adafactor(
  roles: Roles,
  *,
  b2: float = 0.999,
  eps: float = 1e-30,
  momentum: float = 0.9,
  mu_dtype: str = 'bfloat16',
  clip_update_rms: float | None = None,
) -> optax.GradientTransformation:
  """Adafactor of "Scaling Vision Transformers" (arXiv:2106.04560, 3.4).

  big_vision's `scale_by_adafactor`: second moments by rows and columns of every
  matrix with two sides from 32 up, averaged with min(b2, 1 - t^-0.8) at update
  t; momentum without correction for its start; neither relative steps nor
  scaling by the parameters. Each block of a stack is treated alone: biases and
  norms of all blocks together are no matrix.
  """

  def decay(step, exponent):
    t = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(b2, 1 - t**-exponent)

  transforms = [
    optax.scale_by_factored_rms(
      min_dim_size_to_factor=32, epsilon=eps, decay_rate_fn=decay
    )
  ]
  if clip_update_rms is not None:
    transforms.append(optax.clip_by_block_rms(clip_update_rms))
  transforms = [_each_block_alone(x, roles.is_stacked) for x in transforms]
  if momentum:
    average = optax.ema(momentum, debias=False)
    transforms.append(_stored('ema', mu_dtype, average))
  return optax.chain(*transforms)


def _each_block_alone(
  inner: optax.GradientTransformation, is_stacked: Callable[[str], bool]
) -> optax.GradientTransformation:
  """Applies a transform to every block of the stacked leaves alone.

  The state is that of `inner` where nothing is stacked, else it is apart for
  stacks of each number of blocks, with that number as leading dimension.
  """

  def update_blocks(updates, state, params):
    return jax.vmap(inner.update)(updates, state, params)

  blocks = optax.GradientTransformation(jax.vmap(inner.init), update_blocks)

  def label(name, x):
    return f'blocks_{x.shape[0]}' if is_stacked(name) else 'single'

  def transform(tree):
    labels = trees.map_named(label, tree)
    used = set(jax.tree.leaves(labels))
    if used <= {'single'}:
      return inner
    return optax.partition(
      {x: inner if x == 'single' else blocks for x in used}, labels
    )

  return optax.GradientTransformation(
    lambda params: transform(params).init(params),
    lambda updates, state, params=None: transform(updates).update(
      updates, state, params
    ),
  )


def _muon(
  roles: Roles,
  *,
  momentum: float = 0.95,
  nesterov: bool = True,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  mu_dtype: str = 'float32',
) -> optax.GradientTransformation:
  """Muon for the kernels that the model calls matrices, Adam for all others.

  Those of a ViT are in attention, MLP and convolutional stem.

  The momentum of a kernel is replaced by the nearest orthogonal matrix
  (https://kellerjordan.github.io/posts/muon), then scaled to the root mean
  square 0.2 that Adam's updates have (arXiv:2502.16982, 2.2): learning rate and
  weight decay of AdamW carry over. A kernel `[D, N, K]` of query, key or value
  is one matrix D x NK.
  """

  def dimensions(name):
    axes = roles.matrix(name)
    return None if axes is None else contrib.MuonDimensionNumbers(*axes)

  def labels(params):
    names = trees.flatten(params)
    if not any(dimensions(name) for name in names):
      raise UserError(
        "optimizer: name='muon' is for kernels of attention and mlp, and this "
        f'model has none among the parameters that learn: {", ".join(names)}. '
        'A model of your own names them in ROLES, as '
        'vit_jax/models/_vit_roles.py does'
      )
    return trees.map_named(
      lambda name, _: 'muon' if dimensions(name) else 'adam', params
    )

  def all_dimensions(updates):
    return trees.map_named(lambda name, _: dimensions(name), updates)

  def to_rms_of_adam(name, update):
    shape = np.array(update.shape)
    sides = [shape[np.array(axes)].prod() for axes in dimensions(name)]
    return 0.2 * math.sqrt(max(sides)) * update

  orthogonal = contrib.scale_by_muon(
    beta=momentum, nesterov=nesterov, weight_dimension_numbers=all_dimensions
  )
  matrices = optax.chain(
    _stored('mu', mu_dtype, orthogonal),
    optax.stateless(lambda u, _: trees.map_named(to_rms_of_adam, u)),
  )
  others = _adam(roles, b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)
  return optax.partition({'muon': matrices, 'adam': others}, labels)


_MAKERS = {
  'adamw': _adam,
  'adam': _adam,
  'sgd': _sgd,
  'lamb': _adam,  # With `trust_ratio` after weight decay.
  'lion': _lion,
  'adafactor': _adafactor,
  'muon': _muon,
}


def trust_ratio(
  adapted: Collection[str], roles: Roles
) -> optax.GradientTransformation:
  """Scales updates to the norm of their parameter: LAMB (arXiv:1904.00962).

  As NVIDIA's FusedLAMB, with which DeiT-III was trained: the norms are those of
  whole layers, query, key and value together, each block of a stack alone.
  Where a norm is 0 the update stays. (`optax.scale_by_trust_ratio` takes leaves
  for layers.)

  Args:
    adapted: names of the parameters that have a ratio; FusedLAMB: those with
      weight decay.
    roles: say which parameters are a layer, and which are stacks of blocks.
  """

  def rescale(updates, params):
    of_updates = layer_norms(updates, adapted, roles)
    of_params = layer_norms(params, adapted, roles)

    def scale(name, update):
      if name not in adapted:
        return update
      layer = roles.lamb_layer(name)
      u, p = of_updates[layer], of_params[layer]
      ratio = jnp.where((u > 0) & (p > 0), p / jnp.where(u > 0, u, 1.0), 1.0)
      shape = ratio.shape + (1,) * (update.ndim - ratio.ndim)
      return ratio.reshape(shape).astype(update.dtype) * update

    return trees.map_named(scale, updates)

  return optax.stateless(rescale)


def layer_norms(
  tree: Any, adapted: Collection[str], roles: Roles
) -> dict[str, jax.Array]:
  """Returns the norm of each layer of LAMB, `[depth]` for a stack of blocks.

  Args:
    tree: of parameters or updates.
    adapted: names of those that count.
    roles: of the parameters.
  """
  squares = {}
  for name, x in trees.flatten(tree).items():
    if name in adapted:
      x = x.astype(jnp.float32)
      within = tuple(range(1 if roles.is_stacked(name) else 0, x.ndim))
      layer = roles.lamb_layer(name)
      squares[layer] = squares.get(layer, 0.0) + jnp.sum(x * x, axis=within)
  return {layer: jnp.sqrt(value) for layer, value in squares.items()}


def _stored(
  field: str, dtype: str, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Keeps one field of a transform's state in `dtype` between updates.

  optax's own `mu_dtype` multiplies the stored moment by its decay in that
  dtype, and 0.9 is 0.8984 in bfloat16: momentum SGD would take steps that are
  1.5 % too short. Here the arithmetic is float32.
  """
  if dtype == 'float32':
    return inner

  def cast(state, to):
    moment = jax.tree.map(lambda x: x.astype(to), getattr(state, field))
    return state._replace(**{field: moment})

  def init(params):
    return cast(inner.init(params), dtype)

  def update(updates, state, params=None):
    updates, state = inner.update(updates, cast(state, jnp.float32), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(init, update)
