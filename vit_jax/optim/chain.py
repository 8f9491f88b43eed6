"""The optimizer of a config as a chain of optax transforms."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.optim import schedules, transforms
from vit_jax.optim.roles import Roles

Rules = Sequence[tuple[str, float]]

# Kernels of dense, attention and convolution layers, the head and the patch
# embedding included; no bias, norm, position table or token (big_vision).
DECAY_KERNELS: Rules = (('(.*/)?kernel', 1.0), ('.*', 0.0))


def make(
  params: Any,
  *,
  learning_rate: float,
  total_steps: int,
  roles: Roles | None = None,
  name: str = 'adamw',
  schedule: str = 'cosine',
  warmup_steps: int = 0,
  cooldown_steps: int = 0,
  end_learning_rate: float | None = None,
  timescale_steps: int | None = None,
  stair_steps: int | None = None,
  b1: float | None = None,
  b2: float | None = None,
  eps: float | None = None,
  momentum: float | None = None,
  nesterov: bool | None = None,
  mu_dtype: str | None = None,
  clip_update_rms: float | None = None,
  weight_decay: float | Mapping[str, Any] = 0.0,
  weight_decay_mults: Rules | None = None,
  learning_rate_mults: Rules | None = None,
  layer_decay: float | None = None,
  mults_scale_weight_decay: bool | None = None,
  freeze: Sequence[str] = (),
  hold_steps: Sequence[tuple[str, int]] = (),
  grad_clip_norm: float | None = None,
) -> tuple[optax.GradientTransformation, Callable[[jax.Array], jax.Array]]:
  """Returns the transform and its learning rate as a function of the update.

  The order, which fixes what the numbers mean:
    1. the gradients of the trained parameters are clipped to a global norm;
    2. transforms: Adam's quotient, SGD's momentum, ... (`transforms.py`);
    3. `weight_decay * mult * parameter` is added (decoupled, not in the
       transforms);
    4. of LAMB: the update is scaled to the norm of the parameter, where `mult`
       is not 0, whatever the weight decay;
    5. `learning_rate_mults` and `layer_decay`, which so scale the decay too, as
       in timm; with `mults_scale_weight_decay=False` they come before 3 and
       scale the gradient's part alone, as in big_vision;
    6. minus the learning rate: update number k (from 1) uses `schedule(k)`;
    7. 0 in place of all that for parameters that `hold_steps` still holds.
  So the decay per step is learning_rate * weight_decay, as in torch's and
  optax's AdamW. big_vision's `wd` is not multiplied by its `lr`: its wd is
  `wd / lr` here (1e-4 at lr 1e-3 is weight_decay=0.1).

  Args:
    params: the parameters, or their shapes.
    learning_rate: peak rate.
    total_steps: updates of the run; 0 for evaluation alone.
    roles: of the parameters: the `ROLES` of the model, or None if it has none.
    name: 'adamw'; 'adam' (the same without weight decay); 'sgd', whose weight
      decay is decoupled too (SGDW of arXiv:1711.05101, not torch's SGD);
      'lamb' (as DeiT-III: with grad_clip_norm=1); 'lion'; 'adafactor' (as
      ViT-G); 'muon' (kernels of attention, MLP and convolutional stem; Adam for
      the others).
    schedule: with warmup_steps, cooldown_steps, end_learning_rate,
      timescale_steps and stair_steps: see `schedules.Rate`.
    b1, b2, eps: of Adam, LAMB and Muon's Adam, default 0.9, 0.999, 1e-8; b1
      and b2 of Lion, default 0.9, 0.99; b2 (the largest decay) and eps of
      Adafactor, default 0.999, 1e-30.
    momentum, nesterov: of SGD, default 0.9, False; of Muon, default 0.95, True;
      momentum of Adafactor, default 0.9.
    mu_dtype: how the first moment or the momentum is stored, 'bfloat16'
      (Adafactor's default) or 'float32' (default of all others). It is computed
      in float32 either way.
    clip_update_rms: of Adafactor: the largest root mean square of an update;
      default None, as for ViT-G.
    weight_decay: see above; a number, or a schedule as `schedules.between` has
      it: `dict(name='cosine', start=0.04, end=0.4)` is DINO's.
    weight_decay_mults: pairs (regex, multiplier) that cover every parameter;
      default `DECAY_KERNELS`.
    learning_rate_mults: pairs (regex, multiplier > 0). Parameters without a
      rule keep 1.
    layer_decay: in (0, 1]: multiplies the learning rate of every layer by this
      once more than that of the layer above it (BEiT, MAE); 1 for the last.
      The model says which layers it has (`Roles.layers`). Not for models with
      `scan`.
    mults_scale_weight_decay: see above; None is True. Not for LAMB, whose ratio
      would undo what comes before it.
    freeze: regexes of parameters that stay as they are: they have no optimizer
      state and no part in the clipped norm.
    hold_steps: pairs (regex, n) of parameters that the first n updates leave
      as they are, without weight decay, as DINO holds its last layer for an
      epoch: `hold_epochs=[('head/last/.*', 1)]`. Their gradients count in the
      clipped norm, and the moments follow them (torch's begin at the release).
    grad_clip_norm: largest global gradient norm; None for no clipping.

  A regex must match the whole name (`encoder/block_00/mlp/up/kernel`) and the
  first that matches wins; one that decides no parameter is an error.

  Raises:
    UserError: a value out of range, a key without effect, or rules that do not
      fit the parameters.
  """
  rate = schedules.Rate(
    schedule,
    learning_rate=learning_rate,
    total_steps=total_steps,
    warmup_steps=warmup_steps,
    cooldown_steps=cooldown_steps,
    end_learning_rate=end_learning_rate,
    timescale_steps=timescale_steps,
    stair_steps=stair_steps,
  )
  options = dict(
    b1=b1,
    b2=b2,
    eps=eps,
    momentum=momentum,
    nesterov=nesterov,
    mu_dtype=mu_dtype,
    clip_update_rms=clip_update_rms,
  )
  options = {k: v for k, v in options.items() if v is not None}
  problems = transforms.problems(name, options)
  problems += _decay_problems(name, weight_decay, weight_decay_mults)
  if mults_scale_weight_decay is not None:
    has_mults = bool(learning_rate_mults) or layer_decay is not None
    problems += _order_problems(name, weight_decay, has_mults)
  decay = schedules.between(
    weight_decay, total_steps=total_steps, where='optimizer.weight_decay'
  )
  if grad_clip_norm is not None and not schedules.in_range(
    grad_clip_norm, gt=0
  ):
    problems.append(f'grad_clip_norm={grad_clip_norm!r} must be a number > 0')
  if layer_decay is not None and not schedules.in_range(
    layer_decay, gt=0, le=1
  ):
    problems.append(f'layer_decay={layer_decay!r} must be a number in (0, 1]')
  if problems:
    raise UserError('optimizer: ' + '; '.join(problems))

  names, roles = list(trees.flatten(params)), roles or Roles()
  trained = trained_names(params, freeze)
  chain, mults = (
    [],
    _learning_rate_mults(names, learning_rate_mults, layer_decay, roles),
  )
  if grad_clip_norm is not None:
    chain.append(optax.clip_by_global_norm(grad_clip_norm))
  chain.append(transforms.make(name, roles, **options))
  if mults_scale_weight_decay is False:
    chain += mults
  if weight_decay or name == 'lamb':
    decay_mults = _decay_mults(names, weight_decay_mults)
    add = functools.partial(_add_decay, decay_mults)
    if isinstance(weight_decay, lookup.SECTION):
      chain.append(_at_each_update(lambda k, u, p: add(decay(k), u, p)))
    elif weight_decay:
      chain.append(optax.stateless(functools.partial(add, weight_decay)))
    if name == 'lamb':
      adapted = [n for n in names if decay_mults[n]]
      chain.append(transforms.trust_ratio(adapted, roles))
  if mults_scale_weight_decay is not False:
    chain += mults
  # optax counts updates from 0.
  chain.append(optax.scale_by_schedule(lambda count: -rate(count + 1)))
  if hold_steps:
    chain.append(_hold(_held_steps(hold_steps, names)))
  tx = optax.chain(*chain)
  if not all(trained.values()):
    frozen = trees.map_named(lambda n, _: not trained[n], params)
    tx = optax.selective_transform(tx, freeze_mask=frozen)
  return tx, rate


def zero_start_warning(
  params: Any, section: Mapping[str, Any], roles: Roles | None = None
) -> str | None:
  """Returns a warning of layers that LAMB cannot grow, as they start at zero.

  Its steps are in proportion to the norm of the layer: after a first step of
  the size of the learning rate, a layer grows at most by the factor 1 + rate.

  Args:
    params: the parameters before the first update.
    section: `config.optimizer`, which `make` has checked.
    roles: as for `make`.

  Returns:
    None for other optimizers, and where every layer has a norm.
  """
  if section.get('name') != 'lamb':
    return None
  roles, names = roles or Roles(), list(trees.flatten(params))
  decay_mults = _decay_mults(names, section.get('weight_decay_mults'))
  trained = trained_names(params, section.get('freeze', ()))
  adapted = [n for n in names if decay_mults[n] and trained[n]]

  @jax.jit
  def are_zero(params):
    norms = transforms.layer_norms(params, adapted, roles)
    return {layer: jnp.any(norm == 0) for layer, norm in norms.items()}

  found = jax.device_get(are_zero(params))
  zero = [n for n in adapted if found[roles.lamb_layer(n)]]
  if not zero:
    return None
  return (
    f'WARNING: {", ".join(zero)}: all zeros at the start. LAMB scales every '
    'update to the norm of its layer, so that these will hardly learn. Start '
    "them at random: --config.model.weight_init='torch', or "
    '--config.model.head_zero_init=False for the head alone'
  )


def _decay_mults(names: list[str], rules: Rules | None) -> dict[str, float]:
  rules = DECAY_KERNELS if rules is None else rules
  return _multipliers('weight_decay_mults', rules, names, ge=0)


def _learning_rate_mults(
  names: list[str],
  rules: Rules | None,
  layer_decay: float | None,
  roles: Roles,
) -> list[optax.GradientTransformation]:
  """Returns the transforms that scale the rates of single parameters."""
  found = []
  if rules:
    rules = [*rules, ('.*', 1.0)]
    mults = _multipliers('learning_rate_mults', rules, names, gt=0)
    found.append(_scale_by_name(mults))
  if layer_decay is not None:
    found.append(_scale_by_name(_layer_mults(names, layer_decay, roles)))
  return found


def _add_decay(
  mults: dict[str, float], decay: float | jax.Array, updates: Any, params: Any
) -> Any:
  """Returns `update + decay * mult * parameter` for each parameter."""

  def add(name, update, parameter):
    mult = mults[name]
    return update + decay * mult * parameter if mult else update

  return trees.map_named(add, updates, params)


def _hold(held: dict[str, int]) -> optax.GradientTransformation:
  """Makes updates 0 for the first so many of each parameter."""

  def zero(k, updates, _):
    def one(name, x):
      n = held[name]
      return jnp.where(k <= n, jnp.zeros_like(x), x) if n else x

    return trees.map_named(one, updates)

  return _at_each_update(zero)


def _held_steps(hold_steps: Any, names: list[str]) -> dict[str, int]:
  """Returns for how many updates each parameter stays as it is."""
  for rule in hold_steps:
    is_pair = isinstance(rule, list | tuple) and len(rule) == 2
    if not is_pair or lookup.expected(int, rule[1]) or rule[1] < 0:
      raise UserError(
        f'optimizer.hold_steps: {rule!r} is not a pair (regex, number of steps)'
      )
  return trees.match_rules(
    [*hold_steps, ('.*', 0)], names, 'optimizer.hold_steps'
  )


def _at_each_update(fn: Callable[..., Any]) -> optax.GradientTransformation:
  """Returns the transform `fn(k, updates, params)`; k counts from 1."""

  def update(updates, state, params=None):
    count = optax.safe_increment(state.count)
    state = optax.ScaleByScheduleState(count)
    return fn(count, updates, params), state

  return optax.GradientTransformation(
    lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
  )


def _scale_by_name(scales: dict[str, float]) -> optax.GradientTransformation:
  return optax.stateless(
    lambda u, _: trees.map_named(lambda name, x: scales[name] * x, u)
  )


def trained_names(params: Any, freeze: Sequence[str] = ()) -> dict[str, bool]:
  """Returns for each parameter's name whether it learns.

  A training step that stops the gradients of the others saves their backward
  pass, and its gradient norm is the one that is clipped.
  """
  if isinstance(freeze, str):
    raise UserError(
      f'optimizer.freeze: expected a list of regexes: [{freeze!r}]'
    )
  rules = [(regex, False) for regex in freeze]
  trained = trees.match_rules(
    [*rules, ('.*', True)], trees.flatten(params), 'optimizer.freeze'
  )
  if not any(trained.values()):
    raise UserError(
      f'optimizer.freeze={list(freeze)} leaves no parameter to train'
    )
  return trained


def _layer_mults(
  names: list[str], decay: float, roles: Roles
) -> dict[str, float]:
  """Returns `decay ** (last layer - layer)` of each parameter."""
  if roles.layers is None:
    raise UserError(
      'optimizer.layer_decay: the model does not say which layers it has. '
      'Give learning_rate_mults instead or, to a model of your own, ROLES, as '
      'vit_jax/models/_vit_roles.py has them'
    )
  layers = roles.layers(names)
  last = max(layers.values())
  return {name: decay ** (last - layer) for name, layer in layers.items()}


def _multipliers(
  key: str, rules: Rules, names: list[str], **limits: float
) -> dict[str, float]:
  """Returns multipliers by name; `limits` go to `schedules.in_range`."""
  problems = []
  for rule in rules:
    if not isinstance(rule, list | tuple) or len(rule) != 2:
      problems.append(f'{rule!r} is not a pair (regex, multiplier)')
    elif not schedules.in_range(rule[1], **limits):
      problems.append(
        f'the multiplier of {rule[0]!r} is {rule[1]!r}; expected a number '
        + ('>= 0' if 'ge' in limits else '> 0 (to hold it, freeze it)')
      )
  if problems:
    raise UserError(f'optimizer.{key}: ' + '; '.join(problems))
  return trees.match_rules(rules, names, f'optimizer.{key}')


def _decay_problems(name, weight_decay, mults) -> list[str]:
  """Returns what is wrong with the keys of the weight decay together."""
  problems = []
  if weight_decay and name == 'adam':
    problems.append(
      f"weight_decay={weight_decay!r} needs name='adamw'; 'adam' has none"
    )
  if mults is not None and not weight_decay and name != 'lamb':
    problems.append('weight_decay_mults has no effect with weight_decay=0')
  return problems


def _order_problems(name, weight_decay, has_mults: bool) -> list[str]:
  """Returns why the order of multipliers and weight decay has no effect."""
  key = 'mults_scale_weight_decay'
  if name == 'lamb':
    return [f"{key} is not for name='lamb': remove it"]
  if not weight_decay:
    return [f'{key} has no effect with weight_decay=0: remove it']
  if not has_mults:
    return [
      f'{key} has no effect without learning_rate_mults or layer_decay: remove'
      ' it'
    ]
  return []
