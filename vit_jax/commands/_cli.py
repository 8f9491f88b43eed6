"""Shared parts of the commands: exit codes, `--help`, options for weights."""

import argparse
import ast
import contextlib
import faulthandler
import functools
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vit_jax import lookup, suggestions
from vit_jax.data import folders
from vit_jax.errors import RunError, UserError
from vit_jax.parallel import distributed, host_memory, platforms
from vit_jax.printable import show

_FOLDER = pathlib.Path(__file__).parent


def run(
  command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None
) -> int:
  """Runs a command and returns its exit code; its errors become one message.

  Codes: what the command returns, 0 for None; 1 it failed; 2 a problem that the
  user can fix; 130 Ctrl-C. With `--traceback` errors are raised as they are.

  Args:
    command: takes the arguments; its parser knows `--traceback`.
    argv: the arguments; None reads those of the process.
  """
  argv = sys.argv[1:] if argv is None else argv
  platforms.skip_absent_tpu()
  host_memory.keep_freed_memory()
  folders.ignore_warnings()
  if sys.__stderr__ is not None:
    # A crash of a native library then prints the stack, with the record in it.
    faulthandler.enable(sys.__stderr__)
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      # A path that is not UTF-8, or a terminal that is not, ends no command.
      stream.reconfigure(errors='backslashreplace')
  if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _show_exception
  try:
    for arg in argv:
      if '\0' in arg:  # No path can have it.
        raise UserError(f'{arg!r} contains a NUL character; remove it')
    return command(argv) or 0
  except (UserError, RunError) as e:
    if '--traceback' in argv:
      raise
    # JAX and grain note that they shortened a stack trace, which is not shown.
    notes = getattr(e, '__notes__', [])
    notes = [n for n in notes if 'has removed its internal frames' not in n]
    show('\n'.join([f'error: {e}', *notes]), file=sys.stderr)
    return 2 if isinstance(e, UserError) else 1
  except KeyboardInterrupt:
    return 130
  except BrokenPipeError:
    # The reader has closed our output, as in `... | head`. Python must not meet
    # the broken pipe again when it flushes at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def run_distributed(
  command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None
) -> int:
  """Runs a command like `run`, possibly as one of several processes.

  If it fails, it does not wait for the others.
  """
  try:
    code = run(command, argv)
  except Exception:
    if not distributed.is_connected():
      raise
    show(traceback.format_exc(), file=sys.stderr, end='')
    code = 1
  if code:
    distributed.exit_now(code)
  return code


def command_lines(without: str | None = None) -> list[str]:
  """Returns a line for each command: its name and what it does."""
  lines = []
  for name in lookup.names('commands'):
    if name != without:
      # Not imported: --help must be quick.
      tree = ast.parse((_FOLDER / f'{name}.py').read_text())
      summary = ast.get_docstring(tree).partition('\n')[0].rstrip('.')
      lines.append(f'  {name:12} {summary[0].lower()}{summary[1:]}')
  return lines


def parser(
  command: str, doc: str, *, failure: str = 'it failed', more_codes: str = ''
) -> argparse.ArgumentParser:
  """Returns a parser for `python -m vit_jax <command>`.

  Arguments that do not fit raise UserError.

  Args:
    failure: what exit code 1 means.
    more_codes: further lines of exit codes.
  """
  out = _Parser(
    f'python -m vit_jax {command}',
    description=doc,
    epilog='\n'.join(
      [
        'exit codes:',
        '  0    done',
        f'  1    {failure}',
        '  2    a problem that you can fix (arguments, config, data, paths)',
        *more_codes.splitlines(),
        '  130  interrupted with Ctrl-C',
        '',
        'Other commands (python -m vit_jax COMMAND --help):',
        *command_lines(without=command),
      ]
    ),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  out.add_argument(
    '--traceback',
    action='store_true',
    help='show the Python stack trace of an error',
  )
  return out


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable]:
  """Yields a function that counts an item of a bar, drawn on terminals only."""
  if not sys.stderr.isatty():
    yield lambda: None
    return
  import rich.console
  import rich.progress

  with rich.progress.Progress(
    *rich.progress.Progress.get_default_columns(),
    rich.progress.MofNCompleteColumn(),
    console=rich.console.Console(stderr=True),
    transient=True,
    redirect_stdout=sys.stdout.isatty(),
  ) as bar:
    task = bar.add_task(what, total=total, completed=done)
    yield lambda: bar.advance(task)


