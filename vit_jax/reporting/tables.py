"""Tables on the terminal."""

import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TextIO

from vit_jax.printable import printable

_MAX_COLUMNS = 8
_MAX_LABEL = 40  # Characters: longer labels may take several lines.
_WIDTH = 200  # Of a file or a pipe.


def print_table(
  rows: Iterable[Sequence[str]],
  *,
  header: Sequence[str] = (),
  left: Collection[int] = (0,),
  title: str | None = None,
  file: TextIO | None = None,
) -> None:
  """Prints rows of texts: with colours on a terminal, else as plain text.

  Args:
    rows: of as many texts each; an empty row ends a section.
    header: names of the columns; the table has no header without them.
    left: numbers of the columns that are aligned to the left.
  """
  import rich.box
  import rich.console
  import rich.table

  rows = list(rows)
  file = sys.stdout if file is None else file
  table = rich.table.Table(
    title=None if title is None else printable(title),
    box=rich.box.SIMPLE_HEAD,
    show_header=bool(header),
  )
  longest = max((len(row[0]) for row in rows if row), default=0)
  for i in range(max(map(len, [header, *rows]))):
    table.add_column(
      printable(header[i]) if header else '',
      justify='left' if i in left else 'right',
      overflow='fold',
      no_wrap=i == 0 and longest <= _MAX_LABEL,
    )
  for row in rows:
    if row:
      table.add_row(*map(printable, row))
    else:
      table.add_section()
  width = None if file.isatty() else _WIDTH
  options = dict(width=width, markup=False, emoji=False)
  rich.console.Console(file=file, **options).print(table)


def print_metrics(
  title: str,
  rows: Mapping[str, Mapping[str, float]],
  *,
  file: TextIO | None = None,
) -> None:
  """Prints results: a line for each key of `rows`, a column for each metric.

  `print_metrics('results', {'val (params)': {'top1': 0.98, 'loss': 0.07}})`.
  Lines and columns change places where there are many more metrics than `rows`.
  """
  names = list(dict.fromkeys(name for row in rows.values() for name in row))
  header = ['', *names]
  lines = [
    [label, *(_format(name, row.get(name)) for name in names)]
    for label, row in rows.items()
  ]
  if len(names) > max(_MAX_COLUMNS, len(rows)):
    header, *lines = zip(header, *lines, strict=True)
  print_table(lines, header=header, title=title, file=file)


def _format(name: str, value: float | None) -> str:
  if value is None:
    return '-'
  if isinstance(value, int) or name.split('/')[-1].startswith('num_'):
    return f'{value:,.0f}'
  size = abs(value)
  if not math.isfinite(value) or size >= 1e6 or 0 < size < 1e-3:
    return f'{value:.3g}'
  return f'{value:,.1f}' if size >= 1000 else f'{value:.4f}'
