"""Figures without a display or global state, laid out by matplotlib."""

import math
import os
import pathlib
from typing import Any

from vit_jax import files

DPI = 100  # Looks well in a README.
INK, PALE = '#1f2328', '#6e7781'
_GAP, _LINE = 0.16, 0.17  # Inches between tiles, and of a line of a caption.


def new(width: float, height: float, *, title: str = '') -> Any:
  """Returns an empty white matplotlib Figure; the sides are in inches."""
  # Imported here: matplotlib takes 0.3 s. A Figure without pyplot has no
  # global state, and its canvas (Agg) needs no display.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(
    (width, height), dpi=DPI, facecolor='white', layout='constrained'
  )
  FigureCanvasAgg(figure)
  if title:
    style = dict(size=12, weight='bold', color=INK, linespacing=1.6)
    figure.suptitle(title, x=0, ha='left', **style)
  return figure


def tiles(
  count: int,
  columns: int,
  width: float,
  height: float,
  *,
  title: str,
  num_lines: int = 1,
) -> tuple[Any, list[Any]]:
  """Returns a figure and axes without ticks for each tile, row by row.

  Sides of a tile are in inches; below it is room for a `caption`.
  """
  columns = min(columns, count)
  rows = math.ceil(count / columns)
  down = height + num_lines * _LINE + _GAP
  figure = new(columns * (width + _GAP), 0.8 + rows * down, title=title)
  figure.get_layout_engine().set(
    w_pad=_GAP / 2, h_pad=_GAP / 2, wspace=0, hspace=0
  )
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in grid:
    axes.set(xticks=[], yticks=[])
  for axes in grid[count:]:
    axes.set_axis_off()
  return figure, list(grid[:count])


def caption(
  axes: Any, words: str, *, line: int = 0, right: bool = False, **style
) -> Any:
  """Writes words below a tile, from its left or to its right side.

  Args:
    words: shown as they are: a class called $100$ is not a formula.
    right: whether the words end at the right side.
  """
  style = dict(size=8.5, color=PALE, parse_math=False) | style
  return axes.annotate(
    words,
    (float(right), 0),
    (0, -4 - 72 * _LINE * line),
    xycoords='axes fraction',
    textcoords='offset points',
    ha='right' if right else 'left',
    va='top',
    **style,
  )


def shorten(text: Any, room: float) -> None:
  """Ends a text with an ellipsis where it is wider than `room` inches."""
  words = text.get_text()
  while len(words) > 1 and text.get_window_extent().width > room * DPI:
    words = words[:-1]
    text.set_text(words.rstrip() + '…')


def save(figure: Any, path: str | os.PathLike[str]) -> pathlib.Path:
  """Writes a PNG file, whole or not at all, and returns its path."""
  path = pathlib.Path(path)
  with files.write_atomically(path) as part:
    # Tight: a title may be wider than what is below it.
    figure.savefig(part, format='png', bbox_inches='tight', pad_inches=0.2)
  return path
