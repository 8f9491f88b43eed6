"""The one command: `python -m vit_jax.main --config=... --workdir=...`.

Exit codes: 0 done, 1 the run failed, 2 a mistake that you can fix (config,
data, paths), 42 preempted, with everything saved (start the same command
again), 130 Ctrl-C.
"""

import sys
import traceback
from collections.abc import Sequence

from vit_jax import command, config_file, distributed, preemption
from vit_jax.printable import show


def main(argv: Sequence[str] | None = None) -> int:
  """Trains or evaluates what a config says; returns the exit code."""
  try:
    code = command.run(_main, argv)
  except Exception:
    if not distributed.is_connected():
      raise
    show(traceback.format_exc(), file=sys.stderr, end='')
    code = 1
  if code:
    distributed.leave(code)
  return code


def _main(argv: Sequence[str]) -> None:
  parser = command.parser('main', __doc__)
  parser.add_argument('--workdir', required=True, help='where the run lives')
  parser.add_argument(
    '--profile',
    metavar='START:STOP',
    help='trace these steps into <workdir>/profile, for TensorBoard or xprof',
  )
  distributed.add_flags(parser)
  config, args = config_file.parse(parser, argv)
  distributed.initialize(args)
  # Importing jax takes seconds: a mistyped command should not wait for it.
  from vit_jax import lookup, train

  sections = config.to_dict()
  if args.profile is not None:
    sections['profile'] = args.profile
  lookup.check_keys(train.train, sections, 'config', num_args=1)
  train.train(args.workdir, **sections)


if __name__ == '__main__':
  with preemption.exit_at_once():
    sys.exit(main())
