"""The parts of a run: mesh, model, objective, optimizer, jitted steps."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from vit_jax import lookup
from vit_jax.data import device_ops_language, pipeline
from vit_jax.errors import UserError
from vit_jax.objectives import _forward
from vit_jax.optim import chain as optimizer_lib
from vit_jax.parallel import (
  activations,
  compiler_options,
  limits,
  mesh as mesh_lib,
  rules as rules_lib,
)
from vit_jax.reporting import flops, run_loggers
from vit_jax.training import (
  durations,
  gradients,
  inputs,
  loss_scale as loss_scale_lib,
  train_state,
  train_step,
)


@dataclasses.dataclass(frozen=True)
class ModelPart:
  """A model and its objective on a mesh: what evaluation needs of a run."""

  mesh: jax.sharding.Mesh
  model: Any  # The flax module.
  objective: Any
  device_ops: device_ops_language.DeviceOp
  split_tokens: bool = False  # See `activations.use`.

  @functools.cached_property
  def predict(self) -> _forward.Forward:
    """The forward pass: (weights, batch) -> dict of outputs."""

    def predict(weights, batch):
      others = {k: x for k, x in weights.items() if k != 'params'}
      return self.objective.predict(weights['params'], batch, **others)

    def device_ops(batch):
      # Evaluation draws nothing; the key only completes the signature.
      return self.device_ops(batch, jax.random.key(0), train=False)

    return _forward.Forward(predict, device_ops, context=self.tracing)

  def tracing(self) -> contextlib.AbstractContextManager[None]:
    """Returns the context in which functions of the model are traced."""
    return activations.use(self.mesh, split_tokens=self.split_tokens)

  def weights(
    self, state: train_state.TrainState, *, ema: bool = False
  ) -> dict[str, Any]:
    """Returns what `predict` computes with, see `train_state.weights`."""
    return train_state.weights(self.objective, state, ema=ema)

  @property
  def models(self) -> dict[str, Any]:
    """The flax modules by the folder of the state that has their parameters.

    `objective.models()` returns them where the objective has more modules than
    that of `config.model`, or its parameters elsewhere than in `params`.
    """
    if hasattr(self.objective, 'models'):
      return self.objective.models()
    return {'params': self.model}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(ModelPart):
  """The functions and shapes of a run; no weights yet."""

  input: pipeline.TrainInput
  total_steps: int
  batch_spec: dict[str, jax.ShapeDtypeStruct]
  abstract_state: train_state.TrainState
  sharding_report: rules_lib.Report
  init: Callable[[], train_state.TrainState]
  step: Any  # jitted: (state, batch) -> (state, metrics); donates the state

  def flops_per_step(self) -> int:
    """Returns the floating-point operations of a training step.

    These are `objective.flops(params, batch)`, called with shapes, where the
    objective has this method; otherwise those of three forward passes of
    `predict` (see `reporting.flops`).
    """
    if hasattr(self.objective, 'flops'):
      spec = jax.eval_shape(
        functools.partial(self.device_ops, train=True),
        self.batch_spec,
        jax.random.key(0),
      )
      return self.objective.flops(self.abstract_state.params, spec)
    # As in evaluations, one view of each image: of [B, V, H, W, C] the first.
    spec = {
      key: x.update(shape=x.shape[:1] + x.shape[2:]) if len(x.shape) == 5 else x
      for key, x in self.batch_spec.items()
    }
    weights = self.weights(self.abstract_state)
    return flops.TRAINING_FACTOR * flops.count(self.predict, weights, spec)


def build(
  config: Mapping[str, Any], *, rate: Callable[[Any], Any] | None = None
) -> Run:
  """Builds a run from a config with all keys of `train.train`.

  Args:
    config: its sections.
    rate: by update number, from 1: multiplies the learning rate of a config
      whose own is 1, as `lr_find` needs it.

  Raises:
    UserError: a section that does not fit what it names, or sections that do
      not fit each other (classes, batch and devices, durations).
  """
  for name in ('model', 'objective', 'input', 'optimizer'):
    if not isinstance(section := config[name], lookup.SECTION):
      raise UserError(f'config.{name} is a section with keys; got {section!r}')
  run_loggers.sections(config['loggers'])
  mesh = lookup.call(mesh_lib.make_mesh, config['mesh'] or {}, 'config.mesh')
  options = lookup.call(
    limits.Options, config['sharding'] or {}, 'config.sharding'
  )
  data = lookup.call(
    pipeline.TrainInput,
    config['input'],
    'config.input',
    seed=config['seed'],
    sharding=mesh_lib.batch_sharding(mesh),
  )
  total_steps = durations.total_steps(
    config['total_steps'], config['total_epochs'], data.steps_per_epoch
  )
  part = _model_part(config, data, mesh, options, total_steps)
  return _add_training(part, config, data, options, total_steps, rate)


def _model_part(
  config: Mapping[str, Any],
  data: pipeline.TrainInput,
  mesh: jax.sharding.Mesh,
  options: limits.Options,
  total_steps: int,
) -> ModelPart:
  inputs.check_num_classes(
    config['model'].get('num_classes'), data.num_classes, 'config.input: '
  )
  model = lookup.build(
    'models', config['model'], 'Model', where='config.model', trusted=True
  )
  where = 'config.objective'
  section = durations.in_steps(config['objective'], data.steps_per_epoch, where)
  with durations.as_written(config['objective']):
    objective = lookup.build(
      'objectives',
      section,
      'Objective',
      model,
      where=where,
      trusted=True,
      offered=dict(total_steps=total_steps),
    )
  device_ops = device_ops_language.parse(
    data.device_ops,
    num_classes=data.num_classes,
    roles=data.roles,
    trusted=True,
  )
  return ModelPart(mesh, model, objective, device_ops, options.split_tokens)


def _add_training(
  part: ModelPart,
  config: Mapping[str, Any],
  data: pipeline.TrainInput,
  options: limits.Options,
  total_steps: int,
  rate: Callable[[Any], Any] | None,
) -> Run:
  """Returns a run with the state, its optimizer, and the step of a part."""
  mesh, objective = part.mesh, part.objective
  micro_batches = config['micro_batches']
  gradients.check_objective(objective, micro_batches)
  mesh_lib.check_batch_size(data.batch_size, mesh, micro_batches=micro_batches)
  batch_spec = {
    key: x.update(sharding=mesh_lib.batch_sharding(mesh))
    for key, x in data.element_spec().items()
  }
  model_spec = jax.eval_shape(part.predict.prepare, batch_spec)
  if total_steps:
    _check_fields(objective, model_spec)
  branches = jax.eval_shape(
    lambda rng: train_state.init_branches(objective, rng, model_spec),
    jax.random.key(0),
  )
  gradients.check_extra(branches['extra'], micro_batches)

  def call(function, name, *args, **kwargs):
    where = f'config.{name}'
    section = durations.in_steps(config[name], data.steps_per_epoch, where)
    kwargs['total_steps'] = total_steps
    with durations.as_written(config[name]):
      return lookup.call(function, section, where, *args, **kwargs)

  tx, schedule = call(
    optimizer_lib.make,
    'optimizer',
    branches['params'],
    roles=getattr(part.model, 'ROLES', None),
  )
  if rate is not None:
    # optax counts updates from 0.
    scale = optax.scale_by_schedule(lambda count: rate(count + 1))
    tx, schedule = optax.chain(tx, scale), rate
  has_ema = config['ema'] is not None
  loss_scale = loss_scale_lib.make(config['loss_scale'])
  state, init = train_state.create(
    objective,
    tx,
    model_spec,
    mesh,
    seed=config['seed'],
    ema=has_ema,
    rules=options.rules,
    min_size=options.min_size,
    loss_scale=loss_scale,
  )
  report = limits.check(state, mesh, options)
  step = train_step.make_train_step(
    objective,
    tx,
    schedule,
    device_ops=part.device_ops,
    seed=config['seed'],
    trained=optimizer_lib.trained_names(
      state.params, config['optimizer'].get('freeze', ())
    ),
    ema_decay=call(train_state.ema_decay, 'ema') if has_ema else None,
    on_nonfinite=config['on_nonfinite'],
    micro_batches=micro_batches,
    mesh=mesh,
    loss_scale=loss_scale,
  )

  def train_on_mesh(state, batch):
    with part.tracing():
      return step(state, batch)

  return Run(
    **{x.name: getattr(part, x.name) for x in dataclasses.fields(part)},
    input=data,
    total_steps=total_steps,
    batch_spec=batch_spec,
    abstract_state=state,
    sharding_report=report,
    init=init,
    step=jax.jit(
      train_on_mesh,
      donate_argnums=0,
      out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
      compiler_options=compiler_options.for_mesh(mesh),
    ),
  )


def _check_fields(objective: Any, batch: Mapping[str, Any]) -> None:
  """Raises UserError where the loss needs fields that the batch lacks."""
  missing = sorted(set(getattr(objective, 'fields', ())) - set(batch))
  if missing:
    raise UserError(
      f'config.input: {type(objective).__module__} needs the fields {missing}, '
      f'and the examples have {sorted(batch)}: check the keys of the data '
      'section and the ops'
    )
