"""The one command: `python -m vit_jax.main --config=... --workdir=...`.

Exit codes: 0 done, 1 the run failed, 2 the user can mend it (config, data,
paths), 42 preempted after saving (start the same command again), 130 Ctrl-C.
"""

import argparse
import sys

from vit_jax import config_file
from vit_jax.errors import RunError, UserError


def main(argv: list[str] | None = None) -> int:
  """Trains or evaluates what a config says; returns the exit code."""
  parser = argparse.ArgumentParser('python -m vit_jax.main')
  parser.add_argument('--workdir', required=True, help='where the run lives')
  parser.add_argument(
    '--traceback', action='store_true', help='show where an error came from'
  )
  show_traceback = '--traceback' in (sys.argv if argv is None else argv)
  try:
    config, args = config_file.parse(parser, argv)
    # Importing jax takes seconds: a mistyped command should not wait for it.
    from vit_jax import lookup, train

    sections = config.to_dict()
    lookup.check_keys(train.train, sections, 'config', num_args=1)
    train.train(args.workdir, **sections)
  except (UserError, RunError) as e:
    if show_traceback:
      raise
    notes = getattr(e, '__notes__', [])
    print('\n'.join([f'error: {e}', *notes]), file=sys.stderr)
    return 2 if isinstance(e, UserError) else 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
