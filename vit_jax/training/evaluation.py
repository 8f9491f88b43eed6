"""Evaluations and pictures of a run: their schedule, weights and results."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.reporting import metrics, progress as progress_lib, tables
from vit_jax.training import inputs, run as run_lib, train_state

_WEIGHTS = ('params', 'ema')
_MOST_CLASSES = 50  # Lines of a table on the terminal.


@dataclasses.dataclass(frozen=True)
class Job:
  """An evaluator, when it runs and on which weights."""

  name: str
  evaluator: Any
  every_steps: int | None  # None is only at the end of the run.
  weights: tuple[str, ...]

  @property
  def prefixes(self) -> tuple[str, ...]:
    """With which its metrics begin, one for each of its weights."""
    others = [f'{self.name}_{weights}' for weights in self.weights[1:]]
    return (self.name, *others)

  def is_due(self, step: int) -> bool:
    return bool(self.every_steps) and step % self.every_steps == 0


def make_jobs(
  evals: Mapping[str, Mapping[str, Any]],
  run: run_lib.Run,
  *,
  model: Mapping[str, Any],
  has_ema: bool,
) -> list[Job]:
  """Builds the evaluators of a config.

  Args:
    evals: `config.evals`, see `train.train`; a section that is None is off.
    run: whose predictions are evaluated.
    model: `config.model`, for its number of classes.
    has_ema: whether the run averages its weights.

  Raises:
    UserError: a section that does not fit its evaluator, the model or the run.
  """
  jobs = []
  for name, section in sections(evals, 'config.evals').items():
    where = f'config.evals.{name}'
    section = run_lib.in_steps(section, run.input.steps_per_epoch, where)
    section.setdefault('batch_size', run.input.batch_size)
    every_steps = section.pop('every_steps', None)
    weights = section.pop('weights', 'params')
    if problem := run_lib.cadence_problem(f'{where}.every_steps', every_steps):
      raise UserError(problem)
    weights = _weights(weights, where, has_ema)
    evaluator = lookup.build(
      'evaluators',
      section,
      'Evaluator',
      run.predict,
      run.mesh,
      where=where,
      trusted=True,
    )
    # Evaluators that score the model's own classes have an input; few-shot,
    # k-NN and probes bring classes of their own.
    if hasattr(evaluator, 'input'):
      run_lib.check_num_classes(model, evaluator.input, where)
      image = evaluator.input.element_spec()['image']
      image = jax.ShapeDtypeStruct(image.shape[1:], image.dtype)
      _check_image(image, run, where)
    jobs.append(Job(name, evaluator, every_steps, weights))
  names = [prefix for job in jobs for prefix in job.prefixes]
  # Training's own metrics are train/...
  twice = {name for name in names if names.count(name) > 1 or name == 'train'}
  if twice:
    raise UserError(
      f'config.evals: two kinds of metrics would be called '
      f'{", ".join(sorted(twice))}/...; give the evaluation another name'
    )
  return jobs


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
  """Returns how many images there are, by the place in the config."""
  found = {'config.input': run.input.num_examples}
  for job in jobs:
    if hasattr(job.evaluator, 'input'):
      found[f'config.evals.{job.name}'] = job.evaluator.input.num_examples
  return found


def evaluate(
  jobs: Sequence[Job],
  run: run_lib.Run,
  state: train_state.TrainState,
  step: int,
  progress: progress_lib.Progress,
) -> dict[str, float]:
  """Returns `{'val/top1': ...}`; of a job's second weights `val_ema/top1`."""
  results = {}
  for job in jobs:
    for weights, prefix in zip(job.weights, job.prefixes, strict=True):
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
  pictures: Mapping[str, Mapping[str, Any]], run: run_lib.Run
) -> dict[str, Any]:
  """Builds the pictures of a config by name; a section that is None is off."""
  built = {}
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
      _check_image(image, run, where)
  return built


def draw(
  pictures: Mapping[str, Any],
  run: run_lib.Run,
  state: train_state.TrainState,
  step: int,
  workdir: pathlib.Path,
  writer: metrics.MetricWriter,
) -> None:
  """Draws with the averaged weights, if there are any, for eye and events."""
  weights = run.weights(state, ema=state.ema_params is not None)
  for name, picture in pictures.items():
    path = picture.draw(weights, workdir / f'{name}.png')
    writer.write_image(step, name, path)


def _check_image(
  image: jax.ShapeDtypeStruct, run: run_lib.Run, where: str
) -> None:
  inputs.check_images(
    run.predict, run.weights(run.abstract_state), run.batch_spec, image, where
  )


def one_line(step: int, results: Mapping[str, float]) -> str:
  """Returns what the log says of an evaluation."""
  shown = [k for k in results if k.rpartition('/')[2] in ('top1', 'loss')]
  facts = (f'{k} {results[k]:.4f}' for k in shown or list(results)[:4])
  return '  '.join([f'step {step:,}:', *facts])


def print_results(results: Mapping[str, float], step: int) -> None:
  """Prints a line for each evaluator and a table of classes if there is one."""
  rows: dict[str, dict[str, float]] = {}
  classes: dict[str, dict[str, dict[str, float]]] = {}
  for name, value in results.items():
    row, _, metric = name.partition('/')
    metric, _, label = metric.partition('/')
    if label:
      classes.setdefault(row, {})[label] = {metric: value}
    else:
      rows.setdefault(row, {})[metric] = value
  if rows:
    tables.print_metrics(f'step {step:,}', rows)
  for row, labels in classes.items():
    worst = sorted(labels, key=lambda label: min(labels[label].values()))
    title = f'{row}, {len(worst)} classes'
    if len(worst) > _MOST_CLASSES:
      title += f', the worst {_MOST_CLASSES}'
    shown = {label: labels[label] for label in worst[:_MOST_CLASSES]}
    tables.print_metrics(title, shown)


def _weights(weights: Any, where: str, has_ema: bool) -> tuple[str, ...]:
  """Returns the weights that an evaluation shall use, the first one first."""
  given = weights
  weights = (weights,) if isinstance(weights, str) else weights
  fits = isinstance(weights, list | tuple) and all(
    x in _WEIGHTS and (x != 'ema' or has_ema) for x in weights
  )
  if not fits or not weights or len(set(weights)) < len(weights):
    raise UserError(
      f"{where}.weights={given!r}: expected 'params', 'ema' (with config.ema "
      'set), or a list of both'
    )
  return tuple(weights)
