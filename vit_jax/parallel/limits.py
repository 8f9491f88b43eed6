"""Limits on sharding: leaves that stay replicated, and shards too narrow.

Both mistakes cost nothing on a laptop and a factor of two on a pod, silently.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.parallel import rules as rules_lib


@dataclasses.dataclass(frozen=True)
class Options:
  """The keys of `config.sharding`.

  Attributes:
    rules: of parameters, see `rules.state_shardings`; None is
      `rules.PARAMETER_RULES`.
    min_size: leaves with fewer elements are not sharded over `fsdp`.
    max_unsplit: the largest share of the state, in bytes, that may stay whole
      on every device although a rule would shard it: dimensions that the mesh
      does not divide. ViT-G/14 on 256 devices along `fsdp` would keep 17 GB on
      each, since 256 does not divide its width of 1664.
    min_rows: the fewest rows that a split may leave of a dimension. A TPU
      holds matrices in tiles of 8 or 16 rows; with less the compiler replaces
      gathering a parameter by adding up padded copies of all of it, twice the
      traffic with nothing to hide it.
    split_tokens: whether `tensor` splits the tokens between the blocks
      (`activation_sharding`).
  """

  rules: Sequence[tuple[str, rules_lib.Rule]] | None = None
  min_size: int = rules_lib.MIN_SIZE
  max_unsplit: float = 0.02
  min_rows: int = 16
  split_tokens: bool = False

  def __post_init__(self):
    problems = []
    for rule in () if self.rules is None else self.rules:
      if not isinstance(rule, list | tuple) or len(rule) != 2:
        problems.append(f'rules: {rule!r} is not a pair (regex, rule)')
      elif problem := trees.regex_problem(rule[0]):
        problems.append(f'rules: {problem}')
    for key, least in (('min_size', 0), ('max_unsplit', 0), ('min_rows', 1)):
      value = getattr(self, key)
      if value < least:
        problems.append(f'{key}={value}: expected {least} or more')
    if problems:
      raise UserError('sharding: ' + '; '.join(problems))


def check(
  abstract_state: Any, mesh: Mesh, options: Options = Options()
) -> rules_lib.Report:
  """Returns how the state is spread.

  Args:
    abstract_state: a tree with a branch `params`; leaves have a sharding, as
      `train_state.create` returns it.
    options: the limits, and the rules that the shardings came from.

  Raises:
    UserError: a limit is exceeded; shows by what.
  """
  report = rules_lib.report(
    abstract_state, mesh, options.rules, min_size=options.min_size
  )
  problems = []
  unsplit = sum(size for _, _, size, _ in report.unsplit)
  share = unsplit / max(report.total_bytes, 1)
  if share > options.max_unsplit:
    problems.append(
      f'{share:.1%} of the state would stay whole on every device, more than '
      f'config.sharding.max_unsplit={options.max_unsplit}.\n{report}\n'
      'Choose axes that divide these dimensions, or raise the limit'
    )
  narrow = {
    f'{name} {list(leaf.shape)} over {", ".join(axes)}: {rows} rows'
    for name, leaf in trees.flatten(abstract_state).items()
    if name.startswith('params/')
    for axes, rows in _rows(leaf)
    if rows < options.min_rows
  }
  if narrow:
    shown = sorted(narrow)
    more = [f'and {len(shown) - 5} more'] if len(shown) > 5 else []
    problems.append(
      f'{len(shown)} parameters would be cut into less than '
      f'config.sharding.min_rows={options.min_rows} rows on a device:\n  '
      + '\n  '.join(shown[:5] + more)
      + '\nMake the axis shorter (and data longer), or lower the limit'
    )
  if problems:
    sizes = ', '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
    raise UserError(f'mesh {sizes}: ' + '\n'.join(problems))
  return report


def _rows(leaf: jax.ShapeDtypeStruct) -> list[tuple[tuple[str, ...], int]]:
  """Returns `(axes, rows on a device)` for every sharded dimension."""
  shard = leaf.sharding.shard_shape(leaf.shape)
  out = []
  for dim, axes in enumerate(leaf.sharding.spec):
    axes = (axes,) if isinstance(axes, str) else axes
    if axes:
      # Heads are counted with their size: a whole head is many columns.
      rows = shard[dim] if 'fsdp' in axes else math.prod(shard[dim:])
      out.append((axes, rows))
  return out
