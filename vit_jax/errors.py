"""Errors that end a run with a message instead of a stack trace.

Messages quote names out of files, addresses and other libraries; as text they
hold nothing that controls a terminal, wherever they are printed.
"""

from vit_jax.printable import printable_lines


class _PrintableError(Exception):
  def __str__(self) -> str:
    """Returns the message with control characters written as escapes."""
    return printable_lines(super().__str__())


class UserError(_PrintableError, ValueError):
  """A problem that the user can fix: a config, a path, an image.

  The message says what we got, what we expected and how to fix it.
  A command prints it alone and exits with code 2.
  """


class DataError(UserError):
  """A problem with the data that a config names; others may be there too."""


class DevicesError(UserError):
  """Devices that a config was not made for; its data may be missing too."""


class RunError(_PrintableError, RuntimeError):
  """A run that cannot go on: a non-finite loss, a full disk.

  The message says what is lost and what is safe. A command prints it alone
  and exits with code 1.
  """
