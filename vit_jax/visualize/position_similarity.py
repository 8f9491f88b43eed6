"""The similarity of the position embeddings of all patches of a ViT.

As in figure 7 of "An Image is Worth 16x16 Words" (arXiv:2010.11929): positions
are learned, and neighbours become similar.
"""

import dataclasses
import os
import pathlib

import numpy as np

from vit_jax.errors import UserError
from vit_jax.visualize import _figure, _parameter

_SIDE = 6.0  # Inches of the longer side of all tiles.


@dataclasses.dataclass(eq=False)
class Picture(_parameter.Picture):
  """A tile for each patch: the similarity of its position to all positions.

  The tile in row i and column j is a map of the image: the cosine of the
  position of patch (i, j) and that of every patch. Colours span the values
  between different patches; a patch and itself, 1, has the last colour.

  Args:
    parameter: name of the table `[height, width, D]` of learned positions.
    max_tiles: in a row or column; of larger grids as many patches, evenly
      spaced, have a tile. Each tile shows all patches.

  Raises:
    UserError: `max_tiles` below 2.
  """

  _: dataclasses.KW_ONLY
  parameter: str = 'position_embedding'
  max_tiles: int = 14

  hint = 'its positions are not learned, or not so named'

  def __post_init__(self):
    if self.max_tiles < 2:
      raise UserError(f'max_tiles is at least 2; got {self.max_tiles}')

  def plot(
    self, table_HWD: np.ndarray, path: str | os.PathLike[str]
  ) -> pathlib.Path:
    """Writes the picture of a table; raises UserError if it is no grid."""
    if np.ndim(table_HWD) != 3 or min(np.shape(table_HWD)[:2]) < 2:
      raise UserError(
        'a picture of positions needs a table [height, width, D] with at least'
        f' 2 rows and columns of patches; got {np.shape(table_HWD)}'
      )
    cosine_HWHW = similarity(table_HWD)
    height, width = cosine_HWHW.shape[:2]
    rows, columns = (_spread(n, self.max_tiles) for n in (height, width))
    flat_LL = cosine_HWHW.reshape(height * width, -1)
    others = flat_LL[~np.eye(len(flat_LL), dtype=bool)]
    low, high = float(others.min()), float(others.max())

    tiles = cosine_HWHW[np.ix_(rows, columns)]
    shown = tiles.transpose(0, 2, 1, 3).reshape(
      len(rows) * height, len(columns) * width
    )
    scale = _SIDE / max(shown.shape)
    title = (
      f'Position embeddings of {height} x {width} patches\n'
      'each tile: cosine of one patch and all patches'
    )
    figure = _figure.new(
      1.6 + shown.shape[1] * scale, 1.3 + shown.shape[0] * scale, title=title
    )
    axes = figure.subplots()
    image = axes.imshow(
      shown, 'viridis', vmin=low, vmax=high, interpolation='nearest'
    )
    axes.spines[:].set_visible(False)
    for axis, name, picked, size in (
      (axes.yaxis, 'row', rows, height),
      (axes.xaxis, 'column', columns, width),
    ):
      edges = size * np.arange(len(picked) + 1) - 0.5
      axis.set_ticks((edges[1:] + edges[:-1]) / 2, [str(i + 1) for i in picked])
      axis.set_ticks(edges, minor=True)
      axis.grid(which='minor', color='white', linewidth=5)
      axis.set_tick_params('both', length=0, colors=_figure.PALE, labelsize=9)
      axis.set_label_text(name, size=9, color=_figure.PALE)
    bar = figure.colorbar(image, label='cosine', aspect=40, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=_figure.PALE, labelsize=9)
    bar.ax.yaxis.label.set(size=9, color=_figure.PALE)
    return _figure.save(figure, path)


def similarity(table_HWD: np.ndarray) -> np.ndarray:
  """Returns the cosine of every two positions, float32 `[H, W, H, W]`."""
  height, width, dim = table_HWD.shape
  x_LD = np.asarray(table_HWD, np.float64).reshape(-1, dim)
  norm_L1 = np.linalg.norm(x_LD, axis=1, keepdims=True)
  # A position of zeros, as before the training of some models, has cosine 0.
  x_LD = np.divide(x_LD, norm_L1, out=np.zeros_like(x_LD), where=norm_L1 > 0)
  return np.float32(x_LD @ x_LD.T).reshape(height, width, height, width)


def _spread(size: int, most: int) -> list[int]:
  """Returns at most `most` of the numbers below `size`, both ends included."""
  picked = np.linspace(0, size - 1, min(size, most)).round()
  return picked.astype(int).tolist()
