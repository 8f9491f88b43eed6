"""`python -m vit_jax.main`: the training command, `python -m vit_jax train`."""

import sys

from vit_jax.commands.train import main

if __name__ == '__main__':
  sys.exit(main())
