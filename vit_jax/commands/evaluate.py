"""Evaluate any weights, without training and without writing into a run.

examples:
  python -m vit_jax evaluate --weights=runs/pets
  python -m vit_jax evaluate --weights=runs/pets --evals=val --step=newest
  python -m vit_jax evaluate --weights=augreg-B/16 --output=results.json \\
    --config=configs/evaluate.py:/data/pets

Weights are whatever vit_jax.load takes: a run, a file, a folder of timm or
Hugging Face, or a published name. The evaluations are those of the run, or
`config.evals` of a recipe. A run may still be training; it is not changed.
"""

import json
import math
import pathlib
from collections.abc import Sequence

from vit_jax.commands import _cli, _config_file
from vit_jax.errors import UserError
from vit_jax.parallel import distributed, preemption
from vit_jax.printable import show


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
  _cli.add_weights_options(parser)
  distributed.add_flags(parser)
  config, args = _config_file.parse(parser, argv, required=False)
  evals = None if config is None else _config_file.sections(config).get('evals')
  if config is not None and not evals:
    raise UserError(f'--config={args.config} has no config.evals')
  if args.output and pathlib.Path(args.output).is_dir():
    raise UserError(f'--output={args.output} is a folder; give a file')
  distributed.initialize(args)
  # Importing jax takes seconds: a mistyped command should not wait for it.
  import jax

  from vit_jax.parallel import mesh as mesh_lib
  from vit_jax.training import evaluate, evaluation

  results = evaluate.evaluate(
    args.weights,
    evals,
    names=args.evals.split(',') if args.evals else None,
    batch_size=args.batch_size,
    ops=args.ops,
    device_ops=args.device_ops,
    mesh=mesh_lib.make_mesh(**args.mesh) if args.mesh else None,
    **_cli.weights_options(args),
  )
  if jax.process_index():
    return
  step = results.source.get('step')
  title = pathlib.PurePath(args.weights).name
  title += '' if step is None else f', step {step:,}'
  evaluation.print_results(results.metrics, title)
  if args.output:
    _write(args, results)


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
  path = pathlib.Path(args.output).expanduser()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + '\n')
  except OSError as e:
    raise UserError(f'cannot write --output={args.output}: {e}') from e
  show(f'results: {path}')
