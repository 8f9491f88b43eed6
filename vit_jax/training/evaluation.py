"""Evaluations and pictures of a run: their schedule, weights and results."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vit_jax import lookup
from vit_jax.data import pipeline
from vit_jax.errors import UserError
from vit_jax.reporting import metrics, progress as progress_lib
from vit_jax.reporting.tables import print_metrics
from vit_jax.training import durations, inputs, run as run_lib, train_state

_WEIGHTS = ('params', 'ema')
_MAX_CLASSES = 50  # Lines of a table on the terminal.
# Words in the names of metrics for which less is better, of evaluators that
# declare none.
_LOWER_IS_BETTER = frozenset(
  ('loss', 'error', 'ece', 'nll', 'mse', 'rmse', 'mae', 'perplexity', 'fid')
)


@dataclasses.dataclass(frozen=True)
class Job:
  """An evaluator with its schedule and weights."""

  name: str
  evaluator: Any
  every_steps: int | None  # None is only at the end of the run.
  weights: dict[str, str]  # 'params' or 'ema' by the prefix of its metrics.


def make_jobs(run: run_lib.Run, config: Mapping[str, Any]) -> list[Job]:
  """Builds the evaluators of `config.evals`; a section that is None is off.

  Raises:
    UserError: a section that does not fit its evaluator, the model or the run.
  """
  jobs = []
  for name, section in sections(config['evals'] or {}, 'config.evals').items():
    where = f'config.evals.{name}'
    section = durations.in_steps(section, run.input.steps_per_epoch, where)
    every_steps = section.pop('every_steps', None)
    weights = section.pop('weights', 'params')
    problem = durations.cadence_problem(f'{where}.every_steps', every_steps)
    if problem:
      raise UserError(problem)
    weights = weights_of(name, weights, has_ema=config['ema'] is not None)
    evaluator = build(
      section,
      run.predict,
      run.mesh,
      batch_size=run.input.batch_size,
      where=where,
    )
    # Few-shot, k-NN and probes bring classes of their own.
    found = getattr(evaluator, 'num_classes', None)
    num_classes = config['model'].get('num_classes')
    inputs.check_num_classes(num_classes, found, f'{where}: ')
    for data in inputs_of(evaluator, where).values():
      image = data.element_spec().get('image')
      if image is not None:
        image = jax.ShapeDtypeStruct(image.shape[1:], image.dtype)
        inputs.check_image(run, image, where)
      inputs.check_outputs(
        run, data.element_spec(), getattr(evaluator, 'outputs', ()), where
      )
    jobs.append(Job(name, evaluator, every_steps, weights))
  names = [prefix for job in jobs for prefix in job.weights]
  # Training's own metrics are train/...
  twice = {name for name in names if names.count(name) > 1 or name == 'train'}
  if twice:
    raise UserError(
      f'config.evals: two kinds of metrics would be called '
      f'{", ".join(sorted(twice))}/...; give the evaluation another name'
    )
  return jobs


def build(
  section: Mapping[str, Any],
  forward: Any,
  mesh: jax.sharding.Mesh,
  *,
  batch_size: int,
  where: str,
) -> Any:
  """Returns the evaluator of a section without schedule and weights.

  `batch_size` is for an evaluator that takes one where the section has none.

  Raises:
    UserError: a section that does not fit its evaluator.
  """
  return lookup.build(
    'evaluators',
    section,
    'Evaluator',
    forward,
    mesh,
    where=where,
    trusted=True,
    offered={} if 'batch_size' in section else dict(batch_size=batch_size),
  )


def inputs_of(evaluator: Any, where: str) -> dict[str, pipeline.EvalInput]:
  """Returns the inputs that an evaluator declares, by their keys.

  Raises:
    UserError: its attribute `inputs` is something else.
  """
  found = getattr(evaluator, 'inputs', None) or {}
  if not isinstance(found, Mapping) or not all(
    isinstance(x, pipeline.EvalInput) for x in found.values()
  ):
    raise UserError(
      f'{where}: the attribute inputs of {type(evaluator).__name__} is a dict '
      f'of pipeline.EvalInput by key of the section; got {found!r}'
    )
  return dict(found)


def lower_is_better(
  evals: Mapping[str, Mapping[str, Any] | None], metric: str
) -> bool:
  """Returns whether less of a metric such as 'val/loss' is better.

  The evaluator's `lower_is_better` decides; of one that has none, the words of
  the metric's name do: loss, error, ece, mse and the like.
  """
  prefix, _, name = metric.partition('/')
  name = name.partition('/')[0]  # Without a class.
  for job in (prefix, *(prefix.removesuffix(f'_{x}') for x in _WEIGHTS)):
    section = evals.get(job)
    if section is not None and 'name' in section:
      kind = lookup.find(
        'evaluators', section['name'], 'Evaluator', trusted=True
      )
      if (names := getattr(kind, 'lower_is_better', None)) is not None:
        return name in names
      break
  return not _LOWER_IS_BETTER.isdisjoint(name.split('_'))


def sections(
  named: Mapping[str, Mapping[str, Any] | None], where: str
) -> dict[str, Mapping[str, Any]]:
  """Returns the sections that are not None, by name.

  Raises:
    UserError: a name that no file could have, or no section.
  """
  for name, section in named.items():
    if not isinstance(name, str) or not re.fullmatch(r'\w[\w.-]*', name):
      raise UserError(
        f'{where}: {name!r} cannot be a name; use letters, digits, _, - and .'
      )
    if section is not None and not isinstance(section, lookup.SECTION):
      raise UserError(
        f'{where}.{name} is a section with keys, or None; got {section!r}'
      )
  return {name: x for name, x in named.items() if x is not None}


def num_examples(run: run_lib.Run, jobs: Sequence[Job]) -> dict[str, int]:
  """Returns the number of images by the place in the config."""
  found = {'config.input': run.input.num_examples}
  for job in jobs:
    where = f'config.evals.{job.name}'
    for key, data in inputs_of(job.evaluator, where).items():
      place = where if key == 'data' else f'{where}.{key}'
      found[place] = data.num_examples
  return found


def evaluate(
  jobs: Sequence[Job],
  run: run_lib.Run,
  state: train_state.TrainState,
  step: int,
  progress: progress_lib.Progress,
) -> dict[str, float]:
  """Returns `{'val/top1': ...}`; for a job's second weights `val_ema/top1`."""
  results = {}
  for job in jobs:
    for prefix, weights in job.weights.items():
      computed_with = run.weights(state, ema=weights == 'ema')
      try:
        with progress.status(f'evaluating {prefix}'):
          numbers = job.evaluator.run(computed_with)
      except Exception as e:
        e.add_note(f'in the evaluator {job.name} at step {step}')
        raise
      results |= {f'{prefix}/{key}': value for key, value in numbers.items()}
  return results


