"""Train once for each of several values and compare the results.

example:
  python -m vit_jax sweep --workdir=runs/rates \\
    --config=configs/finetune.py:model=augreg-B/16,data=cifar100 \\
    --sweep.optimizer.learning_rate=0.003,0.01,0.03

The runs are those of `train`, one after the other, each in a folder of the
workdir that is named after its values. Several --sweep.key=values give all
combinations. If a sweep is stopped, the same command continues it; finished
runs are not trained again. A run that fails (a high learning rate may make the
loss infinite) is marked in the table, and the others go on.
"""

import itertools
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vit_jax.commands import _cli, _config_file
from vit_jax.errors import RunError, UserError
from vit_jax.parallel import preemption
from vit_jax.pretrained.main_evaluation import main_evaluation
from vit_jax.printable import show

_PREFIX = '--sweep.'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a sweep and prints its table; returns the exit code."""
  with preemption.exit_at_once():
    return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> int:
  pairs, rest = _config_file.split(argv, _PREFIX)
  parser = _cli.parser('sweep', __doc__, failure='one of the runs failed')
  parser.add_argument(
    '--workdir',
    required=True,
    type=_cli.folder,
    metavar='FOLDER',
    help='for the folders of the runs',
  )
  parser.add_argument(
    '--metric',
    help='to sort the table by (default: top1 of the main evaluation, such as '
    'val)',
  )
  # For --help: `split` takes these out of the arguments, for any KEY.
  parser.add_argument(
    f'{_PREFIX}KEY',
    metavar='V1,V2',
    help='train with each of these values of config.KEY, such as '
    'optimizer.learning_rate; may be given for several keys',
  )
  config, args = _config_file.parse(parser, rest)
  results = sweep(args.workdir, config, _read_values(pairs), metric=args.metric)
  return 0 if all(results.values()) else 1


def sweep(
  workdir: str,
  config: ml_collections.ConfigDict,
  values: Mapping[str, Sequence[Any]],
  *,
  metric: str | None = None,
) -> dict[str, dict[str, float]]:
  """Trains with every combination of values; prints and returns the results.

  The run with `{'optimizer.learning_rate': 0.01}` is in the folder
  `optimizer.learning_rate=0.01` of the workdir. The results of `train.train`
  are sorted by the metric, the best first (see `evaluation.lower_is_better`),
  and of equals by the `loss` of the same evaluation; {} for a run that failed.

  Args:
    values: for each key of the config, with dots, its values; strings are read
      as on the command line.
    metric: None is the `top1` of the main evaluation, see `main_evaluation`.

  Raises:
    UserError: values that do not fit the config, before anything is trained; a
      config that `train.train` refuses; a metric that there is not.
  """
  # Importing jax takes seconds: a mistyped command should not wait for it.
  from vit_jax import lookup
  from vit_jax.reporting import run_folder
  from vit_jax.training import evaluation, train

  workdir = run_folder.local_folder(workdir)
  configs = _configs(config, values)
  for changed in configs.values():
    lookup.check_keys(train.train, changed, 'config', num_args=1)
  metric = _metric(config, metric)
  results: dict[str, dict[str, float]] = {}
  for i, (label, changed) in enumerate(configs.items(), start=1):
    _say(f'run {i} of {len(configs)}: {label}')
    try:
      results[label] = train.train(str(workdir / label), **changed)
    except RunError as e:
      results[label] = {}
      _say(f'{label} failed: {e}', file=sys.stderr)
      continue
    if metric not in results[label]:
      raise UserError(
        f'{label} has no metric {metric!r}; it has: {", ".join(results[label])}'
      )
  lower = evaluation.lower_is_better(config.evals, metric)
  results = _sorted(results, metric, lower)
  _print(results, metric, workdir)
  return results


def _read_values(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
  """Returns the values of each KEY of `--sweep.KEY=V1,V2`, given once each."""
  names = [name for name, _ in pairs]
  if not pairs or len(set(names)) < len(names):
    raise UserError(
      f'give each key once, as in {_PREFIX}optimizer.learning_rate=0.01,0.03; '
      f'got {", ".join(names) or "none"}'
    )
  return {name: text.split(',') for name, text in pairs}


def _configs(
  config: ml_collections.ConfigDict, values: Mapping[str, Sequence[Any]]
) -> dict[str, dict[str, Any]]:
  """Returns `{name of the folder: sections}` for every combination."""
  configs = {}
  for combination in itertools.product(*values.values()):
    texts = {k: str(v) for k, v in zip(values, combination, strict=True)}
    changed = config.copy_and_resolve_references()
    _config_file.apply(changed, list(texts.items()))
    label = ','.join(f'{name}={text}' for name, text in texts.items())
    label = label.replace('/', '_')
    if label in configs:
      raise UserError(f'the values contain {label} twice')
    configs[label] = _config_file.sections(changed)
  return configs


def _metric(config: ml_collections.ConfigDict, metric: str | None) -> str:
  """Returns the metric to sort by, which one of the evaluations must have."""
  sections = _config_file.sections(config)
  evals = [k for k, v in (sections.get('evals') or {}).items() if v is not None]
  if not evals:
    raise UserError('a sweep compares evaluations, but config.evals has none')
  if metric is None:
    return f'{main_evaluation(sections)}/top1'
  name = metric.partition('/')[0]
  if name.removesuffix('_ema').removesuffix('_params') not in evals:
    raise UserError(
      f'--metric={metric}: expected a number of one of the evaluations '
      f'{", ".join(evals)}, such as {evals[0]}/top1'
    )
  return metric


def _sorted(results, metric: str, lower: bool):
  sign = 1 if lower else -1
  loss_name = f'{metric.rpartition("/")[0]}/loss'

  def place(item):
    value, loss = (item[1].get(k, math.nan) for k in (metric, loss_name))
    return not item[1], math.isnan(value), sign * value, math.isnan(loss), loss

  return dict(sorted(results.items(), key=place))


def _print(results, metric: str, workdir: pathlib.Path) -> None:
  """Prints that metric of all evaluations, and the best run."""
  from vit_jax.reporting import tables

  rows = {}
  for label, numbers in results.items():
    shown = [k for k in numbers if k.split('/')[1:] == metric.split('/')[1:]]
    shown = dict.fromkeys([metric, *shown])
    failed = '' if numbers else ' (failed)'
    rows[label + failed] = {k: numbers[k] for k in shown if k in numbers}
  best, numbers = next(iter(results.items()))
  if not numbers:
    raise RunError('every run of the sweep failed; see above')
  if _is_first():
    tables.print_metrics(f'sorted by {metric}', rows)
    print(f'the best, {metric} {numbers[metric]:.4f}, is in')
    show(workdir / best)


def _say(line: str, **options) -> None:
  if _is_first():
    show(line, flush=True, **options)


def _is_first() -> bool:
  import jax

  return jax.process_index() == 0
