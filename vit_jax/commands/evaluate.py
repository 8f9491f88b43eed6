"""Evaluate any weights, without training and without writing into a run.

examples:
  python -m vit_jax evaluate --weights=runs/pets
  python -m vit_jax evaluate --weights=runs/pets --evals=val --step=newest
  python -m vit_jax evaluate --weights=augreg-B/16 --output=results.json \\
    --config=configs/evaluate.py:/data/pets
  python -m vit_jax evaluate --weights=deit-B/16 --data=folder:/data/imagenet
  python -m vit_jax evaluate --weights=deit-B/16 --labels=imagenet-a \\
    --data=folder:/data/imagenet-a

Weights are whatever vit_jax.load takes: a run, a file, a folder of timm or
Hugging Face, or a published name. The evaluations are those of the run, or
`config.evals` of a recipe. With --data a classifier is scored with its own head
and its own preprocessing, and the published accuracy of published weights is
shown beside. A run may still be training; it is not changed.
"""

import json
import math
import pathlib
from collections.abc import Sequence

from vit_jax.commands import _cli, _config_file
from vit_jax.errors import UserError
from vit_jax.parallel import distributed, preemption
from vit_jax.printable import show

_FRACTIONS = {
  'top1': 'top-1',
  'top5': 'top-5',
  'top1_class_mean': 'top-1, mean over classes',
}
_TITLES = {
  'loss': 'loss',
  'expected_calibration_error': 'calibration error',
  'num_examples': 'images',
  'num_unlabelled': 'images without a label, left out',
  'num_skipped': 'images that cannot be read, left out',
}


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a table of results; returns the exit code."""
  with preemption.exit_at_once():
    return _cli.run_distributed(_main, argv)


def _main(argv: Sequence[str]) -> None:
  parser = _cli.parser('evaluate', __doc__, failure='an evaluation failed')
  parser.add_argument(
    '--weights',
    required=True,
    metavar='WEIGHTS',
    help="such as runs/pets, model.safetensors or 'augreg-B/16'",
  )
  parser.add_argument(
    '--evals', metavar='NAME,NAME', help='which evaluations (default: all)'
  )
  parser.add_argument(
    '--output', metavar='FILE', help='also write the results, as JSON'
  )
  parser.add_argument(
    '--batch_size',
    type=_cli.positive,
    default=128,
    help='where an evaluation has none; it does not change results '
    '(default: %(default)s)',
  )
  parser.add_argument(
    '--mesh',
    type=_cli.dictionary,
    metavar='DICT',
    help="of the devices, such as {'fsdp': 8} to shard the parameters "
    '(default: the batch is sharded over all devices)',
  )
  parser.add_argument(
    '--ops',
    help='host preprocessing where an evaluation has none, such as '
    "'decode|resize(224)' (default: that of the weights)",
  )
  parser.add_argument(
    '--device_ops',
    help="normalization, such as 'normalize(-1, 1)' (default: that of the "
    'weights)',
  )
  parser.add_argument(
    '--image_size',
    type=_cli.size,
    metavar='SIZE',
    help='of images, such as 384 or 384,256: where an evaluation has no ops, '
    'those of the weights give this size, and positions are resized (default: '
    'that of the weights)',
  )
  _add_score_options(parser)
  _cli.add_weights_options(parser)
  distributed.add_flags(parser)
  config, args = _config_file.parse(parser, argv, required=False)
  evals = None if config is None else _config_file.sections(config).get('evals')
  if config is not None and not evals:
    raise UserError(f'--config={args.config} has no config.evals')
  if args.output and pathlib.Path(args.output).is_dir():
    raise UserError(f'--output={args.output} is a folder; give a file')
  _check_score_options(args)
  distributed.initialize(args)
  # Importing jax takes seconds: a mistyped command should not wait for it.
  import jax

  from vit_jax.parallel import mesh as mesh_lib
  from vit_jax.training import evaluate, evaluation, score

  shared = dict(
    batch_size=args.batch_size,
    ops=args.ops,
    device_ops=args.device_ops,
    image_size=args.image_size,
    mesh=mesh_lib.make_mesh(**args.mesh) if args.mesh else None,
    **_cli.weights_options(args),
  )
  if args.data:
    scored = score.score(
      args.weights,
      args.data,
      split=args.split,
      labels=args.labels,
      preset=args.preset,
      loss=args.loss,
      per_class=args.per_class,
      report=args.report,
      **shared,
    )
    if not jax.process_index():
      _print_score(args, scored)
      if args.output:
        _write(args, scored)
    return
  results = evaluate.evaluate(
    args.weights,
    evals,
    names=args.evals.split(',') if args.evals else None,
    **shared,
  )
  if jax.process_index():
    return
  step = results.source.get('step')
  title = pathlib.PurePath(args.weights).name
  title += '' if step is None else f', step {step:,}'
  evaluation.print_results(results.metrics, title)
  if args.output:
    _write(args, results)


def _add_score_options(parser) -> None:
  group = parser.add_argument_group('the score of a classifier')
  group.add_argument(
    '--data',
    metavar='DATA',
    help='labelled images: /path of folders or of what prepare wrote, a '
    'dataset of TFDS, or any source and keys',
  )
  group.add_argument(
    '--split', help='of the data (default: val, or else test, of a folder)'
  )
  group.add_argument(
    '--labels',
    metavar='SET',
    help='protocol of a test set of ImageNet: imagenet-v2, imagenet-a, '
    'imagenet-r, imagenet-sketch, real:/path/real.json, objectnet:/path',
  )
  group.add_argument(
    '--preset',
    metavar='FAMILY',
    help='family of models whose preprocessing is used, such as deit '
    '(default: that of the weights)',
  )
  group.add_argument(
    '--loss', help='softmax or sigmoid (default: that of the weights)'
  )
  group.add_argument(
    '--per_class', action='store_true', help='also score each class'
  )
  group.add_argument(
    '--report',
    action='store_true',
    help='also precision, recall, specificity, F1, ROC-AUC and average '
    'precision, with 95 %% bootstrap intervals',
  )


def _check_score_options(args) -> None:
  """Raises UserError where options are of two ways to evaluate."""
  ours = ('split', 'labels', 'preset', 'loss', 'per_class', 'report')
  given = [f'--{name}' for name in ours if getattr(args, name)]
  if given and not args.data:
    raise UserError(f'{given[0]} needs --data, the images to score')
  if args.data and (args.config or args.evals):
    other = '--config' if args.config else '--evals'
    raise UserError(
      f'--data and {other} are two ways to say what to evaluate; give one'
    )


def _print_score(args, scored) -> None:
  """Prints what was measured beside what was published."""
  from vit_jax.reporting import tables
  from vit_jax.training import evaluation

  published, metrics = scored.published, dict(scored.metrics)
  rows = []
  for key, title in _FRACTIONS.items():
    if key in metrics:
      value, reported = 100 * metrics.pop(key), getattr(published, key, None)
      row = [title, f'{value:.3f} %']
      if published is not None:
        more = ('', '')
        if reported is not None:
          more = (f'{reported} %', f'{value - reported:+.3f} %')
        row += more
      rows.append(row)
  empty = [''] * (0 if published is None else 2)
  for key, title in _TITLES.items():
    if key in metrics:
      value = metrics.pop(key)
      text = f'{value:,.0f}' if key.startswith('num_') else f'{value:.4f}'
      rows.append([title, text, *empty])
  header = ['', 'measured']
  header += ['published', 'difference'] if published is not None else []
  step = scored.source.get('step')
  weights = pathlib.PurePath(args.weights).name
  if '/' in args.weights and not pathlib.Path(args.weights).exists():
    weights = args.weights  # A published name.
  weights += '' if step is None else f', step {step:,}'
  title = f'{weights} on {scored.name} of {args.data}'
  tables.print_table(rows, header=header, title=title)
  report = scored.report
  rows = [
    [
      key,
      f'{report[key]:.4f}',
      f'{report[f"{key}_low"]:.4f} to {report[f"{key}_high"]:.4f}',
    ]
    for key in report
    if f'{key}_low' in report
  ]
  if rows:
    header = ['', 'measured', '95 % interval']
    tables.print_table(rows, header=header, title='report')
  metrics |= {k: x for k, x in report.items() if '/' in k}
  if metrics:  # Those of classes.
    metrics = {f'{scored.name}/{k}': x for k, x in metrics.items()}
    evaluation.print_results(metrics, 'classes')
  prepared = [scored.preprocess.get(key) for key in ('ops', 'device_ops')]
  show(f'images: {" | ".join(x for x in prepared if x)}')
  if published is not None:
    num = scored.metrics['num_examples']
    note = '' if num == 50_000 else f', on 50,000 images (here {num:,.0f})'
    show(f'published: {published.source}{note}')


def _write(args, results) -> None:
  """Writes the results as JSON, in which what is not finite is null."""
  metrics = {
    name: value if math.isfinite(value) else None
    for name, value in results.metrics.items()
  }
  found = dict(
    weights=args.weights,
    step=results.source.get('step'),
    averaged=results.source.get('ema'),
    metrics=metrics,
  )
  if args.data:
    found |= dict(data=args.data, labels=args.labels, split=results.name)
    found |= dict(preprocess=results.preprocess, report=results.report)
    if results.published is not None:
      found['published'] = results.published._asdict()
  path = pathlib.Path(args.output).expanduser()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + '\n')
  except OSError as e:
    raise UserError(f'cannot write --output={args.output}: {e}') from e
  show(f'results: {path}')
