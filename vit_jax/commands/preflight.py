"""Check every image of a dataset before training.

example:
  python -m vit_jax preflight folder:/data/pets --split=train,val

Reports the classes and their number of images, image sizes, broken images and
duplicates, also between splits, where they make test results worthless.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from vit_jax.commands import _cli
from vit_jax.printable import plural, printable, printable_json, show

_MAX_NAMED = 10
_MAX_CLASSES = 40


def main(argv: Sequence[str] | None = None) -> int:
  """Prints what a dataset holds; returns the exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> int:
  args = _parser().parse_args(argv)
  from vit_jax.data import ops_language, source_text, thread_map
  from vit_jax.data.storage import inspection

  ops = ops_language.parse(args.ops, trusted=True)
  found = {}
  wanted = args.split and [name.strip() for name in args.split.split(',')]
  if wanted is None:
    wanted = source_text.splits(args.source) or ['train']
    show(f'checking {", ".join(wanted)} (--split chooses)', file=sys.stderr)
  for split in wanted:
    source = source_text.build(args.source, split)
    with thread_map.progress(split, len(source)) as advance:
      found[split] = inspection.scan(source, ops, args.num_threads, advance)
  report = inspection.report(found)
  if args.format == 'json':
    print(printable_json(report, indent=1))
  else:
    _print(report)
  return int(any(split['broken'] for split in report['splits'].values()))


def _parser() -> argparse.ArgumentParser:
  from vit_jax.data import source_text

  parser = _cli.parser('preflight', __doc__, failure='some images are broken')
  parser.add_argument('source', metavar='SOURCE', help=source_text.HELP)
  parser.add_argument(
    '--split',
    help='one or several, such as train,val (default: all of a folder, train '
    'of other sources)',
  )
  parser.add_argument(
    '--ops',
    default='decode',
    help='host ops to run on every image (default: %(default)s)',
  )
  parser.add_argument('--format', choices=('table', 'json'), default='table')
  parser.add_argument(
    '--num_threads',
    type=_cli.positive,
    default=min(16, os.cpu_count() or 1),
    help='that read and decode (default: %(default)s)',
  )
  return parser


def _print(report: dict[str, Any]) -> None:
  import rich.console

  width = None if sys.stdout.isatty() else 200
  console = rich.console.Console(
    width=width, markup=False, emoji=False, highlight=False
  )
  console.print(_splits_table(report['splits']))
  if any(split['classes'] for split in report['splits'].values()):
    console.print(_classes_table(report['splits']))
  for name, split in report['splits'].items():
    if broken := split['broken']:
      console.print(f'{name}: {plural(len(broken), "broken image")}:')
      lines = [f'{entry["name"]}: {entry["problem"]}' for entry in broken]
      _print_first(console, lines)
  _print_duplicates(console, report['duplicates'])


def _splits_table(splits: dict[str, Any]):
  table = _table()
  for column in ('split', 'images', 'classes', 'MB', 'broken', 'formats'):
    table.add_column(column)
  table.add_column('height: least, median, most')
  table.add_column('width: least, median, most')
  for name, split in splits.items():
    formats = ', '.join(f'{n:,} {kind}' for kind, n in split['formats'].items())
    sides = (
      ' '.join(f'{n:g}' for n in split[side]) for side in ('height', 'width')
    )
    table.add_row(
      name,
      f'{split["num_examples"]:,}',
      f'{split["num_classes"] or 0:,}',
      f'{split["num_bytes"] / 1e6:,.1f}',
      f'{len(split["broken"]):,}',
      formats,
      *sides,
    )
  return table


def _classes_table(splits: dict[str, Any]):
  """Returns the images of each class; the fewest and the most of very many."""
  names = list(next(iter(splits.values()))['classes'])
  counts = {
    name: [split['classes'].get(name, 0) for split in splits.values()]
    for name in names
  }
  names.sort(key=lambda name: sum(counts[name]))
  left_out = len(names) - _MAX_CLASSES
  if left_out > 0:
    half = _MAX_CLASSES // 2
    names = [*names[:half], None, *names[-half:]]
  table = _table()
  for column in ('class', *splits):
    table.add_column(column)
  for name in names:
    if name is None:
      table.add_row(f'... {left_out:,} more ...')
    else:
      table.add_row(printable(name), *(f'{n:,}' for n in counts[name]))
  return table


def _table():
  import rich.box
  import rich.table

  return rich.table.Table(box=rich.box.SIMPLE_HEAD)


def _print_duplicates(console, groups: list[dict[str, Any]]) -> None:
  if not groups:
    console.print('no image is there twice')
    return
  between = sum(len(set(group['splits'])) > 1 for group in groups)
  labels = sum(group['labels_differ'] for group in groups)
  console.print(
    f'{plural(len(groups), "image is", "images are")} there more than once, '
    f'{between:,} of them in several splits, {labels:,} with labels that '
    'differ:'
  )
  _print_first(console, [' = '.join(group['names']) for group in groups])


def _print_first(console, lines: list[str]) -> None:
  for line in lines[:_MAX_NAMED]:
    console.print(f'  {printable(line)}', soft_wrap=True)
  if len(lines) > _MAX_NAMED:
    console.print(f'  and {len(lines) - _MAX_NAMED:,} more: see --format=json')
