"""Evaluation of any weights, without training and without writing anything."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import lookup, suggestions, trees
from vit_jax.data import device_ops_language, ops_language
from vit_jax.errors import UserError
from vit_jax.inference import image_size as image_size_lib
from vit_jax.objectives import supervised
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.pretrained import blocks, catalog, initialize as initialize_lib
from vit_jax.pretrained.formats import run as run_format
from vit_jax.pretrained.weights import Weights, build_model
from vit_jax.printable import printable
from vit_jax.training import evaluation, run as run_lib, train_state

_BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True)
class Results:
  """The numbers of `evaluate`, and where their weights are from.

  Attributes:
    metrics: `{'val/top1': ...}`; for the second of several weights
      `val_ema/top1`, as in training.
    source: of the weights: 'format', 'path' and, of a run, 'step'.
    preprocess: 'ops' and 'device_ops' for evaluations that have no ops.
  """

  metrics: dict[str, float]
  source: dict[str, Any]
  preprocess: dict[str, Any]


def evaluate(
  weights: str | os.PathLike | Weights,
  evals: Mapping[str, Mapping[str, Any]] | None = None,
  *,
  names: Sequence[str] | None = None,
  batch_size: int = _BATCH_SIZE,
  ops: str | None = None,
  device_ops: str | None = None,
  image_size: int | Sequence[int] | None = None,
  mesh: jax.sharding.Mesh | None = None,
  step: int | str | None = None,
  ema: bool | None = None,
  on_log: Callable[[str], Any] = print,
  **options,
) -> Results:
  """Returns the numbers of evaluators on weights; see `vit_jax.evaluate`.

  Only reads: the run that the weights are from may be going on. The forward
  pass is the model's, as in `vit_jax.load`; there is no optimizer or training
  data. Positions are resized to the images of each evaluation.

  Raises:
    UserError: weights, sections, options or data that do not fit.
  """
  mesh = mesh_lib.make_mesh() if mesh is None else mesh
  is_ours = not isinstance(weights, Weights) and run_format.matches(weights)
  own = evals is None
  if own:
    if not is_ours:
      raise UserError(
        f'{printable(weights)} is not a run; only runs have evaluations of '
        'their own. Correct the path, or name a recipe with config.evals, as '
        'in --config=configs/evaluate.py'
      )
    config = run_format.read_config(weights)
    evals, objective = config['evals'], config['objective'].get('name')
    if objective not in (None, 'supervised'):
      on_log(
        f'the objective {printable(objective)} of this run may predict in its '
        "own way; these numbers are of the model's forward pass, those in "
        "the run's metrics.jsonl of the objective"
      )
  evals = _chosen(evaluation.sections(evals, 'config.evals'), names)
  if own:
    _check_from_file(evals, weights)
  read = functools.partial(catalog.load, weights, on_log=on_log, **options)
  loaded: dict[bool | None, _Model] = {}

  def load(wanted: bool | None) -> _Model:
    nonlocal step
    if wanted in loaded:
      return loaded[wanted]
    found = weights
    if not isinstance(weights, Weights):
      found = read(step=step, ema=wanted)
    if is_ours:
      step = found.source['step']
      if jax.process_count() > 1:
        # A run may save while the processes look for its newest checkpoint.
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
      if found.source['step'] != step:
        found = read(step=step, ema=wanted)
    found = found.with_preprocess(ops=ops, device_ops=device_ops)
    if image_size is not None:
      found = image_size_lib.resize(
        found, image_size, keep_ops=ops is not None, on_log=on_log
      )
    # One forward pass compiles each evaluator once.
    parts = [x.part for x in loaded.values()]
    part = parts[0] if parts else _model_part(found, mesh)
    loaded[wanted] = _Model(found, part, on_log)
    return loaded[wanted]

  metrics, source, preprocess = {}, {}, {}
  for name, section in evals.items():
    section = {k: x for k, x in section.items() if not k.startswith('every_')}
    kinds = section.pop('weights', None)
    if ema is not None or not is_ours:
      kinds = {name: ema}
    elif kinds is None:
      # Those of `vit_jax.load`; the run's own evaluations have a default.
      kinds = {name: False if own else None}
    else:
      kinds = evaluation.weights_of(name, kinds, has_ema=True)
      kinds = {prefix: kind == 'ema' for prefix, kind in kinds.items()}
    for prefix, wanted in kinds.items():
      found = load(wanted)
      source = source or dict(found.weights.source)
      preprocess = preprocess or dict(found.weights.preprocess)
      on_log(f'evaluating {prefix}')
      try:
        numbers = _run(found, section, name, batch_size)
      except Exception as e:
        e.add_note(f'in the evaluation {name}')
        raise
      metrics |= {f'{prefix}/{key}': value for key, value in numbers.items()}
  return Results(metrics, source, preprocess)


def _check_from_file(
  evals: Mapping[str, Mapping[str, Any]], path: str | os.PathLike
) -> None:
  """Raises UserError where a run's files name code outside of this package."""
  problems = []

  def check(name, section, folder='data/sources', export='Source'):
    try:
      if 'name' in section:
        lookup.find(folder, section['name'], export)
      if section.get('ops') is not None:
        ops_language.parse(section['ops'])
    except UserError as e:
      problems.append(f'{name}: {e}')
    for value in section.values():
      for part in value if isinstance(value, list | tuple) else [value]:
        if isinstance(part, Mapping):
          check(name, part)

  for name, section in evals.items():
    check(name, section, 'evaluators', 'Evaluator')
  if problems:
    raise UserError(
      f'the evaluations of {os.fspath(path)} cannot be taken from its files: '
      f'{"; ".join(problems)}. Name the recipe of the run: --config=RECIPE.py'
    )


