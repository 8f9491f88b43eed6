"""Find a learning rate: train some steps at rates that grow exponentially.

example:
  python -m vit_jax lr_find --config=configs/quickstart.py --min=1e-5 --max=1

The steps are those of `train` with the recipe's optimizer, weights and data;
only its schedule is replaced. Nothing but the picture is written. It ends early
where the loss is 4 times its lowest, or not finite. The suggestion is the rate
at which the smoothed loss falls fastest per factor of the rate, before its
lowest point (Smith, arXiv:1506.01186; the 'steep' rule of fastai): a peak rate
to begin with, for this batch size. With --format=json the last line is JSON.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.commands import _cli, _config_file
from vit_jax.errors import RunError, UserError

_DIVERGED = 4  # Times the lowest smoothed loss; fastai's.
_MIN_STEPS = 10
_NUM_ROWS = 12  # Of the table.
_SCHEDULE = (
  'schedule',
  'learning_rate',
  'end_learning_rate',
  'timescale',
  'warmup',
  'cooldown',
  'stair',
)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints and draws the losses by rate; returns the exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> None:
  parser = _cli.parser(
    'lr_find', __doc__, failure='the loss fell at no rate, or no step was good'
  )
  add = parser.add_argument
  add('--min', type=float, default=1e-6, help='first rate (default: 1e-6)')
  add('--max', type=float, default=1.0, help='last rate (default: 1)')
  add('--steps', type=int, default=100, help='of training (default: 100)')
  add(
    '--output',
    default='lr_find.png',
    metavar='FILE',
    help='the picture (default: %(default)s)',
  )
  add('--format', choices=('table', 'json'), default='table')
  config, args = _config_file.parse(parser, argv)
  if not 0 < args.min < args.max < math.inf:
    raise UserError(
      f'--min={args.min:g} --max={args.max:g}: expected 0 < min < max'
    )
  if args.steps < _MIN_STEPS:
    raise UserError(f'--steps={args.steps}: expected {_MIN_STEPS} or more')
  # Importing jax takes seconds: a mistyped command should not wait for it.
  from vit_jax import lookup
  from vit_jax.training import train

  sections = _config_file.sections(config)
  lookup.check_keys(train.train, sections, 'config', num_args=1)
  rates, losses = measure(
    sections, low=args.min, high=args.max, steps=args.steps
  )
  smoothed = smooth(losses)
  best = suggest(rates, smoothed)
  path = _draw(rates, losses, smoothed, best, args.output)
  if best is None:
    raise RunError(
      f'the smoothed loss fell at no rate from {rates[0]:.2g} to '
      f'{rates[-1]:.2g} (see {path}): lower --min, or check the data'
    )
  if args.format == 'json':
    result = dict(
      suggested=rates[best], rates=rates, losses=losses, picture=str(path)
    )
    print(json.dumps(result))
    return
  from vit_jax.reporting import tables

  every = max(1, len(rates) // _NUM_ROWS)
  shown = sorted({*range(0, len(rates), every), best, len(rates) - 1})
  tables.print_table(
    [
      (
        f'{rates[i]:.3g}',
        f'{losses[i]:.4f}',
        f'{smoothed[i]:.4f}',
        'steepest descent' if i == best else '',
      )
      for i in shown
    ],
    header=('learning rate', 'loss', 'smoothed', ''),
  )
  print(
    f'suggested: --config.optimizer.learning_rate={rates[best]:.2g} '
    f'(where the smoothed loss falls fastest; picture: {path})'
  )


def measure(
  config: Mapping[str, Any], *, low: float, high: float, steps: int
) -> tuple[list[float], list[float]]:
  """Returns the rate and the loss of each step, from `low` towards `high`.

  Update k = 1 .. steps has the rate low * (high / low) ** ((k - 1) / (steps -
  1)); its loss is that before it. Steps without a finite loss are left out.

  Args:
    config: the keys of `train.train`; its schedule is replaced.

  Raises:
    RunError: no loss was finite.
  """
  import jax
  import jax.numpy as jnp

  from vit_jax.data import pipeline
  from vit_jax.parallel import mesh as mesh_lib
  from vit_jax.training import session, train

  def rate(k):
    share = (jnp.float32(k) - 1) / (steps - 1)
    return low * jnp.exp(share * math.log(high / low))

  optimizer = {
    key: value
    for key, value in config['optimizer'].items()
    if key.removesuffix('_steps').removesuffix('_epochs') not in _SCHEDULE
  }
  config = dict(
    config,
    optimizer=optimizer | dict(learning_rate=1.0, schedule='constant'),
    total_steps=steps,
    total_epochs=None,
    ema=None,
  )
  run = train.build(config, rate=rate)
  state = session.initialize(
    run,
    dict(config, init_from=config.get('init_from') or ()),
    lambda line: print(line, file=sys.stderr),
  )
  batches = pipeline.prefetch_to_device(
    run.input.batches(), mesh_lib.batch_sharding(run.mesh)
  )
  rates, losses = [], []
  with _cli.progress('rates', steps) as advance:
    for _ in range(steps):
      state, metrics = run.step(state, next(batches))
      metrics = jax.device_get(metrics)
      advance()
      loss = float(metrics['loss'])
      if not math.isfinite(loss):
        break
      if not math.isfinite(metrics['grad_norm']) and 'loss_scale' in metrics:
        continue  # Skipped to lower the loss scale.
      rates.append(float(metrics['learning_rate']))
      losses.append(loss)
      if len(losses) > _MIN_STEPS:
        smoothed = smooth(losses)
        if smoothed[-1] > _DIVERGED * smoothed.min():
          break
  batches.close()
  if len(rates) < 2:
    raise RunError(
      f'the loss was not finite at the rate {low:g}: lower --min, or check the '
      'data with python -m vit_jax preflight'
    )
  return rates, losses


def smooth(losses: Sequence[float]):
  """Returns running means, weighted by a triangle of a tenth of the steps."""
  import numpy as np

  half = max(1, len(losses) // 10)
  kernel = np.concatenate([np.arange(1, half + 1), np.arange(half - 1, 0, -1)])
  counts = np.convolve(np.ones(len(losses)), kernel, 'same')
  return np.convolve(np.asarray(losses), kernel, 'same') / counts


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> int | None:
  """Returns the number of the step whose rate the docstring above suggests.

  None where the loss does not fall before its lowest point.
  """
  import numpy as np

  slopes = np.gradient(np.asarray(smoothed), np.log(rates))
  falling = slopes[: int(np.argmin(smoothed)) + 1]
  best = int(np.argmin(falling))
  return best if falling[best] < 0 else None


def _draw(rates, losses, smoothed, best: int | None, path: str):
  """Writes the picture and returns its path."""
  from vit_jax.visualize import _figure

  figure = _figure.new(6.4, 3.8)
  axes = figure.subplots()
  axes.plot(rates, losses, color='#0969da', alpha=0.25, linewidth=0.8)
  axes.plot(rates, smoothed, color='#0969da', linewidth=1.6, label='smoothed')
  if best is not None:
    label = f'suggested: {rates[best]:.2g}'
    axes.plot(rates[best], smoothed[best], 'o', color='#cf222e', label=label)
  # A last loss that explodes must not hide the fall before it.
  low, first = min(smoothed), smoothed[0]
  axes.set_ylim(low - 0.1 * (first - low + 1e-9), max(first, low) + first - low)
  axes.set_xscale('log')
  axes.set_xlabel('learning rate', size=9, color=_figure.PALE)
  axes.set_title('training loss', loc='left', size=11, weight='bold')
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y', color='#eaeef2')
  axes.legend(fontsize=8, frameon=False)
  return _figure.save(figure, path)