def make_pictures(
  run: run_lib.Run, config: Mapping[str, Any]
) -> dict[str, Any]:
  """Builds the pictures of a config by name; a section that is None is off."""
  built, pictures = {}, config['pictures'] or {}
  for name, section in sections(pictures, 'config.pictures').items():
    where = f'config.pictures.{name}'
    built[name] = lookup.build(
      'visualize',
      section,
      'Picture',
      run.predict,
      run.mesh,
      where=where,
      trusted=True,
    )
    image = getattr(built[name], 'image', None)
    if image is not None:
      inputs.check_image(run, image, where)
  return built


def draw(
  pictures: Mapping[str, Any],
  run: run_lib.Run,
  state: train_state.TrainState,
  step: int,
  workdir: pathlib.Path,
  writer: metrics.MetricWriter,
) -> None:
  """Draws with the averaged weights, if any, into PNG and event files."""
  weights = run.weights(state, ema=state.ema_params is not None)
  for name, picture in pictures.items():
    path = workdir / f'{name}.png'
    picture.draw(weights, path)
    writer.write_image(step, name, path)


def one_line(step: int, results: Mapping[str, float]) -> str:
  """Returns the line of the log for an evaluation."""
  shown = [k for k in results if k.rpartition('/')[2] in ('top1', 'loss')]
  facts = (f'{k} {results[k]:.4f}' for k in shown or list(results)[:4])
  return '  '.join([f'step {step:,}:', *facts])


def print_results(results: Mapping[str, float], title: str) -> None:
  """Prints a line for each evaluator, and tables of classes if there are any.

  `val/top1/cat` is a metric of one class.
  """
  tables: dict[str, dict[str, dict[str, float]]] = {'': {}}
  for name, value in results.items():
    row, _, metric = name.partition('/')
    metric, _, label = metric.partition('/')
    table, row = (row, label) if label else ('', row)
    tables.setdefault(table, {}).setdefault(row, {})[metric] = value
  if rows := tables.pop(''):
    print_metrics(title, rows)
  for name, classes in tables.items():
    worst = sorted(classes, key=lambda label: min(classes[label].values()))
    title = f'{name}, {len(worst)} classes'
    if len(worst) > _MAX_CLASSES:
      title += f', the worst {_MAX_CLASSES}'
    print_metrics(title, {x: classes[x] for x in worst[:_MAX_CLASSES]})


def weights_of(name: str, weights: Any, *, has_ema: bool) -> dict[str, str]:
  """Returns the weights that an evaluation uses, by the prefix of its metrics.

  For 'val' with both that is `{'val': 'params', 'val_ema': 'ema'}`.
  """
  given = weights
  weights = (weights,) if isinstance(weights, str) else weights
  fits = isinstance(weights, list | tuple) and all(
    x in _WEIGHTS and (x != 'ema' or has_ema) for x in weights
  )
  if not fits or not weights or len(set(weights)) < len(weights):
    raise UserError(
      f"config.evals.{name}.weights={given!r}: expected 'params', 'ema' (with "
      'config.ema set), or a list of both'
    )
  return {f'{name}_{x}' if i else name: x for i, x in enumerate(weights)}
