"""The parts of a run: mesh, model, objective, optimizer, jitted steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

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
from vit_jax.reporting import flops
from vit_jax.training import (
  durations,
  gradients,
  inputs,
  train_state,
  train_step,
)


@dataclasses.dataclass(frozen=True)
class Run:
  """The functions and shapes of a run; no weights yet."""

  mesh: jax.sharding.Mesh
  input: pipeline.TrainInput
  device_ops: device_ops_language.DeviceOp
  model: Any
  objective: Any
  total_steps: int
  batch_spec: dict[str, jax.ShapeDtypeStruct]
  abstract_state: train_state.TrainState
  sharding_report: rules_lib.Report
  init: Callable[[], train_state.TrainState]
  step: Any  # jitted: (state, batch) -> (state, metrics); donates the state
  predict: _forward.Forward  # (weights, batch) -> dict of outputs

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

  def flops_per_step(self) -> int:
    """Returns the floating-point operations of a training step.

    These are `objective.flops(params, batch)`, called with shapes, where the
    objective has this method; otherwise those of three forward passes of
    `predict` (see `reporting.flops`) on `evaluation_spec`.
    """
    if hasattr(self.objective, 'flops'):
      spec = jax.eval_shape(
        functools.partial(self.device_ops, train=True),
        self.batch_spec,
        jax.random.key(0),
      )
      return self.objective.flops(self.abstract_state.params, spec)
    weights = self.weights(self.abstract_state)
    forward = flops.count(self.predict, weights, self.evaluation_spec)
    return flops.TRAINING_FACTOR * forward

  @property
  def evaluation_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch with one view of each image, as in evaluations.

    Of a field with several views, `[B, V, H, W, C]`, that is `[B, H, W, C]`.
    """
    return {
      key: x.update(shape=x.shape[:1] + x.shape[2:]) if len(x.shape) == 5 else x
      for key, x in self.batch_spec.items()
    }


def build(
  *,
  model: Mapping[str, Any],
  objective: Mapping[str, Any],
  input: Mapping[str, Any],
  optimizer: Mapping[str, Any],
  total_steps: int | None,
  total_epochs: float | None,
  seed: int,
  ema: Mapping[str, Any] | None,
  mesh: Mapping[str, int] | None,
  sharding: Mapping[str, Any] | None,
  on_nonfinite: str,
  micro_batches: int,
) -> Run:
  """Builds a run from the sections of a config (see `train.train`).

  Raises:
    UserError: a section that does not fit what it names, or sections that do
      not fit each other (classes, batch and devices, durations).
  """
  sections = dict(
    model=model, objective=objective, input=input, optimizer=optimizer
  )
  for name, section in sections.items():
    if not isinstance(section, lookup.SECTION):
      raise UserError(f'config.{name} is a section with keys; got {section!r}')
  device_mesh = lookup.call(mesh_lib.make_mesh, mesh or {}, 'config.mesh')
  batch_sharding = mesh_lib.batch_sharding(device_mesh)
  train_input = lookup.call(
    pipeline.TrainInput,
    input,
    'config.input',
    seed=seed,
    sharding=batch_sharding,
    # Of the run: no keys for a config.
    process_index=None,
    process_count=None,
  )
  inputs.check_num_classes(
    model.get('num_classes'), train_input.num_classes, 'config.input: '
  )
  steps_per_epoch = train_input.steps_per_epoch
  total = durations.total_steps(total_steps, total_epochs, steps_per_epoch)

  module = lookup.build(
    'models', model, 'Model', where='config.model', trusted=True
  )
  objective = lookup.build(
    'objectives',
    durations.in_steps(objective, steps_per_epoch, 'config.objective'),
    'Objective',
    module,
    where='config.objective',
    trusted=True,
    offered=dict(total_steps=total),
  )
  gradients.check_objective(objective, micro_batches)
  mesh_lib.check_batch_size(
    train_input.batch_size, device_mesh, micro_batches=micro_batches
  )
  batch_spec = {
    key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding)
    for key, x in train_input.element_spec().items()
  }
  ops = device_ops_language.parse(
    train_input.device_ops,
    num_classes=train_input.num_classes,
    roles=train_input.roles,
    trusted=True,
  )
  model_spec = jax.eval_shape(
    functools.partial(ops, train=False), batch_spec, jax.random.key(0)
  )
  if total:
    _check_fields(objective, model_spec)
  branches = jax.eval_shape(
    lambda rng: train_state.init_branches(objective, rng, model_spec),
    jax.random.key(0),
  )
  gradients.check_extra(branches['extra'], micro_batches)
  tx, schedule = lookup.call(
    optimizer_lib.make,
    durations.in_steps(optimizer, steps_per_epoch, 'config.optimizer'),
    'config.optimizer',
    branches['params'],
    total_steps=total,
  )
  options = lookup.call(limits.Options, sharding or {}, 'config.sharding')
  abstract_state, init = train_state.create(
    objective,
    tx,
    model_spec,
    device_mesh,
    seed=seed,
    ema=ema is not None,
    rules=options.rules,
    min_size=options.min_size,
  )
  report = limits.check(abstract_state, device_mesh, options)
  if ema is not None:
    ema = lookup.call(
      train_state.ema_decay,
      durations.in_steps(ema, steps_per_epoch, 'config.ema'),
      'config.ema',
      total_steps=total,
    )
  train_one = train_step.make_train_step(
    objective,
    tx,
    schedule,
    device_ops=ops,
    seed=seed,
    trained=optimizer_lib.trained_names(
      branches['params'], optimizer.get('freeze', ())
    ),
    ema_decay=ema,
    on_nonfinite=on_nonfinite,
    micro_batches=micro_batches,
    mesh=device_mesh,
  )

  def predict(weights, batch):
    others = {k: x for k, x in weights.items() if k != 'params'}
    return objective.predict(weights['params'], batch, **others)

  context = functools.partial(
    activations.use, device_mesh, split_tokens=options.split_tokens
  )

  def train_on_mesh(state, batch):
    with context():
      return train_one(state, batch)

  return Run(
    mesh=device_mesh,
    input=train_input,
    device_ops=ops,
    model=module,
    objective=objective,
    total_steps=total,
    batch_spec=batch_spec,
    abstract_state=abstract_state,
    sharding_report=report,
    init=init,
    step=jax.jit(
      train_on_mesh,
      donate_argnums=0,
      out_shardings=(jax.tree.map(lambda x: x.sharding, abstract_state), None),
      compiler_options=compiler_options.for_mesh(device_mesh),
    ),
    predict=_forward.Forward(
      predict,
      # Evaluation draws nothing; the key only completes the signature.
      lambda batch: ops(batch, jax.random.key(0), train=False),
      context=context,
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
