"""Sharding of the training state, by rules over parameter names.

A rule is a regular expression, which must match the whole parameter name, and
one of
- `'fsdp'`: shard the largest dimension that the axis divides;
- `'replicated'`: every device holds all of it;
- a tuple with one entry per dimension, None, an axis or a tuple of axes. It is
  aligned to the right, so the leading layer dimension of scanned blocks needs
  no rule of its own.
The first rule that matches wins. An axis of size 1 vanishes. An axis that does
not divide its dimension is dropped; `'fsdp'` then moves to the largest other
dimension that it divides. `report` lists what stays replicated.

Optimizer state and averages are sharded like their parameters. A model says
only how its activations are sharded (`activations`); the compiler inserts the
communication.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from vit_jax import printable, trees
from vit_jax.errors import UserError

Rule = str | tuple[str | tuple[str, ...] | None, ...]

# Attention by heads, the MLP by its hidden dimension (Megatron-LM, section 3,
# https://arxiv.org/abs/1909.08053): one reduction per half block.
PARAMETER_RULES: tuple[tuple[str, Rule], ...] = (
  (r'(.*/)?attention/(query|key|value)/kernel', ('fsdp', 'tensor', None)),
  (r'(.*/)?attention/(query|key|value)/bias', ('tensor', None)),
  (r'(.*/)?attention/out/kernel', ('tensor', None, 'fsdp')),
  (r'(.*/)?mlp/up/kernel', ('fsdp', 'tensor')),
  (r'(.*/)?mlp/up/bias', ('tensor',)),
  (r'(.*/)?mlp/down/kernel', ('tensor', 'fsdp')),
  (r'.*', 'fsdp'),
)

# Elements. Below it `fsdp` leaves a leaf whole: every vector of every ViT, but
# no matrix from 128 x 128 up.
MIN_SIZE = 2**14


def state_shardings(
  abstract_state: Any,
  mesh: Mesh,
  rules: Iterable[tuple[str, Rule]] | None = None,
  *,
  min_size: int = MIN_SIZE,
) -> Any:
  """Returns a tree like `abstract_state` with a NamedSharding at each leaf.

  Args:
    abstract_state: a tree whose branch `params` holds the parameters; leaves
      need a shape. A leaf elsewhere whose name ends in the name of a
      parameter and that has its shape (optimizer moments, averages) is sharded
      like that parameter. Leaves under `frozen` follow the rules by their own
      names, all others the rule `'fsdp'`.
    mesh: from `make_mesh`.
    rules: pairs of regex and rule (see the top of this file) that cover every
      parameter; None means `PARAMETER_RULES`.
    min_size: a leaf with fewer elements is not sharded over `fsdp`.

  Raises:
    UserError: rules that are malformed, match nothing, leave a parameter out or
      have more entries than a parameter has dimensions.
  """
  specs = _specs(abstract_state, mesh, rules, min_size)
  return trees.map_named(
    lambda name, _: NamedSharding(mesh, specs[name][0]), abstract_state
  )


@dataclasses.dataclass(frozen=True)
class Report:
  """Memory and sharding of a state; `str(report)` is a short text.

  Attributes:
    total_bytes: of the state, each leaf counted once.
    device_bytes: what one device holds.
    unsplit: `(name, shape, bytes on a device, axes)` of every leaf that its
      rule would shard over `axes` (sizes above 1) but that they do not divide,
      largest first.
  """

  total_bytes: int
  device_bytes: int
  unsplit: tuple[tuple[str, tuple[int, ...], int, tuple[str, ...]], ...]

  def __str__(self) -> str:
    lines = [
      f'state: {printable.size(self.total_bytes)}, '
      f'{printable.size(self.device_bytes)} '
      f'({self.device_bytes / max(self.total_bytes, 1):.1%}) on each device'
    ]
    if self.unsplit:
      wasted = sum(size for _, _, size, _ in self.unsplit)
      lines.append(
        f'{printable.size(wasted)} on each device could not be split as the '
        'rules ask (the mesh axes do not divide the dimensions):'
      )
    lines += [
      f'  {name} {list(shape)} over {", ".join(axes)}: {printable.size(size)}'
      for name, shape, size, axes in self.unsplit[:5]
    ]
    if len(self.unsplit) > 5:
      lines.append(f'  and {len(self.unsplit) - 5} more')
    return '\n'.join(lines)


def report(
  abstract_state: Any,
  mesh: Mesh,
  rules: Iterable[tuple[str, Rule]] | None = None,
  *,
  min_size: int = MIN_SIZE,
) -> Report:
  """Returns how `state_shardings` with these arguments shards the state."""
  specs = _specs(abstract_state, mesh, rules, min_size)
  total, on_device, unsplit = 0, 0, []
  for name, leaf in trees.flatten(abstract_state).items():
    spec, unmet = specs[name]
    shard = NamedSharding(mesh, spec).shard_shape(leaf.shape)
    size = math.prod(shard) * leaf.dtype.itemsize
    total += math.prod(leaf.shape) * leaf.dtype.itemsize
    on_device += size
    if unmet:
      unsplit.append((name, tuple(leaf.shape), size, unmet))
  unsplit.sort(key=lambda entry: -entry[2])
  return Report(total, on_device, tuple(unsplit))


def _specs(
  abstract_state: Any, mesh: Mesh, rules: Any, min_size: int
) -> dict[str, tuple[P, tuple[str, ...]]]:
  """Returns `{leaf name: (spec, axes that its rule asks for in vain)}`."""
  leaves = trees.flatten(abstract_state)
  params = {
    name.removeprefix('params/'): leaf
    for name, leaf in leaves.items()
    if name.startswith('params/')
  }
  if rules is None:
    rules = PARAMETER_RULES
    rule_of = {name: _first_match(rules, name) for name in params}
  else:
    rules = [(pattern, _as_rule(rule)) for pattern, rule in rules]
    _check_rules(rules, mesh)
    rule_of = trees.match_rules(rules, params, 'sharding rules')
    _check_ranks(rule_of, params)
  specs = {}
  for name, leaf in leaves.items():
    if parameter := _parameter_of(name, leaf, params):
      rule = rule_of[parameter]
    elif name.startswith('frozen/'):
      rule = _first_match(rules, name.removeprefix('frozen/'))
    else:
      rule = 'fsdp'
    specs[name] = _spec(leaf.shape, rule, mesh, min_size)
  return specs


def _parameter_of(name: str, leaf: Any, params: dict[str, Any]) -> str | None:
  """The longest suffix of `name` that is a parameter of the leaf's shape."""
  suffix = name
  while suffix:
    if suffix in params and params[suffix].shape == leaf.shape:
      return suffix
    suffix = suffix.partition('/')[2]
  return None


