"""The principal components of the filters of a ViT's first layer.

As in figure 7 of "An Image is Worth 16x16 Words" (arXiv:2010.11929).
"""

import dataclasses
import os
import pathlib

import numpy as np

from vit_jax.errors import UserError
from vit_jax.visualize import _figure, _parameter

_TILE = 0.9  # Inches of the longer side of a patch.


@dataclasses.dataclass(eq=False)
class Picture(_parameter.Picture):
  """The principal components of the filters, each with its share of variance.

  Each component has a scale of its own, on which zero is grey. Three channels
  are red, green and blue; of more channels the first three are shown, of two
  the first.

  Args:
    parameter: name of the kernel `[height, width, C, D]` of a patch embedding.
    count: how many components; all of them where there are fewer.
    columns: components in a row.

  Raises:
    UserError: `count` or `columns` below 1.
  """

  _: dataclasses.KW_ONLY
  parameter: str = 'patch_embedding/kernel'
  count: int = 28
  columns: int = 7

  hint = 'its first layer has another name'

  def __post_init__(self):
    if self.count < 1 or self.columns < 1:
      raise UserError(
        f'count and columns are at least 1; got {self.count} and {self.columns}'
      )

  def plot(
    self, kernel_HWCD: np.ndarray, path: str | os.PathLike[str]
  ) -> pathlib.Path:
    """Writes the picture of a kernel; raises UserError if it is none."""
    if np.ndim(kernel_HWCD) != 4:
      raise UserError(
        'a picture of filters needs a kernel [height, width, C, D]; got '
        f'{np.shape(kernel_HWCD)}'
      )
    found, share = (x[: self.count] for x in components(kernel_HWCD))
    height, width, _, dim = kernel_HWCD.shape
    scale = _TILE / max(height, width)
    title = (
      f'First layer: {dim} filters of {height} x {width} pixels\n{len(found)} '
      f'principal components, {share.sum():.0%} of the variance'
    )
    figure, tiles = _figure.tiles(
      len(found), self.columns, width * scale, height * scale, title=title
    )
    style = dict(vmin=0, vmax=1, interpolation='nearest', aspect='auto')
    for axes, component, part in zip(tiles, found, share, strict=True):
      axes.imshow(_displayable(component), 'gray', **style)
      axes.spines[:].set(color='#d0d7de', linewidth=0.8)
      _figure.caption(axes, f'{part:.1%}')
    return _figure.save(figure, path)


def components(kernel_HWCD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the principal components of D filters, and their shares.

  Components are float32 `[N, H, W, C]` of length 1, the one with the largest
  share of the variance between filters first; N is the smaller of D and the
  numbers in a patch. Of the two signs each has the one that makes its largest
  number positive. Shares sum to 1.

  Args:
    kernel_HWCD: of a patch embedding; H and W are the sides of a patch.
  """
  shape, dim = kernel_HWCD.shape[:-1], kernel_HWCD.shape[-1]
  x_DP = np.asarray(kernel_HWCD, np.float64).reshape(-1, dim).T
  _, scale_N, found_NP = np.linalg.svd(x_DP - x_DP.mean(0), full_matrices=False)
  index_N1 = np.argmax(np.abs(found_NP), axis=1, keepdims=True)
  found_NP *= np.sign(np.take_along_axis(found_NP, index_N1, axis=1))
  share_N = scale_N**2 / max(np.sum(scale_N**2), np.finfo(float).tiny)
  return np.float32(found_NP).reshape(-1, *shape), np.float32(share_N)


def _displayable(component_HWC: np.ndarray) -> np.ndarray:
  """Returns `[H, W]` or `[H, W, 3]` in 0 to 1, where zero became 0.5."""
  channels = 3 if component_HWC.shape[-1] >= 3 else 1
  shown = component_HWC[..., :channels]
  shown = 0.5 + 0.5 * shown / max(np.abs(shown).max(), 1e-12)
  return shown if channels == 3 else shown[..., 0]
