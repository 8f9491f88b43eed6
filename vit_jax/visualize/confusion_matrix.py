"""Confusion matrix: how often each class is taken for which other."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import files
from vit_jax.evaluators import classification, classification_report
from vit_jax.printable import printable
from vit_jax.visualize import _figure

_MOST_NUMBERS = 20  # Classes up to which cells have numbers,
_MOST_NAMES = 60  # and rows have names.
_MOST_LETTERS = 24


@dataclasses.dataclass(eq=False)
class Picture:
  """A matrix with a row for each class and a column for each answer.

  The colour is the fraction of the images of the class. A CSV file of the same
  name has the counts.

  Args:
    predict: `(params, batch) -> {'logits': [B, Y], ...}`, jittable.
    mesh: the devices; the batch is sharded over its data and fsdp axes.
    data: the source, as in the input section of a config.
    ops: the host ops, as in the input section of a config.
    batch_size: of the forward pass; it does not change the result.
    on_error: 'stop' or 'skip' where an image cannot be read.

  Raises:
    UserError: an option or the data.
  """

  predict: Callable[..., Mapping[str, jax.Array]]
  mesh: jax.sharding.Mesh
  _: dataclasses.KW_ONLY
  data: Mapping[str, Any]
  ops: str
  batch_size: int = 128
  on_error: str = 'stop'

  def __post_init__(self):
    self._report = classification_report.Evaluator(
      self.predict,
      self.mesh,
      data=self.data,
      ops=self.ops,
      batch_size=self.batch_size,
      on_error=self.on_error,
    )
    self._input = self._report.inputs['data']
    image = self._input.element_spec()['image']
    self.image = jax.ShapeDtypeStruct(image.shape[1:], image.dtype)

  def draw(self, params: Any, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a PNG and a CSV file, atomically; returns the path of the PNG.

    With several processes all call this and process 0 writes.

    Raises:
      UserError: several labels for each image.
    """
    counts_YY = self._report.confusion_matrix(params)
    path = pathlib.Path(path)
    if jax.process_index() == 0:
      names = classification.class_keys(self._input.class_names, len(counts_YY))
      names = [printable(name) for name in names]
      write_csv(counts_YY, names, path.with_suffix('.csv'))
      draw_matrix(counts_YY, names, path)
    return path


def write_csv(
  counts_YY: np.ndarray, names: Sequence[str], path: pathlib.Path
) -> None:
  """Writes counts with the names of the classes; rows are labels."""
  lines = [['label / answer', *names]]
  lines += [
    [name, *row] for name, row in zip(names, counts_YY.tolist(), strict=True)
  ]
  with files.write_atomically(path) as part:
    with open(part, 'w', newline='', encoding='utf-8') as file:
      csv.writer(file).writerows(lines)


def draw_matrix(
  counts_YY: np.ndarray, names: Sequence[str], path: pathlib.Path
) -> None:
  """Draws counts as fractions of each row."""
  total, right = int(counts_YY.sum()), int(np.trace(counts_YY))
  num_classes = len(names)
  sums = counts_YY.sum(axis=1, keepdims=True)
  fraction_YY = counts_YY / np.maximum(sums, 1)
  cell = 0.42 if num_classes <= _MOST_NUMBERS else 0.17
  side = min(max(cell * num_classes, 2.5), 10.0)
  figure = _figure.new(
    side + 2,
    side + 1.5,
    title=f'{right:,} of {total:,} right ({right / total:.1%})',
  )
  axes = figure.subplots()
  image = axes.imshow(fraction_YY, 'Blues', vmin=0, vmax=1)
  axes.set(xlabel='answer', ylabel='label')
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  if num_classes <= _MOST_NAMES:
    short = [_short(name) for name in names]
    style = dict(size=8, parse_math=False)
    axes.set_yticks(range(num_classes), short, **style)
    turn = 90 if max(map(len, short)) > 3 else 0
    axes.set_xticks(range(num_classes), short, rotation=turn, **style)
  if num_classes <= _MOST_NUMBERS:
    for (i, j), count in np.ndenumerate(counts_YY):
      if count:
        color = 'white' if fraction_YY[i, j] > 0.5 else _figure.INK
        axes.text(
          j, i, f'{count:,}', size=7, color=color, ha='center', va='center'
        )
  bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30)
  bar.set_label('fraction of the label')
  bar.outline.set_visible(False)
  _figure.save(figure, path)


def _short(name: str) -> str:
  name = name.split(',')[0].replace('_', ' ')
  return name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + '…'
