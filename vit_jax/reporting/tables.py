"""Tables of results in the terminal."""

import math
import sys
from collections.abc import Mapping
from typing import TextIO

from vit_jax.printable import printable


def print_table(
  title: str,
  rows: Mapping[str, Mapping[str, float]],
  *,
  file: TextIO | None = None,
) -> None:
  """Prints results: a line for each key of `rows`, a column for each metric.

  `print_table('results', {'val (params)': {'top1': 0.98, 'loss': 0.07}})`. On a
  terminal with colours, elsewhere as plain text of the width it needs. Where
  there are many more metrics than `rows`, lines and columns change places.
  """
  import rich.box
  import rich.console
  import rich.table

  file = sys.stdout if file is None else file
  names = list(dict.fromkeys(name for row in rows.values() for name in row))
  header = ['', *names]
  lines = [
    [label, *(_format(name, row.get(name)) for name in names)]
    for label, row in rows.items()
  ]
  if len(names) > max(_MAX_COLUMNS, len(rows)):
    header, *lines = zip(header, *lines, strict=True)
  table = rich.table.Table(title=printable(title), box=rich.box.SIMPLE_HEAD)
  for i, name in enumerate(header):
    table.add_column(
      printable(name),
      justify='right' if i else 'left',
      overflow='fold',
      no_wrap=not i,
    )
  for line in lines:
    table.add_row(*map(printable, line))
  width = None if file.isatty() else 200
  console = rich.console.Console(
    file=file, width=width, markup=False, emoji=False
  )
  console.print(table)


_MAX_COLUMNS = 8


def _format(name: str, value: float | None) -> str:
  if value is None:
    return '-'
  if isinstance(value, int) or name.split('/')[-1].startswith('num_'):
    return f'{value:,.0f}'
  size = abs(value)
  if not math.isfinite(value) or size >= 1e6 or 0 < size < 1e-3:
    return f'{value:.3g}'
  return f'{value:,.1f}' if size >= 1000 else f'{value:.4f}'
