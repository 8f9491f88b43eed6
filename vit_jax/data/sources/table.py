"""Images listed in a CSV or JSONL file, with one path and label per row.

image,label            {"image": "a/1.jpg", "label": "cat"}
a/1.jpg,cat            {"image": "a/2.jpg", "label": ["cat", "dog"]}
"""

import csv
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from vit_jax.data import (
  fields,
  folders,
  labels as labels_lib,
  splits,
)
from vit_jax.errors import UserError

_DELIMITERS = {'.csv': ',', '.tsv': '\t'}
_JSON = ('.jsonl', '.ndjson')


class _Row(NamedTuple):
  file: str
  line: int
  image: str | None
  label: Any
  others: dict[str, Any]


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
    columns: fields.ColumnNames = (),
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
      split_key: the column with the split of a row.
      separator: between several labels in a cell, such as `';'`.
        With it every label becomes a vector; an empty cell means no label.
      data_dir: where relative paths start; None is the folder of the table.
      num_classes: how many classes there are; or
      class_names: their names, a list or a file of them. Without either the
        labels decide: numbers are class ids, names are sorted.
      classes_from: the split whose labels decide, if there are several.
      columns: other columns as fields of examples, see `data/fields.py`.

    Raises:
      UserError: no such file, split or column, lines that cannot be read, or
        labels that are not among the classes.
    """
    self._split = splits.parse(split)
    self._path, self._separator = path, separator
    self._image_key, self._label_key = image_key, label_key
    self._split_key = split_key
    self._columns = fields.Columns(columns)
    self._root = os.path.expanduser(data_dir) if data_dir else None
    rows = self._rows(self._split.name)
    self._several = separator is not None or any(
      isinstance(row.label, list) for row in rows
    )
    classes = labels_lib.classes(num_classes, class_names)
    self._classes = classes or self._derived(rows, classes_from)
    self.num_classes, self.class_names = self._classes.num, self._classes.names
    self._check(rows)
    for name in self._columns.names:
      self._columns.learn(name, (row.others[name] for row in rows))
    self.fields = self._columns.roles
    self.column_texts = self._columns.texts
    self._chosen = [rows[i] for i in self._split.records(len(rows))]

  def __len__(self) -> int:
    return len(self._chosen)

  def __getitem__(self, index: int) -> dict:
    row, label = self._chosen[index], {}
    if not row.image:
      raise UserError(f'the column {self._image_key!r} is empty')
    if self._label_key is not None:
      if row.label is None or row.label == '':
        raise UserError(f'the label is missing: {self._label_key!r} is empty')
      if self._several:
        label = {'label': self._classes.vector_of(_as_list(row.label))}
      else:
        label = {'label': self._classes.id_of(row.label)}
    others = self._columns.encode(row.others)
    image = folders.read_file(self._image_path(row))
    return {'image': image} | label | others

  def labels(self) -> list:
    """Returns the class id of every record; None without just one."""
    if self._several or self._label_key is None:
      return [None] * len(self)
    return [
      None if row.label in (None, '') else self._classes.id_of(row.label)
      for row in self._chosen
    ]

  def describe(self, index: int) -> str:
    """Returns the path of the image and the line that names it."""
    row = self._chosen[index]
    path = folders.as_utf8(self._image_path(row))
    return f'{path} (line {row.line} of {row.file})'

  def _image_path(self, row: _Row) -> str:
    root = self._root or os.path.dirname(row.file)
    return os.path.join(root, os.path.expanduser(row.image or '?'))

  def _rows(self, split: str) -> list[_Row]:
    if self._split_key is not None and '{split}' in self._path:
      raise UserError(f'{self._path}: give {{split}} or split_key, not both')
    files = splits.files(
      self._path, split if self._split_key is None else splits.ALL
    )
    keys = [self._image_key, self._label_key, self._split_key]
    keys = [key for key in keys if key is not None] + self._columns.names
    rows, found = [], set()
    for file in files:
      for line, row in _read(file, keys):
        row_split = str(row.get(self._split_key))
        found.add(row_split)
        if self._split_key is None or row_split == split:
          rows.append(self._row(file, line, row))
    if not rows and found and self._split_key is not None:
      raise UserError(
        f'{self._path}: no row with {self._split_key!r} {split!r}; there are: '
        f'{", ".join(sorted(found)[:10])}'
      )
    if not rows:
      raise UserError(f'{self._path} has no rows')
    return rows

  def _row(self, file: str, line: int, row: dict[str, Any]) -> _Row:
    """Returns the row; its label is a value, a list of them, or None."""
    image, label = row.get(self._image_key), row.get(self._label_key)
    if not isinstance(image, str | None):
      raise UserError(
        f'{file}, line {line}: {self._image_key!r} is {image!r}; expected the '
        'path of a file'
      )
    if self._separator is not None and isinstance(label, str):
      label = [v for v in label.split(self._separator) if v.strip()]
    for value in _as_list(label):
      if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise UserError(
          f'{file}, line {line}: {self._label_key!r} is {label!r}; expected a '
          'class id, a class name, or a list of them'
        )
    plain = [v.strip() if isinstance(v, str) else v for v in _as_list(label)]
    label = plain if isinstance(label, list) else plain[0]
    others = {name: row.get(name) for name in self._columns.names}
    return _Row(file, line, image, label, others)

  def _derived(self, rows: list[_Row], classes_from: str) -> labels_lib.Classes:
    if self._label_key is None:
      return labels_lib.Classes(None, None)
    one_split = '{split}' not in self._path and self._split_key is None
    if not one_split and classes_from != self._split.name:
      rows = self._rows(classes_from)
    labels = (label for row in rows for label in _as_list(row.label))
    try:
      return labels_lib.derived(labels)
    except UserError as e:
      raise UserError(f'{self._path}: {e}') from e

  def _check(self, rows: list[_Row]) -> None:
    """Raises where labels are unknown; missing ones fail when they are read."""
    seen, problems = {None, ''}, []
    for row in rows:
      for label in _as_list(row.label):
        if label in seen:
          continue
        seen.add(label)
        try:
          self._classes.id_of(label)
        except UserError as e:
          problems.append(f'{row.file}, line {row.line}: {e}')
    if problems:
      raise UserError(
        f'{len(problems)} labels are unknown (keys classes_from, class_names, '
        'num_classes):\n  ' + '\n  '.join(problems[:10])
      )


def _as_list(label: Any) -> list:
  return label if isinstance(label, list) else [label]


def _read(path: str, columns: list[str]) -> list[tuple[int, dict]]:
  """Returns the number of the line and the cells by column of each row."""
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in (*_DELIMITERS, *_JSON):
    known = ', '.join([*_DELIMITERS, *_JSON])
    raise UserError(f'{path}: a table is a file {known}')
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      if suffix in _JSON:
        return _read_json(file, path, columns)
      return _read_csv(file, path, _DELIMITERS[suffix], columns)
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise UserError(f'{path} cannot be read: {e}') from e


def _read_csv(file, path: str, delimiter: str, columns: list[str]):
  reader = csv.DictReader(file, delimiter=delimiter, strict=True)
  names = reader.fieldnames or []
  fields.check_present(path, columns, names, has='its first line has')
  twice = [repr(c) for c in columns if names.count(c) > 1]
  if twice:
    raise UserError(
      f'{path}: the first line has {", ".join(twice)} more than once; which '
      'column is meant?'
    )
  rows = []
  for row in reader:
    if None in row:  # where DictReader puts what has no name
      raise UserError(
        f'{path}, line {reader.line_num}: {len(names) + len(row[None])} cells '
        f'in {len(names)} columns; a cell with a {delimiter!r} in it must be '
        'in quotes'
      )
    rows.append((reader.line_num, row))
  return rows


def _read_json(file, path: str, columns: list[str]):
  rows, names = [], set()
  for line, text in enumerate(file, 1):
    if not text.strip():
      continue
    try:
      row = json.loads(text)
    except (ValueError, RecursionError) as e:
      raise UserError(f'{path}, line {line}: {e}') from e
    if not isinstance(row, dict):
      raise UserError(f'{path}, line {line}: expected an object {{...}}')
    names |= row.keys()
    rows.append((line, row))
  if rows:
    fields.check_present(path, columns, sorted(names), has='its rows have')
  return rows