def _chosen(
  evals: Mapping[str, Mapping[str, Any]], names: Sequence[str] | None
) -> dict[str, Mapping[str, Any]]:
  """Returns the evaluations of these names, in their order."""
  if not evals:
    raise UserError('the config has no evals; name a recipe that has')
  if names is None:
    return dict(evals)
  for name in names:
    if name not in evals:
      near = suggestions.close(name, evals)
      hint = f' (did you mean {near!r}?)' if near else ''
      raise UserError(
        f'no evaluation {name!r}{hint}; there are: {", ".join(evals)}'
      )
  return {name: evals[name] for name in names}


@dataclasses.dataclass
class _Model:
  """Weights, what computes with them, and the parameters on the devices."""

  weights: Weights
  part: run_lib.ModelPart
  on_log: Callable[[str], Any]
  placed: tuple[Any, Any] | None = None  # For which image, parameters.

  def on_devices(self, image: jax.ShapeDtypeStruct | None) -> dict[str, Any]:
    """Returns `{'params': ...}`, resized to images of a shape."""
    if self.placed is not None and self.placed[0] == image:
      return self.placed[1]
    module = self.part.model
    if image is None:  # The evaluator has data of its own, or no images.
      named = self.weights.params
      named = blocks.stack(named) if getattr(module, 'scan', False) else named
      shapes = trees.unflatten(
        {k: jax.ShapeDtypeStruct(x.shape, 'float32') for k, x in named.items()}
      )
    else:
      shapes = jax.eval_shape(
        lambda rng, image: module.init(rng, image, train=False)['params'],
        jax.random.key(0),
        image,
      )
    params = initialize_lib.initialize(
      train_state.sharded({'params': shapes}, self.part.mesh),
      [dict(weights=self.weights)],
      models=self.part.models,
      model_name=self.weights.model['name'],
      on_log=self.on_log,
    )
    self.placed = image, params
    return params


def _run(
  model: _Model, section: dict[str, Any], name: str, batch_size: int
) -> dict[str, float]:
  """Builds the evaluator of a section and runs it on a model."""
  where, weights = f'config.evals.{name}', model.weights
  if section.get('ops') is None and {'data', 'data_train'} & set(section):
    if 'ops' not in weights.preprocess:
      raise UserError(
        f'{where} has no ops, and the weights do not say how images were '
        "prepared. Give ops, such as 'decode|resize(224)' (--ops on the "
        'command line)'
      )
    section = dict(section, ops=weights.preprocess['ops'])
    ops_language.parse(section['ops'], trusted='ops' in weights.trusted)
  evaluator = evaluation.build(
    section,
    model.part.predict,
    model.part.mesh,
    batch_size=batch_size,
    where=where,
  )
  found = getattr(evaluator, 'num_classes', None)
  wanted = weights.model.get('num_classes')
  if found is not None and wanted != found:
    head = f'{wanted} classes' if wanted else 'no head'
    raise UserError(
      f'{where}: the data has {found} classes and the weights have {head}'
    )
  image = None
  for data in evaluation.inputs_of(evaluator, where).values():
    spec = jax.eval_shape(model.part.predict.prepare, data.element_spec())
    if 'image' in spec:
      image = spec['image'].update(shape=(1, *spec['image'].shape[1:]))
  params = model.on_devices(image)
  with jax.transfer_guard('disallow'):
    return evaluator.run(params)


def _model_part(weights: Weights, mesh: jax.sharding.Mesh) -> run_lib.ModelPart:
  if 'device_ops' not in weights.preprocess:
    raise UserError(
      'the weights do not say how images were normalised. Give device_ops, '
      "such as 'normalize(-1, 1)' (--device_ops on the command line)"
    )
  module = build_model(weights)
  device_ops = device_ops_language.parse(
    weights.preprocess['device_ops'], trusted='device_ops' in weights.trusted
  )
  objective = supervised.Objective(module)  # Predicts what the model returns.
  return run_lib.ModelPart(mesh, module, objective, device_ops)
