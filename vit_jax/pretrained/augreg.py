"""The names of the 52,268 AugReg checkpoints, and the choice among them.

"How to train your ViT?" (https://arxiv.org/abs/2106.10270) published every
model of its grid. A file is named after its recipe:

    B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0
      --imagenet2012-steps_20k-lr_0.03-res_384    (if it was fine-tuned)

and `index.csv`, which lies beside them, has a row for every fine-tuned one.
"""

import csv
import dataclasses
import os
import pathlib
import re

from vit_jax.errors import UserError

BUCKET = 'gs://vit_models/augreg/'

_FLOAT = r'\d+(?:\.\d+)?(?:e-?\d+)?'
_NAME = re.compile(
  r'(?P<model>[A-Za-z0-9_]+)-(?P<dataset>[a-z0-9_]+)-(?P<epochs>\d+)ep'
  rf'-lr_(?P<learning_rate>{_FLOAT})-aug_(?P<augmentation>[a-z]+\d?)'
  rf'-wd_(?P<weight_decay>{_FLOAT})-do_(?P<dropout>{_FLOAT})'
  rf'-sd_(?P<stochastic_depth>{_FLOAT})'
  r'(?:--(?P<adapt_dataset>[a-z0-9_]+)-steps_(?P<adapt_steps>\d+)k'
  rf'-lr_(?P<adapt_learning_rate>{_FLOAT})-res_(?P<adapt_resolution>\d+))?'
  r'(?:\.npz)?'
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What the name of a checkpoint says.

  Attributes:
    model: 'B_16', 'R50_L_32', ...
    dataset: of the pre-training: 'i1k', 'i21k' or, for 30 epochs, 'i21k_30'.
    epochs, learning_rate, weight_decay: of the pre-training.
    augmentation: 'none', 'light0', ... 'strong2'.
    dropout, stochastic_depth: rates in the pre-training.
    adapt_dataset: of the fine-tuning, or None if there was none.
    adapt_steps: in thousands, rounded down: 0 means 500, 2 means 2,500.
    adapt_learning_rate, adapt_resolution: of the fine-tuning.
  """

  model: str
  dataset: str
  epochs: int
  learning_rate: float
  augmentation: str
  weight_decay: float
  dropout: float
  stochastic_depth: float
  adapt_dataset: str | None = None
  adapt_steps: int | None = None
  adapt_learning_rate: float | None = None
  adapt_resolution: int | None = None

  @property
  def variant(self) -> str | None:
    """The variant of models/vit.py, such as 'B/16'; None for the hybrids."""
    is_hybrid = self.model.startswith('R')
    return None if is_hybrid else self.model.replace('_', '/')


def is_name(name: str) -> bool:
  """Whether a name, with or without .npz, is that of an AugReg checkpoint."""
  return _NAME.fullmatch(name) is not None


def parse(name: str) -> Recipe:
  """Returns the recipe of a file name, with or without `.npz`.

  Raises:
    UserError: it does not follow the grammar.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise UserError(
      f'{name!r} is not the name of an AugReg checkpoint; expected'
      ' <model>-<dataset>-<n>ep-lr_<x>-aug_<name>-wd_<x>-do_<x>-sd_<x>, perhaps'
      ' followed by --<dataset>-steps_<n>k-lr_<x>-res_<n>'
    )
  kinds = {field.name: field.type for field in dataclasses.fields(Recipe)}
  values = {}
  for key, text in match.groupdict().items():
    if text is not None:
      kind = str if kinds[key] in (str, str | None) else float
      kind = int if kinds[key] in (int, int | None) else kind
      values[key] = kind(text)
  return Recipe(**values)


def best(
  index: str | os.PathLike,
  model: str,
  *,
  dataset: str = 'i21k',
  adapt_dataset: str | None = None,
  adapt_resolution: int | None = None,
) -> str:
  """Returns the file name (without .npz) of the best checkpoint of a model.

  `catalog.load` takes such names.

  Without `adapt_dataset` that is the pre-trained one with the highest accuracy
  in upstream validation (`final_val`), which is how the paper recommends to
  choose and what vision_transformer does; of equals, the last in the file. With
  it, the one fine-tuned there whose validation accuracy (`adapt_final_val`)
  is the highest.

  Args:
    index: a local copy of `index.csv`.
    model: 'B/16' or 'B_16'.
    dataset: of the pre-training.
    adapt_dataset: of the fine-tuning, such as 'imagenet2012'.
    adapt_resolution: of the fine-tuning; None for any.

  Raises:
    UserError: the index cannot be read or has no such checkpoint.
  """
  model = model.replace('/', '_')
  rows = _rows(index)
  found = [
    row
    for row in rows
    if row['filename'].split('-')[0] == model and row['ds'] == dataset
  ]
  score, column = 'final_val', 'filename'
  if adapt_dataset is not None:
    score, column = 'adapt_final_val', 'adapt_filename'
    found = [
      row
      for row in found
      if row['adapt_ds'] == adapt_dataset
      and adapt_resolution in (None, int(row['adapt_resolution']))
    ]
  if not found:
    models = sorted({row['filename'].split('-')[0] for row in rows})
    raise UserError(
      f'{os.fspath(index)} has no {model} pre-trained on {dataset}'
      + (f' and fine-tuned on {adapt_dataset}' if adapt_dataset else '')
      + f'; models are {", ".join(models)}'
    )
  order = range(len(found))
  return found[max(order, key=lambda i: (float(found[i][score]), i))][column]


def _rows(index: str | os.PathLike) -> list[dict[str, str]]:
  columns = {'filename', 'ds', 'final_val', 'adapt_ds', 'adapt_filename'}
  columns |= {'adapt_final_val', 'adapt_resolution'}
  try:
    with pathlib.Path(index).expanduser().open(newline='') as file:
      reader = csv.DictReader(file)
      rows = list(reader)
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise UserError(f'cannot read the index {os.fspath(index)}: {e}') from e
  if missing := sorted(columns - set(reader.fieldnames or ())):
    raise UserError(
      f'{os.fspath(index)} is not an index of AugReg: no columns {missing}'
    )
  return rows
