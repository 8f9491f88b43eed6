"""The one command: `python -m vit_jax.main --config=... --workdir=...`.

Exit codes: 0 done, 1 the run failed, 2 the user can mend it (config, data,
paths), 42 preempted after saving (start the same command again), 130 Ctrl-C.
"""

import sys
from collections.abc import Sequence

from vit_jax import command, config_file


def main(argv: Sequence[str] | None = None) -> int:
  """Trains or evaluates what a config says; returns the exit code."""
  return command.run(_main, argv)


def _main(argv: Sequence[str]) -> None:
  parser = command.parser('main', __doc__)
  parser.add_argument('--workdir', required=True, help='where the run lives')
  config, args = config_file.parse(parser, argv)
  # Importing jax takes seconds: a mistyped command should not wait for it.
  from vit_jax import lookup, train

  sections = config.to_dict()
  lookup.check_keys(train.train, sections, 'config', num_args=1)
  train.train(args.workdir, **sections)


if __name__ == '__main__':
  sys.exit(main())
