"""Test images with their predicted and true classes."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.data import records
from vit_jax.errors import UserError
from vit_jax.evaluators import _rows
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.printable import printable
from vit_jax.visualize import _figure

_RIGHT, _WRONG = '#1a8a4a', '#d1242f'
_IMAGE = 1.3  # Inches of the longer side.


@dataclasses.dataclass(eq=False)
class Picture:
  """A grid of images of a split: right answers green, wrong ones red.

  Args:
    predict: `(params, batch) -> {'logits': [B, Y], ...}`, jittable.
    mesh: the devices; the batch is sharded over its data and fsdp axes.
    data: the source, as in the input section of a config.
    ops: the host ops, as in the input section of a config. Their results are
      shown, so pixels should still be uint8.
    count: how many images; all of them where the split has fewer.
    columns: images in a row.
    seed: chooses the images; the same every time.
    loss: 'softmax' or 'sigmoid', which the model was trained with: turns logits
      into probabilities.
    on_error: 'stop' or 'skip' where an image cannot be read.

  Attributes:
    image: shape and dtype of an image as the model gets it.

  Raises:
    UserError: an option or the data.
  """

  predict: Callable[..., Mapping[str, jax.Array]]
  mesh: jax.sharding.Mesh
  _: dataclasses.KW_ONLY
  data: Mapping[str, Any]
  ops: str
  count: int = 36
  columns: int = 9
  seed: int = 0
  loss: str = 'softmax'
  on_error: str = 'stop'

  def __post_init__(self):
    known = self.loss in ('softmax', 'sigmoid')
    if self.count < 1 or self.columns < 1 or not known:
      raise UserError(
        f'predictions: count={self.count} and columns={self.columns} must be at'
        f" least 1, loss={self.loss!r} 'softmax' or 'sigmoid'"
      )
    self._reader = records.Reader(self.data, self.ops, on_error=self.on_error)
    if not {'image', 'label'} <= self._reader.spec.keys():
      raise UserError(
        'predictions: needs images and labels; the examples of '
        f'{dict(self.data)} have {sorted(self._reader.spec)}'
      )
    self.image = self._reader.spec['image']

  def draw(self, params: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the picture as a PNG file, atomically, and returns its path.

    Below each image are the predicted class with its probability and the true
    class; the title counts the correct ones. Where an example has several right
    classes, each of them counts. With several processes all call this and
    process 0 writes.
    """
    examples = self._examples()
    probability_NY = self._probabilities(params, examples)
    path = pathlib.Path(path)
    if jax.process_index() == 0:
      names = self._reader.source.class_names
      cells = [
        _Cell(example, probability_Y, names)
        for example, probability_Y in zip(examples, probability_NY, strict=True)
      ]
      _draw(cells, self.columns, len(self._reader.source), path)
    return path

  def _examples(self) -> list[records.Example]:
    """Returns a random sample of the readable examples."""
    examples = []
    order = np.random.default_rng(self.seed).permutation(
      len(self._reader.source)
    )
    for index in order.tolist():
      rng = np.random.default_rng([self.seed, index])
      example = self._reader.read_or_blank(index, rng)
      if example['mask']:
        examples.append(example)
      if len(examples) == self.count:
        break
    return examples

  def _probabilities(
    self, params: Any, examples: Sequence[records.Example]
  ) -> np.ndarray:
    """Returns `[N, Y]` for N examples, on every process."""
    padding = mesh_lib.padded(len(examples), self.mesh) - len(examples)
    rows = [*examples, *[examples[0] | {'mask': np.False_}] * padding]
    split = mesh_lib.batch_sharding(self.mesh)
    batch = {
      key: np.stack([row[key] for row in rows])
      for key in rows[0]
      if key != 'index'
    }
    found = _rows.call(
      _probability,
      params,
      # All rows from every process, which keeps those of its devices.
      jax.device_put(batch, split),
      self.mesh,
      predict=self.predict,
      loss=self.loss,
    )
    return jax.device_get(found['probability'])[: len(examples)]


class _Cell:
  """An image of the grid with its caption."""

  def __init__(
    self,
    example: records.Example,
    probability_Y: np.ndarray,
    class_names: Sequence[str] | None,
  ):
    label = example['label']
    if label.ndim:  # Multi-hot or soft: each class at its maximum is right.
      right = np.flatnonzero((label > 0) & (label == label.max())).tolist()
    else:
      right = [int(label)]
    best = int(np.argmax(probability_Y))
    self.image = _displayable(example['image'])
    self.right = best in right
    self.probability = float(probability_Y[best])
    self.predicted = _name(best, class_names)
    self.true = ' / '.join(_name(i, class_names) for i in right) or 'none'


def _probability(params, batch, *, predict, loss):
  logits_BY = _rows.logits_of(predict(params, batch))
  fn = jax.nn.softmax if loss == 'softmax' else jax.nn.sigmoid
  return {'probability': fn(logits_BY)}


def _draw(
  cells: Sequence[_Cell], columns: int, num_examples: int, path: pathlib.Path
) -> None:
  num_right = sum(cell.right for cell in cells)
  height, width = cells[0].image.shape[:2]
  scale = _IMAGE / max(height, width)
  figure, tiles = _figure.tiles(
    len(cells),
    columns,
    _IMAGE,
    height * scale,
    num_lines=2,
    title=f'{num_right} of {len(cells)} right ({num_right / len(cells):.1%}) '
    f'in a random sample of {num_examples:,} images',
  )
  for axes, cell in zip(tiles, cells, strict=True):
    _draw_cell(axes, cell)
  _figure.save(figure, path)


def _draw_cell(axes: Any, cell: _Cell) -> None:
  """Draws an image and its caption."""
  color = _RIGHT if cell.right else _WRONG
  # Enlarged pixels stay sharp; shrunken images are smoothed.
  small = max(cell.image.shape[:2]) <= _IMAGE * _figure.DPI
  smoothing = 'nearest' if small else 'hanning'
  axes.imshow(cell.image, 'gray', vmin=0, vmax=255, interpolation=smoothing)
  axes.spines[:].set(color=color, linewidth=2.5)

  style = dict(color=color, weight='bold')
  percent = f'{cell.probability:.0%}'
  percent = _figure.caption(axes, percent, right=True, **style)
  mark = '✓' if cell.right else '✗'
  words = _figure.caption(axes, f'{mark} {cell.predicted}', **style)
  taken = percent.get_window_extent().width / _figure.DPI
  _figure.shorten(words, _IMAGE - taken - 0.1)
  color = _figure.PALE if cell.right else _figure.INK
  words = _figure.caption(
    axes, f'true: {cell.true}', line=1, size=8, color=color
  )
  _figure.shorten(words, _IMAGE - 0.05)


def _displayable(image: np.ndarray) -> np.ndarray:
  """Returns uint8 `[H, W]` or `[H, W, 3]`."""
  if image.dtype != np.uint8:  # Normalised on the host: stretch to the range.
    low, high = float(image.min()), float(image.max())
    image = np.uint8(np.round((image - low) * (255 / max(high - low, 1e-9))))
  return image[..., :3] if image.shape[-1] >= 3 else image[..., 0]


def _name(index: int, class_names: Sequence[str] | None) -> str:
  if class_names is None:
    return str(index)
  # ImageNet lists synonyms: 'tench, Tinca tinca'.
  return printable(class_names[index]).split(',')[0].replace('_', ' ')
