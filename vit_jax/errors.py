"""The two errors that end a run with a message instead of a stack trace."""


class UserError(ValueError):
  """Something the user can mend: a config, a path, an image.

  The message says what we got, what we expected and how to fix it.
  `vit_jax.main` prints it alone and exits with code 2.
  """


class RunError(RuntimeError):
  """A run that cannot go on: a non-finite loss, a full disk.

  The message says what is lost and what is safe. `vit_jax.main` prints it
  alone and exits with code 1.
  """