def _spec(
  shape: Sequence[int], rule: Rule, mesh: Mesh, min_size: int
) -> tuple[P, tuple[str, ...]]:
  if rule == 'replicated' or not shape:
    return P(), ()
  if rule == 'fsdp' or len(rule) > len(shape):
    wanted, fsdp_dims = (None,) * len(shape), [None]
  else:
    wanted = (None,) * (len(shape) - len(rule)) + rule
    fsdp_dims = [dim for dim, axes in enumerate(wanted) if axes == 'fsdp']
  placed, unmet = [None] * len(shape), []
  for dim, axes in enumerate(wanted):
    names = (axes,) if isinstance(axes, str) else axes or ()
    parts = math.prod(mesh.shape[axis] for axis in names)
    if axes == 'fsdp' or parts == 1:
      continue
    if shape[dim] % parts == 0:
      placed[dim] = axes
    else:
      unmet += names
  parts = mesh.shape['fsdp']
  if fsdp_dims and parts > 1 and math.prod(shape) >= min_size:
    by_size = sorted(range(len(shape)), key=lambda dim: -shape[dim])
    for dim in [*fsdp_dims, *by_size]:
      if dim is not None and placed[dim] is None and shape[dim] % parts == 0:
        placed[dim] = 'fsdp'
        break
    else:
      unmet.append('fsdp')
  while placed and placed[-1] is None:
    placed.pop()
  return P(*placed), tuple(unmet)


def _first_match(rules: Iterable[tuple[str, Rule]], name: str) -> Rule:
  return next((r for p, r in rules if re.fullmatch(p, name)), 'fsdp')


def _as_rule(rule: Any) -> Any:
  """Lists, which configs are made of, become tuples."""
  return tuple(map(_as_rule, rule)) if isinstance(rule, list | tuple) else rule


def _check_rules(rules: Sequence[tuple[str, Any]], mesh: Mesh) -> None:
  def is_known(rule):
    if not isinstance(rule, tuple):
      return rule in ('fsdp', 'replicated')
    axes = jax.tree.leaves(rule)  # Drops the Nones.
    return set(axes) <= set(mesh.shape) and len(set(axes)) == len(axes)

  problems = [f'{p!r}: {rule!r}' for p, rule in rules if not is_known(rule)]
  if problems:
    raise UserError(
      "sharding rules: a rule is 'fsdp', 'replicated' or one entry per "
      f'dimension: None, an axis of {tuple(mesh.shape)} or a tuple of axes, '
      f'each axis once; wrong: {"; ".join(problems)}'
    )


def _check_ranks(rule_of: dict[str, Rule], params: dict[str, Any]) -> None:
  problems = [
    f'{name} {list(params[name].shape)}: {rule}'
    for name, rule in rule_of.items()
    if isinstance(rule, tuple) and len(rule) > len(params[name].shape)
  ]
  if problems:
    raise UserError(
      'sharding rules with more entries than the parameter has dimensions:\n  '
      + '\n  '.join(problems)
    )