def add_weights_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of reading weights; see `weights_options`."""
  group = parser.add_argument_group('how weights are read')
  group.add_argument(
    '--model',
    type=dictionary,
    metavar='DICT',
    help='keys of the model section that replace those found with the weights, '
    "such as {'num_classes': None}",
  )
  group.add_argument(
    '--step',
    type=_step,
    help="checkpoint of a run: a number, 'best' or 'newest' (default: the best "
    'if the run keeps it, see config.checkpoint.keep_best, else the newest)',
  )
  group.add_argument(
    '--ema',
    action=argparse.BooleanOptionalAction,
    help='read the averaged weights of a run (default: if it has them)',
  )
  group.add_argument(
    '--evaluation',
    metavar='NAME',
    help='of a run: prepare images as in this evaluation (default: the main '
    'one, which a line names where there are several)',
  )
  group.add_argument(
    '--part',
    metavar='FOLDER',
    help='of a run: the folder of its parameters to read, such as encoder '
    '(default: all of them)',
  )
  group.add_argument(
    '--weights_dir',
    metavar='FOLDER',
    help='of downloaded weights (default: $VIT_JAX_WEIGHTS or '
    '~/.cache/vit_jax)',
  )
  group.add_argument(
    '--source_format',
    metavar='NAME',
    help='what reads the weights: a file of vit_jax/pretrained/formats, or a '
    'module of your own such as my_project.my_format (default: what fits)',
  )
  group.add_argument(
    '--entry', metavar='KEY', help='which of several models in a .pth file'
  )


def weights_options(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the keyword arguments for `pretrained.catalog.load`.

  Messages (downloads, damage) go to stderr: stdout is for results.
  """
  keys = ('model', 'step', 'ema', 'entry', 'weights_dir', 'evaluation', 'part')
  options = {key: getattr(args, key) for key in keys}
  options['format'] = args.source_format
  return options | dict(on_log=functools.partial(show, file=sys.stderr))


def positive(text: str) -> int:
  """Returns a whole number from 1 up; for argparse."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'expected 1 or more; got {text}')
  return number


def folder(text: str) -> str:
  """Returns the path of a folder that exists or can be made; for argparse."""
  path = pathlib.Path(os.path.expanduser(text))
  for part in (path, *path.parents):
    if os.path.isfile(part):
      raise argparse.ArgumentTypeError(
        f'{str(part)!r} is a file, not a folder; give another path'
      )
  return text


def size(text: str) -> tuple[int, int]:
  """Returns (height, width) for '224' or '224,160'; for argparse."""
  sides = [int(side) for side in text.split(',')]
  if len(sides) > 2 or min(sides) < 1:
    raise ValueError(text)
  return (sides[0], sides[-1])


def dictionary(text: str) -> dict[str, Any]:
  """Returns the dict with texts as keys of a literal; for argparse."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    value = None
  if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
    raise argparse.ArgumentTypeError(
      f"expected a dict such as {{'num_classes': None}}; got {text}"
    )
  return value


def _show_exception(kind, error, trace) -> None:
  """Prints a stack trace whose messages, not all ours, are printable."""
  lines = traceback.format_exception(kind, error, trace)
  show(''.join(lines), file=sys.stderr, end='')


def _step(text: str) -> int | str:
  if text in ('best', 'newest'):
    return text
  try:
    return int(text)
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"expected a number, 'best' or 'newest'; got {text}"
    ) from None


class _Parser(argparse.ArgumentParser):
  """Raises UserError where argparse would print its usage and exit."""

  def error(self, message: str):
    words = message.removeprefix('unrecognized arguments: ')
    if words != message:
      options = [name for a in self._actions for name in a.option_strings]
      near = suggestions.close(words.split()[0].partition('=')[0], options)
      message += f' (did you mean {near}?)' if near else ''
    raise UserError(f'{message}; {self.prog} --help lists the arguments')
