"""`python -m vit_jax COMMAND`: a command is a file of `commands/`.

A dotted name is a module of the user's own with a `main(argv)`.
"""

import sys
from collections.abc import Sequence

from vit_jax import lookup
from vit_jax.commands import _cli
from vit_jax.printable import show

_USAGE = """usage: python -m vit_jax COMMAND [arguments]

commands (python -m vit_jax COMMAND --help):
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command that the first argument names; returns its exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> int:
  if not argv or argv[0] in ('-h', '--help'):
    show(_USAGE + '\n'.join(_cli.command_lines()))
    return 0 if argv else 2
  name, *rest = argv
  return lookup.find('commands', name, 'main', trusted=True)(rest)


if __name__ == '__main__':
  sys.exit(main())
