"""Loss scales, with which gradients in float16 neither vanish nor overflow.

In float16 a number below 6e-8 is 0 and one above 65,504 is infinite. The loss
is multiplied by a scale before the backward pass, and the float32 gradients are
divided by it afterwards, before they are clipped or measured (Micikevicius et
al., https://arxiv.org/abs/1710.03740, section 3.2). bfloat16 has the range of
float32 and needs none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vit_jax import lookup
from vit_jax.errors import UserError

MIN_SCALE = 1.0  # Below it float32 in place of float16 is the answer.
_MAX_SCALE = 2.0**24  # As apex; with gradients of 0 it would grow without end.


@flax.struct.dataclass
class State:
  """What a dynamic scale keeps between steps.

  Attributes:
    scale: float32 [].
    good_steps: int32 [], updates applied since the scale changed.
  """

  scale: jax.Array
  good_steps: jax.Array


@dataclasses.dataclass(frozen=True)
class Dynamic:
  """A scale that is halved at an overflow and doubled after some good steps.

  The defaults are those of `torch.amp.GradScaler`.

  Attributes:
    start: the first scale, from 1 to 2**24, the limits of all later ones.
    growth_steps: applied updates in a row after which the scale is doubled.

  Raises:
    UserError: a number outside its range.
  """

  start: float = 2.0**16
  growth_steps: int = 2000

  def __post_init__(self):
    if not MIN_SCALE <= self.start <= _MAX_SCALE:
      raise UserError(
        f'config.loss_scale.start={self.start}: expected 1 to 2**24'
      )
    if self.growth_steps < 1:
      raise UserError(
        f'config.loss_scale.growth_steps={self.growth_steps}: expected 1 or '
        'more'
      )

  def init(self) -> State:
    """Returns the state of step 0."""
    return State(jnp.float32(self.start), jnp.int32(0))

  def update(self, state: State, applied: jax.Array, loss: jax.Array) -> State:
    """Returns the state after a step.

    Only gradients that are not finite although the loss is are an overflow of
    the scaled backward pass. Where the loss itself is not finite (broken data,
    an overflow of the forward pass) no scale helps, and it stays as it is.

    Args:
      state: before the step.
      applied: bool [], whether the loss and all gradients were finite.
      loss: float32 [], not scaled.
    """
    overflow = ~applied & jnp.isfinite(loss)
    good = jnp.where(applied, state.good_steps + 1, state.good_steps)
    good = jnp.where(overflow, 0, good)
    grows = good >= self.growth_steps
    scale = jnp.where(overflow, state.scale / 2, state.scale)
    scale = jnp.where(grows, scale * 2, scale)
    scale = jnp.clip(scale, MIN_SCALE, _MAX_SCALE)
    return State(scale, jnp.where(grows, 0, good))


def make(setting: Any) -> float | Dynamic | None:
  """Returns the loss scale of `config.loss_scale`.

  Args:
    setting: None, a number above 0, 'dynamic', or a section with arguments of
      `Dynamic`.

  Raises:
    UserError: anything else.
  """
  if setting is None:
    return None
  if setting == 'dynamic':
    return Dynamic()
  if isinstance(setting, lookup.SECTION):
    return lookup.call(Dynamic, setting, 'config.loss_scale')
  if lookup.expected(float, setting) or setting <= 0:
    raise UserError(
      f"config.loss_scale={setting!r}: expected 'dynamic', a number above 0 or "
      f'a section with keys of {[x.name for x in dataclasses.fields(Dynamic)]}'
    )
  return float(setting)


def hint(model: Mapping[str, Any], setting: Any) -> str | None:
  """Returns advice where a model in float16 is trained without a scale."""
  if model.get('dtype') != 'float16' or setting is not None:
    return None
  return (
    'model.dtype is float16 without a loss scale: gradients below 6e-8 become '
    '0. Set --config.loss_scale=dynamic, or use bfloat16 where the device has '
    'it'
  )
