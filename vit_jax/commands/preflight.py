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
_SIDES = ('height', 'width')


def main(argv: Sequence[str] | None = None) -> int:
  """Prints what a dataset holds; returns the exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> int:
  args = _parser().parse_args(argv)
  from vit_jax.data import open_source, ops_language
  from vit_jax.data.storage import inspection

  ops = ops_language.parse(args.ops, trusted=True)
  found = {}
  wanted = args.split and [name.strip() for name in args.split.split(',')]
  if wanted is None:
    wanted = open_source.splits(args.source) or ['train']
    show(f'checking {", ".join(wanted)} (--split chooses)', file=sys.stderr)
  for split in wanted:
    source = open_source.open_text(args.source, split)
    with _cli.progress(split, len(source)) as advance:
      found[split] = inspection.scan(source, ops, args.num_threads, advance)
  report = inspection.report(found)
  if args.format == 'json':
    print(printable_json(report, indent=1))
  else:
    _print(report)
  return int(any(split['broken'] for split in report['splits'].values()))


def _parser() -> argparse.ArgumentParser:
  from vit_jax.data import open_source

  parser = _cli.parser('preflight', __doc__, failure='some images are broken')
  parser.add_argument('source', metavar='SOURCE', help=open_source.HELP)
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
  from vit_jax.reporting import tables

  splits = report['splits']
  header = ('split', 'images', 'classes', 'MB', 'broken', 'formats')
  header += tuple(f'{side}: least, median, most' for side in _SIDES)
  rows = [_summary(name, split) for name, split in splits.items()]
  tables.print_table(rows, header=header, left=range(len(header)))
  if any(split['classes'] for split in splits.values()):
    header = ('class', *splits)
    rows = _class_rows([split['classes'] for split in splits.values()])
    tables.print_table(rows, header=header, left=range(len(header)))
  for name, split in splits.items():
    if broken := split['broken']:
      lines = [f'{entry["name"]}: {entry["problem"]}' for entry in broken]
      title = f'{name}: {plural(len(broken), "broken image")}:'
      _print_first(title, lines)
  groups = report['duplicates']
  between = sum(len(set(group['splits'])) > 1 for group in groups)
  labels = sum(group['labels_differ'] for group in groups)
  title = (
    f'{plural(len(groups), "image occurs", "images occur")} more than once, '
    f'{between:,} of them in several splits, {labels:,} with labels that '
    'differ:'
    if groups
    else 'no image occurs twice'
  )
  _print_first(title, [' = '.join(group['names']) for group in groups])


def _summary(name: str, split: dict[str, Any]) -> list[str]:
  """Returns the row of a split in the table of splits."""
  return [
    name,
    f'{split["num_examples"]:,}',
    f'{split["num_classes"] or 0:,}',
    f'{split["num_bytes"] / 1e6:,.1f}',
    f'{len(split["broken"]):,}',
    ', '.join(f'{n:,} {kind}' for kind, n in split['formats'].items()),
    *(' '.join(f'{n:g}' for n in split[side]) for side in _SIDES),
  ]


def _class_rows(counts: list[dict[str, int]]) -> list[list[str]]:
  """Returns a row for each class: the fewest and the most images of many."""
  rows = {name: [one.get(name, 0) for one in counts] for name in counts[0]}
  lines = [
    [name, *(f'{n:,}' for n in row)]
    for name, row in sorted(rows.items(), key=lambda item: sum(item[1]))
  ]
  left_out = len(lines) - _MAX_CLASSES
  if left_out > 0:
    half = _MAX_CLASSES // 2
    lines[half:-half] = [[f'... {left_out:,} more ...']]
  return lines


def _print_first(title: str, lines: list[str]) -> None:
  print(title)
  for line in lines[:_MAX_NAMED]:
    print(f'  {printable(line)}')
  if len(lines) > _MAX_NAMED:
    print(f'  and {len(lines) - _MAX_NAMED:,} more: see --format=json')
