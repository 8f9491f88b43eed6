"""Comparison of a checkpoint with the config of the run that continues it."""

import os
from collections.abc import Mapping
from typing import Any

from vit_jax import lookup, trees
from vit_jax.errors import UserError

_MOST_LINES = 8  # Of each kind of difference.


def check(
  meta: Mapping[str, Any],
  abstract_state: Any,
  config: Mapping[str, Any],
  directory: str | os.PathLike,
) -> None:
  """Raises UserError if the checkpoint holds another model or optimizer.

  Args:
    config: the whole config after a round trip through JSON; its section
      `model` must be that of the checkpoint.
  """
  lines = _cut(_model_differences(meta['config'], config), 'model settings')
  saved = {
    name: f'{leaf["dtype"]}{leaf["shape"]}'
    for name, leaf in meta['leaves'].items()
  }
  wanted = {
    name: f'{leaf.dtype}{list(leaf.shape)}'
    for name, leaf in trees.flatten(abstract_state).items()
  }
  missing = [f'- {n} {wanted[n]}' for n in wanted if n not in saved]
  unexpected = [f'+ {n} {saved[n]}' for n in saved if n not in wanted]
  wrong = [
    f'! {n} is {saved[n]}, the config means {wanted[n]}'
    for n in wanted
    if n in saved and saved[n] != wanted[n]
  ]
  lines += _cut(missing, 'missing (-)')
  lines += _cut(unexpected, 'unexpected (+)')
  lines += _cut(wrong, 'of another shape or dtype (!)')
  if lines:
    advice = 'Put the config back as it was, or use another workdir'
    names = saved.keys() | wanted.keys()
    changed = [n for n in names if saved.get(n) != wanted.get(n)]
    same_config = all(
      repr(meta['config'].get(key)) == repr(config.get(key))
      for key in ('model', 'optimizer')
    )
    if same_config and all(n.startswith('opt_state/') for n in changed):
      # Adafactor with scan factored biases and norms over the depth once.
      advice = (
        'The config is the same: this version of vit_jax stores the state of '
        'this optimizer in another shape. Continue with the version that began '
        'the run, or start another workdir from its parameters with '
        "config.init_from=[dict(weights='<this workdir>')]"
      )
    raise UserError(
      f'the checkpoint of step {meta["step"]} in {directory} is not of the '
      'model and optimizer of this config:\n  '
      + '\n  '.join(lines)
      + f'\nNothing was changed. {advice}'
    )


def differences(
  saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ''
) -> list[str]:
  """Returns one line for every setting that is not as in the checkpoint."""
  lines = []
  for key in dict.fromkeys([*saved, *current]):
    pair = [section.get(key) for section in (saved, current)]
    if not prefix and pair == [None, None]:
      continue  # An option that an older version did not have.
    if all(isinstance(value, dict) for value in pair):
      lines += differences(*pair, f'{prefix}{key}.')
      continue
    # By their text: NaN differs from itself.
    old, new = (
      repr(section[key]) if key in section else 'not set'
      for section in (saved, current)
    )
    if old != new:
      lines.append(
        f'{prefix}{key}: {old} in the checkpoint, {new} in the config'
      )
  return lines


def _model_differences(saved, config) -> list[str]:
  # A run may continue with other values of what costs and computes the same.
  cost = lookup.model_fields(config.get('model') or {}, 'cost', trusted=True)
  saved, current = (
    {k: v for k, v in (c.get('model') or {}).items() if k not in cost}
    for c in (saved, config)
  )
  return differences(saved, current, 'model.')


def _cut(lines: list[str], what: str) -> list[str]:
  if len(lines) <= _MOST_LINES:
    return lines
  more = len(lines) - _MOST_LINES
  return [*lines[:_MOST_LINES], f'... and {more} more {what}']
