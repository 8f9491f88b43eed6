"""Classify images with trained weights.

example:
  python -m vit_jax predict --weights=runs/pets cat.jpg photos/ --top_k=3

Weights are whatever vit_jax.load takes: a run, a file, a folder of timm or
Hugging Face, or a published name. All images in a folder and its subfolders are
classified. Images that cannot be read are listed at the end.
"""

import argparse
import csv
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vit_jax.commands import _cli
from vit_jax.errors import UserError
from vit_jax.printable import printable, printable_json, show

_MAX_BATCH_SIZE = 32
_FORMATS = ('table', 'json', 'csv')


def main(argv: Sequence[str] | None = None) -> int:
  """Prints predictions for images; returns the exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> int:
  args = _parser().parse_intermixed_args(argv)
  # Importing jax takes seconds: a mistyped command should not wait for it.
  from vit_jax.inference import images, model as model_lib

  log = functools.partial(show, file=sys.stderr)
  paths = images.find(args.images, on_log=log)
  model = model_lib.load(
    args.weights,
    ops=args.ops,
    device_ops=args.device_ops,
    class_names=args.class_names,
    loss=args.loss,
    image_size=args.image_size,
    batch_size=args.batch_size or min(len(paths), _MAX_BATCH_SIZE),
    **_cli.weights_options(args),
  )
  broken = []
  write = {'table': _write_table, 'json': _write_json, 'csv': _write_csv}
  with _cli.progress('predicting', len(paths)) as advance:
    write[args.format](_answers(model, paths, args.top_k, broken, advance))
  if broken:
    lines = [f'{len(broken)} of {len(paths)} images could not be read:']
    show('\n  '.join([*lines, *broken]), file=sys.stderr)
  return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
  parser = _cli.parser(
    'predict', __doc__, failure='some images could not be read'
  )
  parser.add_argument(
    'images', nargs='+', metavar='IMAGE', help='file or folder'
  )
  parser.add_argument(
    '--weights',
    required=True,
    metavar='WEIGHTS',
    help="such as runs/pets, model.safetensors or 'augreg-B/16'",
  )
  parser.add_argument(
    '--top_k',
    type=_cli.positive,
    default=5,
    help='classes to list for each image (default: %(default)s)',
  )
  parser.add_argument('--format', choices=_FORMATS, default='table')
  parser.add_argument(
    '--batch_size',
    type=_cli.positive,
    help='images in a batch (default: the number of images, '
    f'{_MAX_BATCH_SIZE} at most)',
  )
  group = parser.add_argument_group('replacing what comes with the weights')
  group.add_argument(
    '--ops', help="host preprocessing, such as 'decode|resize(224)'"
  )
  group.add_argument(
    '--device_ops', help="normalization, such as 'normalize(-1, 1)'"
  )
  group.add_argument(
    '--class_names',
    metavar='FILE',
    help="names, as a JSON list or one per line; or 'imagenet'",
  )
  group.add_argument(
    '--loss',
    choices=('softmax', 'sigmoid'),
    help='that turns logits into probabilities',
  )
  group.add_argument(
    '--image_size',
    type=int,
    metavar='PIXELS',
    help='side of the square that the model gets, if not that of the weights:'
    ' positions are resized',
  )
  _cli.add_weights_options(parser)
  return parser


def _answers(
  model: Any,
  paths: Sequence[str],
  top_k: int,
  broken: list[str],
  advance: Callable[[], None],
) -> Iterator[tuple[str, list[Any]]]:
  """Yields each path with its predictions; fills the list of broken ones."""
  rows = model.stream(paths, outputs=('logits',))
  for path, row in zip(paths, rows, strict=True):
    advance()
    if isinstance(row, UserError):
      broken.append(str(row))
    else:
      yield path, model.best(row['logits'], top_k=top_k)


def _write_table(answers: Iterator[tuple[str, list[Any]]]) -> None:
  from vit_jax.reporting import tables

  rows = []
  for path, predictions in answers:
    for i, found in enumerate(predictions):
      rows.append(('' if i else path, f'{found.probability:.2%}', found.name))
    rows.append(())
  if rows:
    header = ('image', 'probability', 'class')
    tables.print_table(rows, header=header, left=(0, 2))


def _write_json(answers: Iterator[tuple[str, list[Any]]]) -> None:
  """One list, an image in a line, written as the answers come."""
  print('[', end='')
  for i, (path, predictions) in enumerate(answers):
    found = [prediction._asdict() for prediction in predictions]
    line = printable_json(dict(image=path, predictions=found))
    print(',\n' if i else '\n', line, sep='', end='', flush=True)
  print('\n]')


def _write_csv(answers: Iterator[tuple[str, list[Any]]]) -> None:
  """An answer in a line: the best of an image first."""
  writer = csv.writer(sys.stdout, lineterminator='\n')
  writer.writerow(['image', 'rank', 'label', 'class', 'probability'])
  for path, predictions in answers:
    for rank, found in enumerate(predictions, 1):
      image, name = printable(path), printable(found.name)
      probability = f'{found.probability:.6g}'
      writer.writerow([image, rank, found.label, name, probability])
