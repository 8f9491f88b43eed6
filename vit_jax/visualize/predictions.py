"""Test images with their predictions and labels, drawn as a grid."""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import records
from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.printable import printable
from vit_jax.visualize import _figure

_RIGHT, _WRONG = '#1a8a4a', '#d1242f'
# Inches.
_IMAGE, _GAP, _CAPTION, _MARGIN, _TITLE = 1.3, 0.16, 0.42, 0.2, 0.45


class Picture:
  """A grid of images of a split: right answers green, wrong ones red.

  Attributes:
    image: shape and dtype of an image as the model gets it.
  """

  def __init__(
    self,
    predict: Callable[..., Mapping[str, jax.Array]],
    mesh: jax.sharding.Mesh,
    *,
    data: Mapping[str, Any],
    ops: str,
    count: int = 36,
    columns: int = 9,
    seed: int = 0,
    loss: str = 'softmax',
    on_error: str = 'stop',
  ):
    """Opens the data.

    Args:
      predict: `(params, batch) -> {'logits': [B, Y], ...}`, jittable.
      mesh: the devices; the batch is split over its data and fsdp axes.
      data: the source, as in the input section of a config.
      ops: the host ops, as in the input section of a config. What they return
        is what is shown, so pixels should still be uint8.
      count: how many images; all of them where the split has fewer.
      columns: images in a row.
      seed: chooses the images; the same every time.
      loss: 'softmax' or 'sigmoid', what the model was trained with: how its
        logits become probabilities.
      on_error: 'stop' or 'skip' where an image cannot be read.

    Raises:
      UserError: an option or the data.
    """
    if count < 1 or columns < 1 or loss not in ('softmax', 'sigmoid'):
      raise UserError(
        f'predictions: count={count} and columns={columns} must be at least 1, '
        f"loss={loss!r} 'softmax' or 'sigmoid'"
      )
    self._reader = records.Reader(data, ops, on_error=on_error, num_compared=4)
    self.image = self._reader.spec['image']
    self._predict, self._mesh, self._loss = predict, mesh, loss
    self._count, self._columns, self._seed = count, columns, seed

  def draw(self, params: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the picture as a PNG file, atomically, and returns its path.

    Below each image stand the predicted class with its probability and the
    true class; the title says how many of these images are right. Where an
    example has several right classes, each of them counts. With several
    processes all call this and process 0 writes.
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
      _draw(cells, self._columns, len(self._reader.source), path)
    return path

  def _examples(self) -> list[records.Example]:
    """Returns a random sample of the readable examples."""
    examples = []
    order = np.random.default_rng(self._seed).permutation(
      len(self._reader.source)
    )
    for index in order.tolist():
      rng = np.random.default_rng([self._seed, index])
      example = self._reader.read_or_blank(index, rng)
      if example['mask']:
        examples.append(example)
      if len(examples) == self._count:
        break
    return examples

  def _probabilities(
    self, params: Any, examples: Sequence[records.Example]
  ) -> np.ndarray:
    """Returns `[N, Y]` for N examples, on every process."""
    num = len(examples)
    shards = self._mesh.shape['data'] * self._mesh.shape['fsdp']
    fill = -num % shards
    rows = [*examples, *[examples[0] | {'mask': np.False_}] * fill]
    split = mesh_lib.batch_sharding(self._mesh)
    batch = {
      key: np.stack([row[key] for row in rows])
      for key in rows[0]
      if key != 'index'
    }
    probability_BY = _score(
      params,
      # All rows from every process, which keeps those of its devices.
      jax.device_put(batch, split),
      predict=self._predict,
      loss=self._loss,
      out_sharding=mesh_lib.replicated(self._mesh),
    )
    return jax.device_get(probability_BY)[:num]


class _Cell:
  """What stands at one place of the grid."""

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


@functools.partial(jax.jit, static_argnames=('predict', 'loss', 'out_sharding'))
def _score(params, batch, *, predict, loss, out_sharding):
  logits_BY = predict(params, batch)['logits'].astype(jnp.float32)
  fn = jax.nn.softmax if loss == 'softmax' else jax.nn.sigmoid
  return jax.lax.with_sharding_constraint(fn(logits_BY), out_sharding)


def _draw(
  cells: Sequence[_Cell], columns: int, num_examples: int, path: pathlib.Path
) -> None:
  columns = min(columns, len(cells))
  rows = math.ceil(len(cells) / columns)
  width = 2 * _MARGIN + columns * (_IMAGE + _GAP) - _GAP
  height = 2 * _MARGIN + _TITLE + rows * (_IMAGE + _CAPTION + _GAP) - _GAP
  figure = _figure.new(width, height)
  num_right = sum(cell.right for cell in cells)
  title = (
    f'{num_right} of {len(cells)} right ({num_right / len(cells):.1%}) '
    f'in a random sample of {num_examples:,} images'
  )
  _text(figure, _MARGIN, _MARGIN, title, size=13, weight='bold')
  for i, cell in enumerate(cells):
    row, column = divmod(i, columns)
    x = _MARGIN + column * (_IMAGE + _GAP)
    y = _MARGIN + _TITLE + row * (_IMAGE + _CAPTION + _GAP)
    _draw_cell(figure, cell, x, y)
  _figure.save(figure, path)


def _draw_cell(figure: Any, cell: _Cell, x: float, y: float) -> None:
  """Draws an image and its caption; x and y in inches from the top left."""
  color = _RIGHT if cell.right else _WRONG
  axes = _figure.axes(
    figure, x, y, _IMAGE, _IMAGE, xticks=[], yticks=[], facecolor='#f6f8fa'
  )
  # Enlarged pixels stay sharp; shrunken images are smoothed.
  small = max(cell.image.shape[:2]) <= _IMAGE * _figure.DPI
  smoothing = 'nearest' if small else 'hanning'
  axes.imshow(cell.image, 'gray', vmin=0, vmax=255, interpolation=smoothing)
  axes.spines[:].set(color=color, linewidth=2.5)

  y += _IMAGE + 0.07
  style = dict(size=8.5, color=color, weight='bold')
  percent = f'{cell.probability:.0%}'
  percent = _text(figure, x + _IMAGE, y, percent, ha='right', **style)
  room = _IMAGE - percent.get_window_extent().width / _figure.DPI - 0.05
  mark = '✓' if cell.right else '✗'
  _text(figure, x, y, f'{mark} {cell.predicted}', room, **style)
  color = _figure.PALE if cell.right else _figure.INK
  _text(figure, x, y + 0.17, f'true: {cell.true}', _IMAGE, size=8, color=color)


def _text(
  figure: Any, x: float, y: float, words: str, room: float = math.inf, **style
) -> Any:
  """Writes words that end in an ellipsis where they would pass `room`."""
  text = _figure.text(figure, x, y, words, **style)
  while len(words) > 1 and text.get_window_extent().width > room * _figure.DPI:
    words = words[:-1]
    text.set_text(words.rstrip() + '…')
  return text


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
