"""Training and evaluation curves of runs, from metrics.jsonl."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.errors import UserError
from vit_jax.visualize import _figure

METRICS = ('loss', 'top1', 'learning_rate')

_WIDTH, _HEIGHT = 3.9, 3.2  # Inches of a panel.
_COLORS = ('#0969da', '#cf222e', '#1a7f37', '#8250df', '#bc4c00', '#6e7781')
_FRACTIONS = ('top1', 'top5')
_MAX_POINTS = 60  # Longer training curves are smoothed, over a 20th of them.

Curve = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(eq=False)
class Picture:
  """The curves of the run that draws it; `draw` compares several runs.

  Args:
    predict, mesh: as every picture gets them; not used.
    metrics: see `draw`.
  """

  predict: Any
  mesh: Any
  _: dataclasses.KW_ONLY
  metrics: Sequence[str] = METRICS

  def draw(self, params: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a PNG file of the run in whose folder `path` is; see `draw`."""
    del params
    path = pathlib.Path(path)
    if jax.process_index() == 0:
      draw({path.parent.name: path.parent}, path, metrics=self.metrics)
    return path


def read(workdir: str | os.PathLike[str]) -> dict[str, Curve]:
  """Returns the steps and values of every metric of a run, by name.

  The folder may also be its metrics.jsonl. A value that was not finite is NaN.

  Raises:
    UserError: there is none, or it is damaged.
  """
  path = pathlib.Path(workdir).expanduser()
  path = path / 'metrics.jsonl' if path.is_dir() else path
  points: dict[str, list[tuple[int, float]]] = {}
  number = 0
  try:
    with path.open() as file:
      for line in file:
        number += 1
        row = json.loads(line)
        step = row.pop('step')
        for name, value in row.items():
          value = np.nan if value is None else float(value)
          points.setdefault(name, []).append((step, value))
  except OSError as e:
    raise UserError(f'no metrics of a run in {workdir}: {e}') from e
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f'{path}, line {number}: not a row of metrics: {e}') from e
  return {
    name: tuple(map(np.asarray, zip(*pairs, strict=True)))
    for name, pairs in points.items()
  }


def draw(
  runs: Mapping[str, str | os.PathLike[str]],
  path: str | os.PathLike[str],
  *,
  metrics: Sequence[str] = METRICS,
) -> pathlib.Path:
  """Writes the picture as a PNG file, atomically, and returns its path.

  There is a panel for each metric, with the curves of training, thin, and of
  evaluations, with a dot at each. Of a single run these differ in colour; of
  several each run has its colour. Long training curves are pale behind their
  running means.

  Args:
    runs: the folders of the runs (or their metrics.jsonl) by their labels.
    path: of the PNG file.
    metrics: the last parts of names in metrics.jsonl, as in 'loss' for
      `train/loss` and `val/loss`. Curves without a finite value are left out,
      and so are panels without curves.

  Raises:
    UserError: a run has no metrics, or none of the runs has any of these.
  """
  curves = {label: read(workdir) for label, workdir in runs.items()}
  panels = dict.fromkeys(metrics, ())
  for label, run in curves.items():
    for name, curve in run.items():
      # A metric of one class, `val/top1/cat`, ends otherwise.
      prefix, _, last = name.rpartition('/')
      if last in panels and np.isfinite(curve[1]).any():
        panels[last] += ((label, prefix, curve),)
  panels = {metric: lines for metric, lines in panels.items() if lines}
  if not panels:
    names = [name for run in curves.values() for name in run]
    known = sorted({name.rpartition('/')[2] for name in names})
    raise UserError(
      f'no finite values of {", ".join(metrics)} in the metrics of '
      f'{", ".join(runs)}; there are {", ".join(known) or "none at all"}'
    )
  figure = _figure.new(_WIDTH * len(panels), _HEIGHT)
  grid = figure.subplots(1, len(panels), squeeze=False)
  for axes, (metric, lines) in zip(grid.flat, panels.items(), strict=True):
    _draw_panel(axes, metric, lines, several=len(runs) > 1)
    _decorate(axes, metric)
  return _figure.save(figure, path)


def _draw_panel(
  axes: Any, metric: str, lines: Sequence[tuple[str, str, Curve]], several: bool
) -> None:
  """Draws the lines `(run, prefix, curve)` of a metric."""
  runs = list(dict.fromkeys(run for run, _, _ in lines))
  # Training first: evaluations are drawn on top of it.
  prefixes = sorted({p for _, p, _ in lines}, key=lambda p: (p != 'train', p))
  evaluations = [prefix for prefix in prefixes if prefix != 'train']
  lines = sorted(lines, key=lambda line: prefixes.index(line[1]))
  for run, prefix, (steps, values) in lines:
    place = runs.index(run) if several else prefixes.index(prefix)
    color = _COLORS[place % len(_COLORS)]
    words = [run] * several + [prefix] * (len(prefixes) > 1 or not several)
    # Not clipped: the dot of step 0 is on the edge.
    style = dict(color=color, label=' '.join(words), clip_on=False)
    if prefix in evaluations:
      dashes = ('-', '--', ':')[evaluations.index(prefix) % 3 if several else 0]
      style |= dict(marker='o', markersize=3.5, linestyle=dashes)
    elif metric != 'learning_rate' and len(values) > _MAX_POINTS:
      axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
      values = _running_mean(values, len(values) // 20)
    alone = _without_neighbours(values)
    if prefix not in evaluations and alone:
      # A line through one point is invisible.
      style |= dict(marker='o', markersize=3, markevery=alone)
    width = 1.6 if prefix in evaluations else 1.0
    axes.plot(steps, values, linewidth=width, **style)
  if len(lines) > 1:
    axes.legend(fontsize=8, frameon=False)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
  """Returns the means of about `window` values around each, fewer at the ends.

  Values that are not finite do not count.
  """
  kernel = np.ones(2 * (window // 2) + 1)
  finite = np.isfinite(values)
  sums = np.convolve(np.where(finite, values, 0), kernel, 'same')
  counts = np.convolve(finite, kernel, 'same')
  return np.divide(
    sums, counts, out=np.full(len(values), np.nan), where=counts > 0.5
  )


def _without_neighbours(values: np.ndarray) -> list[int]:
  """Returns the positions of finite values between others or at an end."""
  finite = np.pad(np.isfinite(values), 1)
  alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
  return np.flatnonzero(alone).tolist()


def _decorate(axes: Any, metric: str) -> None:
  title = metric.replace('_', ' ')
  axes.set_title(title, loc='left', size=11, weight='bold', color=_figure.INK)
  axes.set_xlabel('step', size=9, color=_figure.PALE)
  axes.tick_params(colors=_figure.PALE, labelsize=8.5)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color('#d0d7de')
  axes.grid(axis='y', color='#eaeef2')
  axes.set_axisbelow(True)
  # An evaluation before the first step is the only point of its run.
  axes.set_xlim(0, max(1, axes.get_xlim()[1]))
  axes.locator_params('y', nbins=5)
  axes.locator_params('x', nbins=5, integer=True)
  axes.xaxis.set_major_formatter('{x:,.0f}')
  if metric in _FRACTIONS or metric.endswith('shot'):
    axes.yaxis.set_major_formatter(lambda y, _: f'{100 * y:.4g}%')
  else:
    axes.yaxis.set_major_formatter('{x:g}')
