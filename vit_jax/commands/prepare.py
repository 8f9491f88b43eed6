"""Convert a dataset to a few large files with random access (ArrayRecord).

example:
  python -m vit_jax prepare folder:/data/pets /data/pets_records \\
    --split=train,val --resize_small=256

Recipes read the result with data=records:/data/pets_records. If it is
stopped, the same command continues; it replaces files whose size is wrong.
TARGET/<split>/dataset.json lists the classes, their number of images and the
images that were skipped.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from vit_jax.commands import _cli
from vit_jax.errors import UserError
from vit_jax.printable import plural, printable, show

_MAX_NAMED = 10


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the files and prints a summary; returns the exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> None:
  args = _parser().parse_args(argv)
  from vit_jax.data import open_source, splits

  if args.split is None:
    found = open_source.splits(args.source) or ['train']
    show(f'splits   {", ".join(found)} (--split chooses)')
    args.split = ','.join(found)
  named = [word.strip().rpartition('=') for word in args.split.split(',')]
  for name, _, split in named:
    if splits.parse(split).name != split:
      raise UserError(
        f'--split={split}: prepare takes whole splits; a slice is taken when '
        'they are read'
      )
    if name.startswith(('/', '..')):
      raise UserError(
        f'--split={name}=...: expected the name of a folder in TARGET'
      )
  if not args.target.strip():
    raise UserError(
      "TARGET='': expected the path of a folder; is a variable of the shell "
      'not set?'
    )
  if args.resize_small is None and args.quality is not None:
    raise UserError('--quality has no effect without --resize_small')
  for name, _, split in named:
    _prepare(split, name or split, args)


def _parser() -> argparse.ArgumentParser:
  from vit_jax.data import open_source

  parser = _cli.parser(
    'prepare', __doc__, failure='a file could not be written'
  )
  parser.add_argument('source', metavar='SOURCE', help=open_source.HELP)
  parser.add_argument('target', metavar='TARGET', help='folder for the files')
  parser.add_argument(
    '--split',
    help='one or several, such as train,val; validation=val writes the split '
    'val as validation (default: all of a folder, train of other sources)',
  )
  parser.add_argument(
    '--resize_small',
    type=int,
    metavar='PIXELS',
    help='shrink images whose shorter side is longer than this',
  )
  parser.add_argument(
    '--quality',
    type=int,
    help='of the JPEGs that shrinking makes (default: 95)',
  )
  parser.add_argument(
    '--on_error',
    choices=('stop', 'skip'),
    default='stop',
    help='at an image that cannot be read (default: %(default)s)',
  )
  parser.add_argument(
    '--examples_per_shard',
    type=int,
    help='images in a file (default: 8192, or more to have at most 512 files)',
  )
  parser.add_argument(
    '--num_threads',
    type=_cli.positive,
    default=min(16, 2 * (os.cpu_count() or 1)),
    help='that read and encode (default: %(default)s)',
  )
  return parser


def _prepare(split: str, name: str, args: argparse.Namespace) -> None:
  from vit_jax.data import open_source
  from vit_jax.data.storage import shards

  source = open_source.open_text(args.source, split)
  contents = plural(len(source), 'image')
  if source.num_classes is not None:
    contents += f' of {plural(source.num_classes, "class", "classes")}'
  show(f'source   {args.source}, {split}: {contents}')
  writer = shards.Writer(
    source,
    pathlib.Path(args.target).expanduser() / name,
    settings=dict(
      source=open_source.parse(args.source),
      split=split,
      on_error=args.on_error,
    ),
    skip=args.on_error == 'skip',
    num_threads=args.num_threads,
    resize_small=args.resize_small,
    quality=95 if args.quality is None else args.quality,
    examples_per_shard=args.examples_per_shard,
  )
  ready = writer.existing_shards()
  if ready:
    print(f'resumed  {len(ready)} of {writer.num_shards} files exist')
  done = sum(shard['num_examples'] for shard in ready.values())
  with _cli.progress(name, len(source), done) as advance:
    for k in range(writer.num_shards):
      if k not in ready:
        ready[k] = writer.write(k, advance)
        if not sys.stderr.isatty():
          print(f'written  {ready[k]["file"]}', flush=True)
  info = writer.finish([ready[k] for k in range(writer.num_shards)])
  target, size = f'{args.target}/{name}', info['num_bytes']
  show(
    f'target   {target}: {plural(info["num_examples"], "image")} in '
    f'{plural(len(info["shards"]), "file")}, {size / 1e6:,.1f} MB'
  )
  if counts := info['class_counts']:
    most, least = max(counts), min(counts)
    print(f'classes  {len(counts):,}, with {least:,} to {most:,} images each')
  if skipped := info['skipped']:
    print(f'skipped  {plural(len(skipped), "image")} that cannot be read:')
    for problem in skipped[:_MAX_NAMED]:
      print(f'  {printable(problem)}')
    if (more := len(skipped) - _MAX_NAMED) > 0:
      show(f'  and {more:,} more, all in {target}/dataset.json')
