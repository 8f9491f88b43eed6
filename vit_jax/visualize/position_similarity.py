"""Similarity of the position embeddings of a ViT, drawn for each patch.

As in figure 7 of "An Image is Worth 16x16 Words" (arXiv:2010.11929): nobody
tells the model where a patch lies; training on images does.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from vit_jax.errors import UserError
from vit_jax.visualize import _figure, _parameter

# Inches.
_MARGIN, _TITLE, _TICKS, _GAP, _SIDE = 0.25, 0.65, 0.55, 0.07, 6.0
_BAR_GAP, _BAR, _BAR_TICKS = 0.2, 0.16, 0.75


class Picture:
  """A tile for each patch: how alike its position is to those of all patches.

  For `config.pictures`; `draw` below is for a table at hand.
  """

  def __init__(
    self,
    predict: Any,
    mesh: jax.sharding.Mesh,
    *,
    parameter: str = 'position_embedding',
    max_tiles: int = 14,
  ):
    """Keeps the options.

    Args:
      predict: as every picture gets it; not used.
      mesh: likewise.
      parameter: name of the table `[height, width, D]`.
      max_tiles: see `draw`.

    Raises:
      UserError: `max_tiles` below 2.
    """
    del predict, mesh
    _check(max_tiles)
    self._parameter, self._max_tiles = parameter, max_tiles

  def draw(self, weights: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the picture as a PNG file, atomically, and returns its path.

    With several processes all call this and process 0 writes.

    Raises:
      UserError: the model has no such table.
    """
    table_HWD = _parameter.fetch(
      weights['params'],
      self._parameter,
      'its positions are not learned, or not so named',
    )
    path = pathlib.Path(path)
    if jax.process_index() == 0:
      draw(table_HWD, path, max_tiles=self._max_tiles)
    return path


def similarity(table_HWD: np.ndarray) -> np.ndarray:
  """Returns the cosine of every two positions, float32 `[H, W, H, W]`."""
  height, width, dim = table_HWD.shape
  x_LD = np.asarray(table_HWD, np.float64).reshape(-1, dim)
  norm_L1 = np.linalg.norm(x_LD, axis=1, keepdims=True)
  # A position of zeros, as before the training of some models, is like none.
  x_LD = np.divide(x_LD, norm_L1, out=np.zeros_like(x_LD), where=norm_L1 > 0)
  return np.float32(x_LD @ x_LD.T).reshape(height, width, height, width)


def draw(
  table_HWD: np.ndarray,
  path: str | os.PathLike[str],
  *,
  max_tiles: int = 14,
) -> pathlib.Path:
  """Writes the picture as a PNG file, atomically, and returns its path.

  The tile in row i and column j is a map of the image: the cosine of the
  position of patch (i, j) and that of every patch. Colours span what lies
  between different patches; a patch and itself, 1, has the last colour.

  Args:
    table_HWD: the learned positions of a grid of patches.
    path: of the PNG file.
    max_tiles: in a row or column; of larger grids as many patches, evenly
      spaced, have a tile. Each tile shows all patches.

  Raises:
    UserError: not a grid, or `max_tiles` below 2.
  """
  _check(max_tiles)
  if np.ndim(table_HWD) != 3 or min(np.shape(table_HWD)[:2]) < 2:
    raise UserError(
      'a picture of positions needs a table [height, width, D] with at least 2'
      f' rows and columns of patches; got {np.shape(table_HWD)}'
    )
  cosine_HWHW = similarity(table_HWD)
  height, width = cosine_HWHW.shape[:2]
  rows, columns = _spread(height, max_tiles), _spread(width, max_tiles)
  flat_LL = cosine_HWHW.reshape(height * width, -1)
  others = flat_LL[~np.eye(len(flat_LL), dtype=bool)]
  low, high = float(others.min()), float(others.max())

  cell = _cell_size(height * len(rows), width * len(columns))
  tile_height, tile_width = height * cell, width * cell
  step_down, step_right = tile_height + _GAP, tile_width + _GAP
  grid_height = len(rows) * step_down - _GAP
  grid_width = len(columns) * step_right - _GAP
  left, top = _MARGIN + _TICKS, _MARGIN + _TITLE
  figure = _figure.new(
    left + grid_width + _BAR_GAP + _BAR + _BAR_TICKS + _MARGIN,
    top + grid_height + _TICKS + _MARGIN,
  )
  for i, row in enumerate(rows):
    for j, column in enumerate(columns):
      x, y = left + j * step_right, top + i * step_down
      axes = _figure.axes(
        figure, x, y, tile_width, tile_height, xticks=[], yticks=[]
      )
      axes.spines[:].set_visible(False)
      image = axes.imshow(
        cosine_HWHW[row, column],
        'viridis',
        vmin=low,
        vmax=high,
        interpolation='nearest',
        aspect='auto',
      )
  title = f'Position embeddings of {height} x {width} patches'
  _figure.text(figure, _MARGIN, _MARGIN, title, size=13, weight='bold')
  y = _MARGIN + 0.28
  _label(figure, _MARGIN, y, 'a tile shows how alike one patch is to all')
  style = dict(ha='right', va='center')
  for i, row in enumerate(rows):
    y = top + i * step_down + tile_height / 2
    _label(figure, left - 0.08, y, str(row + 1), **style)
  for j, column in enumerate(columns):
    x, y = left + j * step_right + tile_width / 2, top + grid_height + 0.08
    _label(figure, x, y, str(column + 1), ha='center')
  y = top + grid_height / 2
  _label(figure, _MARGIN, y, 'row', va='center', rotation=90)
  y = top + grid_height + 0.3
  _label(figure, left + grid_width / 2, y, 'column', ha='center')
  x = left + grid_width + _BAR_GAP
  _color_bar(image, _figure.axes(figure, x, top, _BAR, grid_height))
  return _figure.save(figure, path)


def _cell_size(*numbers: int) -> float:
  """Returns the inches of a cell: _SIDE in all, in whole dots of 2 or more."""
  return max(2, round(_SIDE * _figure.DPI / max(numbers))) / _figure.DPI


def _label(figure: Any, x: float, y: float, words: str, **style) -> None:
  _figure.text(figure, x, y, words, size=9, color=_figure.PALE, **style)


def _color_bar(image: Any, axes: Any) -> None:
  bar = axes.figure.colorbar(image, cax=axes)
  bar.outline.set_visible(False)
  axes.tick_params(colors=_figure.PALE, labelsize=9)
  axes.set_title('cosine', size=9, color=_figure.PALE, loc='left')


def _spread(size: int, most: int) -> list[int]:
  """Returns at most `most` of the numbers below `size`, both ends included."""
  return (
    np.unique(np.linspace(0, size - 1, min(size, most)).round())
    .astype(int)
    .tolist()
  )


def _check(max_tiles: int) -> None:
  if max_tiles < 2:
    raise UserError(f'max_tiles is at least 2; got {max_tiles}')
