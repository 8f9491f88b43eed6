"""Train a model, continue a run, or evaluate one.

example:
  python -m vit_jax train --config=configs/quickstart.py --workdir=runs/quick \\
    --config.optimizer.learning_rate=1e-3

A recipe is a Python file; options of it follow a colon, as in
--config=configs/vit_i1k.py:S/16,smoke. A run that was stopped continues when
the same command is started again. --config.total_steps=0 only evaluates.
"""

from collections.abc import Sequence

from vit_jax.commands import _cli, _config_file
from vit_jax.parallel import distributed, preemption


def main(argv: Sequence[str] | None = None) -> int:
  """Trains or evaluates what a config says; returns the exit code."""
  with preemption.exit_at_once():
    return _cli.run_distributed(_main, argv)


def _main(argv: Sequence[str]) -> None:
  parser = _cli.parser(
    'train',
    __doc__,
    failure='the run failed: a non-finite loss, a full disk',
    more_codes='  42   preempted (SIGTERM); saved, the same command continues',
  )
  parser.add_argument(
    '--workdir',
    required=True,
    type=_cli.folder,
    metavar='FOLDER',
    help='for checkpoints, metrics and pictures; made if it is missing',
  )
  parser.add_argument(
    '--profile',
    metavar='START:STOP',
    help='record a trace of these training steps in <workdir>/profile, for '
    'TensorBoard or xprof',
  )
  distributed.add_flags(parser)
  config, args = _config_file.parse(parser, argv)
  distributed.initialize(args)
  # Importing jax takes seconds: a mistyped command should not wait for it.
  from vit_jax import lookup
  from vit_jax.training import train

  sections = _config_file.sections(config)
  if args.profile is not None:
    sections['profile'] = args.profile
  lookup.check_keys(train.train, sections, 'config', num_args=1)
  train.train(args.workdir, **sections)
