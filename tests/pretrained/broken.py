"""Cases of broken files, collected by name."""

NESTED = '[' * 100_000


def collect():
  """Returns `cases`, by name, and two ways to add one.

  `case(name, kind, breaks, *args)` adds the function `breaks(path, *args)`,
  which breaks a good file or folder of a kind; see `check_refused`.
  `@broken(name, kind)` adds the function that follows.
  """
  cases = {}

  def case(name, kind, breaks, *args):
    cases[f'{kind}: {name}'] = (kind, lambda path: breaks(path, *args))

  def broken(name, kind):
    return lambda breaks: case(name, kind, breaks)

  return cases, case, broken
