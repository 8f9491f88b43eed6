"""Figures without a display and without global state, and saving them."""

import os
import pathlib
from typing import Any

from vit_jax import files

DPI = 100  # A picture of 100 dots per inch looks well in a README.
INK, PALE = '#1f2328', '#6e7781'


def new(width: float, height: float) -> Any:
  """Returns an empty white matplotlib Figure; the sides are in inches."""
  # Imported here: matplotlib takes 0.3 s. A Figure without pyplot has no
  # global state, and its canvas (Agg) needs no display.
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white')
  FigureCanvasAgg(figure)
  return figure


def axes(
  figure: Any, x: float, y: float, width: float, height: float, **options
) -> Any:
  """Adds axes; x and y are those of its top left corner, all in inches."""
  across, down = figure.get_size_inches()
  box = (x / across, 1 - (y + height) / down, width / across, height / down)
  return figure.add_axes(box, **options)


def text(figure: Any, x: float, y: float, words: str, **style) -> Any:
  """Writes words; x and y in inches from the top left of the figure."""
  across, down = figure.get_size_inches()
  # A class may be called $100$, which is no formula.
  style = dict(va='top', color=INK, parse_math=False) | style
  return figure.text(x / across, 1 - y / down, words, **style)


def save(figure: Any, path: str | os.PathLike[str]) -> pathlib.Path:
  """Writes a PNG file, whole or not at all, and returns its path."""
  path = pathlib.Path(path)
  with files.write_atomically(path) as part:
    figure.savefig(part, format='png')
  return path
