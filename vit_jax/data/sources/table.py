"""Images that a CSV or JSONL file lists: one path and label in a row.

image,label            {"image": "a/1.jpg", "label": "cat"}
a/1.jpg,cat            {"image": "a/2.jpg", "label": ["cat", "dog"]}
"""

import csv
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from vit_jax.data import labels as labels_lib, paths as paths_lib, splits
from vit_jax.errors import UserError

_DELIMITERS = {'.csv': ',', '.tsv': '\t'}
_JSON = ('.jsonl', '.ndjson')


class _Row(NamedTuple):
  file: str
  line: int
  image: str | None
  label: Any


class Source:
  """Examples `{'image': bytes of the file, 'label': int or float32 [Y]}`."""

  def __init__(
    self,
    split: str,
    *,
    path: str,
    image_key: str = 'image',
    label_key: str | None = 'label',
    split_key: str | None = None,
    separator: str | None = None,
    data_dir: str | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | str | None = None,
    classes_from: str = 'train',
  ):
    """Reads the table; opens no image yet.

    Args:
      split: its name stands for `{split}` in `path`, or in the column
        `split_key`; `'all'` without either. May be a slice.
      path: `'/data/{split}.csv'`: .csv and .tsv have a first line with the
        names of the columns; .jsonl has a JSON object in each line.
      image_key: the column with the path of the image.
      label_key: the column with the label: a class id or a class name; a list
        of them in JSON means several labels. None for no label.
      split_key: the column that says to which split a row belongs.
      separator: what stands between several labels in a cell, such as `';'`.
        With it every label becomes a vector; an empty cell is no label at all.
      data_dir: where relative paths start; None is the folder of the table.
      num_classes: how many classes there are; or
      class_names: their names, a list or a file of them. Without either the
        labels tell: numbers are class ids, names are sorted.
      classes_from: the split whose labels tell, if there are several.

    Raises:
      UserError: no such file, split or column, lines that cannot be read, or
        labels that are not among the classes.
    """
    self._split = splits.parse(split)
    self._path, self._separator = path, separator
    self._image_key, self._label_key = image_key, label_key
    self._split_key = split_key
    self._root = os.path.expanduser(data_dir) if data_dir else None
    rows = self._rows(self._split.name)
    self._several = separator is not None or any(
      isinstance(row.label, list) for row in rows
    )
    classes = labels_lib.classes(num_classes, class_names)
    self._classes = classes or self._derived(rows, classes_from)
    self.num_classes, self.class_names = self._classes.num, self._classes.names
    self._check(rows)
    self._chosen = [rows[i] for i in self._split.records(len(rows))]

  def __len__(self) -> int:
    return len(self._chosen)

  def __getitem__(self, index: int) -> dict:
    row, example = self._chosen[index], {}
    if not row.image:
      raise UserError(f'the column {self._image_key!r} is empty')
    if self._label_key is not None:
      if row.label is None or row.label == '':
        raise UserError(f'the label is missing: {self._label_key!r} is empty')
      example['label'] = (
        self._classes.vector_of(_as_list(row.label))
        if self._several
        else self._classes.id_of(row.label)
      )
    with open(self._image_path(row), 'rb') as file:
      return {'image': file.read()} | example

  def describe(self, index: int) -> str:
    """Returns the path of the image and the line that names it."""
    row = self._chosen[index]
    return f'{self._image_path(row)} (line {row.line} of {row.file})'

  def _image_path(self, row: _Row) -> str:
    root = self._root or os.path.dirname(row.file)
    return os.path.join(root, os.path.expanduser(row.image or '?'))

  def _rows(self, split: str) -> list[_Row]:
    """Returns the rows of a split."""
    if self._split_key is not None and '{split}' in self._path:
      raise UserError(f'{self._path}: say {{split}} or split_key, not both')
    files = paths_lib.expand(
      self._path, split if self._split_key is None else paths_lib.ALL
    )
    keys = (self._image_key, self._label_key, self._split_key)
    rows, splits_there = [], set()
    for file in files:
      for line, row in _read(file, [key for key in keys if key is not None]):
        there = str(row.get(self._split_key))
        splits_there.add(there)
        if self._split_key is None or there == split:
          label = self._label(row.get(self._label_key))
          rows.append(_Row(file, line, row.get(self._image_key), label))
    if not rows and splits_there and self._split_key is not None:
      raise UserError(
        f'{self._path}: no row with {self._split_key!r} {split!r}; there are: '
        f'{", ".join(sorted(splits_there)[:10])}'
      )
    if not rows:
      raise UserError(f'{self._path} has no rows')
    return rows

  def _label(self, cell: Any) -> Any:
    """Returns what a cell says: a value, a list of them, or None."""
    if self._separator is None or not isinstance(cell, str):
      return cell
    return [v.strip() for v in cell.split(self._separator) if v.strip()]

  def _derived(self, rows: list[_Row], classes_from: str) -> labels_lib.Classes:
    if self._label_key is None:
      return labels_lib.Classes(None, None)
    one_split = '{split}' not in self._path and self._split_key is None
    if not one_split and classes_from != self._split.name:
      rows = self._rows(classes_from)
    labels = (label for row in rows for label in _as_list(row.label))
    return labels_lib.derived(labels)

  def _check(self, rows: list[_Row]) -> None:
    """Raises where labels are unknown; missing ones are met when read."""
    fine, problems = {None, ''}, {}
    for row in rows:
      for label in _as_list(row.label):
        if label in fine or label in problems:
          continue
        try:
          self._classes.id_of(label)
          fine.add(label)
        except UserError as e:
          problems[label] = f'{row.file}, line {row.line}: {e}'
    if problems:
      raise UserError(
        f'{len(problems)} labels are unknown (keys classes_from, class_names, '
        'num_classes):\n  ' + '\n  '.join(list(problems.values())[:10])
      )


def _as_list(label: Any) -> list:
  return label if isinstance(label, list) else [label]


def _read(path: str, columns: list[str]) -> list[tuple[int, dict]]:
  suffix = os.path.splitext(path)[1].lower()
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      if suffix in _JSON:
        return _read_json(file, path)
      if suffix in _DELIMITERS:
        return _read_csv(file, path, suffix, columns)
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise UserError(f'{path} cannot be read: {e}') from e
  known = ', '.join([*_DELIMITERS, *_JSON])
  raise UserError(f'{path}: a table is a file {known}')


def _read_csv(
  file, path: str, suffix: str, columns: list[str]
) -> list[tuple[int, dict]]:
  reader = csv.DictReader(file, delimiter=_DELIMITERS[suffix], strict=True)
  missing = [c for c in columns if c not in (reader.fieldnames or ())]
  if missing:
    raise UserError(
      f'{path} has no column {", ".join(map(repr, missing))}; its first line '
      f'has: {", ".join(reader.fieldnames or ["nothing"])} (keys image_key, '
      'label_key, split_key)'
    )
  return [(reader.line_num, row) for row in reader]


def _read_json(file, path: str) -> list[tuple[int, dict]]:
  rows = []
  for line, text in enumerate(file, 1):
    if not text.strip():
      continue
    try:
      row = json.loads(text)
    except ValueError as e:
      raise UserError(f'{path}, line {line}: {e}') from e
    if not isinstance(row, dict):
      raise UserError(f'{path}, line {line}: expected an object {{...}}')
    rows.append((line, row))
  return rows
