"""Reading of a checkpoint, with detection of damage."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vit_jax import trees
from vit_jax.checkpoints import orbax_noise
from vit_jax.checkpoints.fingerprint import fingerprint
from vit_jax.checkpoints.format import (
  DamagedError,
  absolute,
  read_meta,
  shorten,
  steps,
)
from vit_jax.errors import RunError, UserError

_GOOD, _DAMAGED, _UNKNOWN = range(3)


def read_state(
  directory: epath.Path, meta: Mapping[str, Any], named: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns `{name: leaf}` for the leaves of a checkpoint that are asked for.

  Args:
    named: `{name: jax.ShapeDtypeStruct}`, a subset of the leaves in `meta`;
      one without a sharding is returned as a numpy array.

  Raises:
    DamagedError: it cannot be read, or a leaf does not match its fingerprint.
    RunError: memory or a permission is missing, which says nothing about the
      checkpoint.
  """
  path = directory / str(meta['step'])
  found, error, verdict = {}, None, _GOOD
  try:
    found = _read_leaves(path / 'state', named)
  except Exception as e:
    error, verdict = shorten(e), _UNKNOWN if _is_no_damage(e) else _DAMAGED
  if jax.process_count() > 1:
    # Each process reads its own part; all of them go the same way.
    verdict = multihost_utils.process_allgather(np.int32(verdict)).max()
  if verdict == _UNKNOWN:
    raise RunError(
      f'cannot read the checkpoint {path}, which may well be good: '
      f'{error or "see the other processes"}'
    )
  if verdict == _DAMAGED:
    raise DamagedError(error or 'see the other processes')
  # Orbax leaves the request in place of a leaf that is missing.
  held = (np.ndarray, jax.Array)
  absent = [n for n in named if not isinstance(found.get(n), held)]
  if absent:
    raise DamagedError(f'{absent[0]!r} is among its leaves and has no data')
  wrong = [
    name
    for name, number in fingerprint(found).items()
    if number != meta['leaves'][name]['fingerprint']
  ]
  if wrong:
    more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
    raise DamagedError(
      f'the data of {", ".join(wrong[:3])}{more} does not match its fingerprint'
    )
  return found


def load_params(
  directory: str | os.PathLike,
  wanted: Sequence[int] | None = None,
  *,
  ema: bool = False,
  on_log: Callable[[str], Any] = print,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns `(params, meta)` of a checkpoint, the parameters as numpy arrays.

  Writes nothing, so the run that owns the directory may be going on.

  Args:
    directory: the one that was given to `manager.Checkpointer`.
    wanted: steps of which the first good one is taken; None is all of them,
      the newest first.
    on_log: is given one line of text for every damaged checkpoint.

  Raises:
    UserError: no such checkpoint, no averaged parameters in it, or damage.
  """
  orbax_noise.silence()
  directory = absolute(directory)
  found = steps(directory)
  wanted = found if wanted is None else wanted
  missing = [s for s in wanted if s not in found]
  if not found or missing:
    raise UserError(
      f'no checkpoint {f"of step {missing[0]} " if missing else ""}in '
      f'{directory}; it has: {", ".join(map(str, found)) or "none"}'
    )
  for candidate in wanted:
    try:
      meta = read_meta(directory, candidate)
      with jax.transfer_guard('allow'):
        return _read_params(directory, meta, ema), meta
    except DamagedError as e:
      on_log(f'checkpoint {directory / str(candidate)} is damaged: {e}')
  raise UserError(f'no good checkpoint in {directory}; the reasons are above')


def _is_no_damage(error: Exception) -> bool:
  text = str(error)
  return (
    isinstance(error, MemoryError | PermissionError)
    or 'PERMISSION_DENIED' in text
    # From the compiler or the device; tensorstore raises ValueError.
    or (
      isinstance(error, jax.errors.JaxRuntimeError)
      and 'RESOURCE_EXHAUSTED' in text
    )
  )


def _read_leaves(path: epath.Path, named: Mapping[str, Any]) -> dict[str, Any]:
  args = {
    name: ocp.RestoreArgs(restore_type=np.ndarray)
    if leaf.sharding is None
    else ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)
    for name, leaf in named.items()
  }
  # The bare handler: anything above it waits for the other processes, for ever
  # if one of them finds damage.
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.restore(
      path,
      args=ocp.args.PyTreeRestore(
        item=trees.unflatten(dict(named)),
        restore_args=trees.unflatten(args),
        partial_restore=True,
      ),
    )
  return trees.flatten(tree)


def _read_params(
  directory: epath.Path, meta: Mapping[str, Any], ema: bool
) -> dict[str, Any]:
  branch = 'ema_params' if ema else 'params'
  named = {
    name: jax.ShapeDtypeStruct(tuple(leaf['shape']), np.dtype(leaf['dtype']))
    for name, leaf in meta['leaves'].items()
    if name.startswith(f'{branch}/')
  }
  if not named:
    raise UserError(
      f'{directory / str(meta["step"])} holds no {branch}: the run kept no '
      'average'
    )
  return trees.unflatten(read_state(directory, meta, named))[branch]
