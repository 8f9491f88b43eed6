"""Initialization of a training state from weights (`config.init_from`)."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.pretrained import blocks, catalog, resample
from vit_jax.pretrained.formats import run
from vit_jax.pretrained.weights import Weights, build_model


def initialize(
  tree: Mapping[str, Any],
  init_from: Iterable[Mapping[str, Any]],
  *,
  models: Mapping[str, nn.Module] | None = None,
  model_name: str | None = None,
  weights_dir: str | None = None,
  on_log: Callable[[str], Any] = print,
) -> dict[str, Any]:
  """Returns the tree with leaves replaced by pre-trained weights.

  Every parameter under `into` must come from the weights, and every one of the
  weights must have a place there, but for those that `take` and `skip` leave
  out; otherwise nothing is initialized and the error lists them all. Positions,
  patches and input channels are resized; blocks are stacked for a model with
  `scan`.

  Args:
    tree: branches such as 'params' with arrays or numpy arrays as leaves;
      an array's sharding and dtype are kept, and each device is sent its part
      alone. `jax.ShapeDtypeStruct` leaves with a sharding do as well.
    init_from: for each entry `weights` (see `catalog.load`) and, if need be:
      `into`: the branch or folder to fill ('frozen/teacher', 'params/image'),
      'params' unless said otherwise;
      `part`: the folder of the weights to take ('image' of a two-tower model),
      all of them unless said otherwise;
      `take`: regular expressions (or one) for whole names below `into`; other
      names keep their values; `skip`: likewise, names to leave out on either
      side;
      `format`, `model`, `step`, `ema`: arguments of `catalog.load`; `resize`:
      a key of `models._position.RESIZE` in place of that of the weights;
      `may_differ`: keys of the model section in which model and weights may
      differ.
    models: the modules by the branch or folder whose parameters are theirs,
      such as `{'params': student, 'frozen/teacher': teacher}`; a module's
      fields that are modules are its folders. One that computes something else
      than the weights were trained with (another activation) is an error; what
      is filled and has no module is logged.
    model_name: `config.model.name`; weights of a model of this name may be
      built, also where it is a module of the user's.
    weights_dir: see `catalog.load`.
    on_log: is given a line of text for every file and every resizing.

  Raises:
    UserError: an entry that is wrong, weights that are not to be had, or
      parameters that do not fit.
  """
  tree = dict(tree)
  for i, entry in enumerate(init_from):
    where = f'config.init_from[{i}]'
    lookup.check_keys(_fill, entry, where, num_args=6)
    tree = _fill(
      tree, where, models or {}, model_name, weights_dir, on_log, **entry
    )
  return tree


def _fill(
  tree,
  where: str,
  models,
  model_name,
  weights_dir,
  on_log,
  *,
  weights: str | Weights,
  format: str | None = None,
  into: str = 'params',
  part: str = '',
  take: str | Sequence[str] = '.*',
  skip: str | Sequence[str] = (),
  model: Mapping[str, Any] | None = None,
  step: int | str | None = None,
  ema: bool | None = None,
  resize: str | None = None,
  may_differ: Sequence[str] = (),
):
  """Returns the tree with one entry of `initialize` done."""
  below = trees.below(tree, into, where)
  inside = part
  if not isinstance(weights, Weights):
    # The reader of a run compares the model with its part of the parameters.
    from_run = run.matches(weights)
    inside = '' if from_run else part
    weights = catalog.load(
      weights,
      format=format,
      model=model,
      step=step,
      ema=ema,
      weights_dir=weights_dir,
      on_log=on_log,
      part=part if from_run else None,
    )
  ours, theirs = _meaning_at(models, into), {}
  if ours:
    # The config has named the model: the same name in the weights is as good.
    named = weights.model.get('name') == model_name
    theirs = _meaning(_submodule(build_model(weights, trusted=named), part))
  _check_meaning(ours, theirs, may_differ, into, where, on_log)
  found = trees.below(weights.params, inside, where)
  if blocks.is_stacked(below):
    found = blocks.stack(found)
  names = _selected({**below, **found}, take, skip, where)
  new, problems = {}, {}
  method = resize or weights.source.get('resize', 'timm')
  for name in names:
    if name not in found:
      problems[name] = f'the weights do not have it; {below[name].shape}'
    elif name not in below:
      problems[name] = f'the model does not have it; {found[name].shape}'
    else:
      array = _fit(name, found[name], below[name].shape, method, on_log)
      if array.shape == below[name].shape:
        new[f'{into}/{name}'] = array
      else:
        problems[name] = (
          f'{found[name].shape} in the weights, {below[name].shape} in the'
          ' model'
        )
  source = weights.source.get('path', 'the weights')
  if problems:
    raise UserError(
      f'{where}: {source} and the model do not have the same parameters:'
      + ''.join(f'\n  {name}: {text}' for name, text in problems.items())
      + _skip_hint(problems)
    )
  on_log(f'{into}: {len(new)} arrays from {source}')
  return trees.map_named(
    lambda name, leaf: _place(new[name], leaf) if name in new else leaf, tree
  )


def _selected(names: Iterable[str], take, skip, where: str) -> list[str]:
  """Returns the names that `take` takes and `skip` does not."""
  take, skip = ((x,) if isinstance(x, str) else x for x in (take, skip))
  names, problems = list(names), []
  matches = {}
  for pattern in (*take, *skip):
    if problem := trees.regex_problem(pattern):
      problems.append(problem)
      continue
    matches[pattern] = {n for n in names if re.fullmatch(pattern, n)}
    if not matches[pattern]:
      problems.append(
        f'{pattern!r} matches no name of the model or the weights'
      )
  if problems:
    raise UserError(
      f'{where}: take and skip are regular expressions for whole names such as'
      f' {names[0]}: ' + '; '.join(problems)
    )
  taken = set().union(*(matches[pattern] for pattern in take))
  skipped = set().union(*(matches[pattern] for pattern in skip))
  return [name for name in names if name in taken - skipped]


def _fit(name: str, array, shape, method: str, on_log) -> np.ndarray:
  """Returns the array resized to the shape, if it is one that can be."""
  old = array.shape
  if old == shape or len(old) != len(shape) or old[-1] != shape[-1]:
    return array
  if name.endswith('position_embedding') and len(old) == 3:
    array = resample.resize_position(array, shape[:2], method=method)
  elif name.endswith('patch_embedding/kernel') and len(old) == 4:
    array = resample.adapt_channels(array, shape[2])
    array = resample.resize_patch_kernel(array, shape[:2])
  if array.shape != old:
    on_log(f'{name}: resized from {old} to {array.shape}')
  return array


def _place(array: np.ndarray, leaf: Any) -> Any:
  """Returns the array in the dtype and sharding of the leaf."""
  array = np.asarray(array).astype(leaf.dtype, copy=False)
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    return array
  # Every process has the whole array, and sends its devices their parts. A
  # transfer guard of the caller does not see that this is on purpose.
  with jax.transfer_guard('allow'):
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )


def _meaning_at(models: Mapping[str, nn.Module], into: str) -> dict[str, Any]:
  """Returns the `_meaning` of what a folder of the state holds, {} if unknown.

  That of the model whose parameters these are, or are a part of, and of models
  whose parameters are a part of these.
  """
  found = {}
  for place in sorted(models, key=len):
    if f'{into}/'.startswith(f'{place}/'):
      found = _meaning(_submodule(models[place], into[len(place) + 1 :]))
    elif place.startswith(f'{into}/'):
      inner = place.removeprefix(f'{into}/').replace('/', '.')
      found |= _meaning(models[place], f'{inner}.')
  return found


def _submodule(module: nn.Module, path: str) -> nn.Module:
  """Follows a path through the fields that are modules, as far as they go.

  A ViT has no field `encoder`: its parts are computed as the ViT specifies.
  """
  for name in path.split('/') if path else ():
    inner = getattr(module, name, None)
    if not isinstance(inner, nn.Module):
      break
    module = inner
  return module


def _meaning(module: nn.Module, prefix: str = '') -> dict[str, Any]:
  """Returns what decides the meaning of parameters, of modules within too."""
  found = {
    prefix + key: value
    for key in getattr(module, 'FIELDS', {}).get('computes', ())
    if (value := getattr(module, key, None)) is not None
  }
  for field in dataclasses.fields(module):
    inner = getattr(module, field.name, None)
    if isinstance(inner, nn.Module) and field.name != 'parent':
      found |= _meaning(inner, f'{prefix}{field.name}.')
  return found


def _check_meaning(ours, theirs, may_differ, into, where, on_log) -> None:
  if not ours.keys() & theirs.keys():
    on_log(
      f'{into}: its model is unknown, or has no FIELDS that say what it'
      ' computes: not checked against the weights'
    )
  different = [
    f'{key}={ours[key]!r}, but the weights were trained with {theirs[key]!r}'
    for key in ours.keys() & theirs.keys()
    if ours[key] != theirs[key] and key not in may_differ
  ]
  if different:
    whose = 'config.model' if into == 'params' else f'the model of {into}'
    raise UserError(
      f'{where}: {whose} has {"; ".join(sorted(different))}. Set it so, or name'
      ' it in may_differ'
    )


def _skip_hint(names: Iterable[str]) -> str:
  """Returns how to leave parameters out, unless they are the model's body."""
  folders = {name.split('/')[0] for name in names}
  if folders & {'encoder', 'patch_embedding'}:
    return ''
  patterns = sorted(x if x in names else f'{x}/.*' for x in folders)
  return (
    '\nTo leave them at their initial values, or out of the model, add'
    f' skip={patterns}'
  )
