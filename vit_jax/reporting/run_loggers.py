"""Experiment trackers that get a run's metrics beside its own files.

`config.loggers` names files of `reporting/loggers/` or modules of the user's
own. Each defines

    class Logger:
      run_id: str  # of the tracker's run; the same run is continued with it
      def __init__(self, *, workdir, config, run_id, **options): ...
      def write(self, step, metrics): ...        # numbers by name
      def write_image(self, step, name, path): ...  # a PNG file
      def close(self, failed): ...

A tracker is a copy: `metrics.jsonl` is complete without it, so one that fails
is named once and no longer called, and the run goes on.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vit_jax import files, lookup
from vit_jax.errors import UserError
from vit_jax.printable import printable
from vit_jax.reporting import run_folder

_FOLDER = 'reporting/loggers'
_GIVEN = ('workdir', 'config', 'run_id')


def sections(setting: Any) -> dict[str, dict[str, Any]]:
  """Returns the section of each logger by its label.

  Args:
    setting: `config.loggers`: None; a name; a list of names and of sections
      with a `name`; or sections by label, whose `name` is the label if missing
      and of which None switches one off.

  Raises:
    UserError: something else, a logger that does not exist, or keys that it
      does not take.
  """
  if setting is None:
    return {}
  if isinstance(setting, lookup.SECTION):
    found = {
      label: x if x is None else _section(x, label)
      for label, x in setting.items()
    }
    found = {label: x for label, x in found.items() if x is not None}
  else:
    items = [setting] if isinstance(setting, str) else setting
    if not isinstance(items, list | tuple):
      raise UserError(
        f"config.loggers={setting!r}: expected names, such as ['wandb'], or "
        'sections by name'
      )
    listed = [
      dict(name=x) if isinstance(x, str) else _section(x, None) for x in items
    ]
    found = {x.get('name'): x for x in listed}
    if len(found) < len(listed):
      raise UserError(
        f'config.loggers: a name is given twice in {[*setting]}; use sections '
        'by label, each with a name'
      )
  for label, section in found.items():
    where = f'config.loggers.{label}'
    target = lookup.find(_FOLDER, section.get('name'), 'Logger', trusted=True)
    keys = {k: x for k, x in section.items() if k != 'name'}
    lookup.check_keys(target, keys, where, given=_GIVEN)
  return found


class Loggers:
  """The loggers of a run, on process 0 only; elsewhere all methods do nothing.

  Args:
    setting: see `sections`.
    workdir: of the run. `loggers.json` in it keeps the trackers' run ids.
    config: of the run, for the trackers to show.
    restored_step: the step that the run continues from; the trackers' runs are
      then continued too. None begins new ones.
    on_log: receives a line of text about a logger that fails.

  Raises:
    UserError: see `sections`; or a package that is not installed.
  """

  def __init__(
    self,
    setting: Any,
    workdir: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    restored_step: int | None = None,
    on_log: Callable[[str], Any] = print,
  ):
    self._loggers, self._on_log = {}, on_log
    chosen = sections(setting)
    if not chosen or jax.process_index() != 0:
      return
    workdir = run_folder.make_writable(workdir)
    path = workdir / 'loggers.json'
    ids = _read_ids(path) if restored_step is not None else {}
    config = json.loads(json.dumps(dict(config), default=repr))
    for label, section in chosen.items():
      try:
        self._loggers[label] = lookup.build(
          _FOLDER,
          section,
          'Logger',
          where=f'config.loggers.{label}',
          trusted=True,
          workdir=workdir,
          config=config,
          run_id=ids.get(label),
        )
        ids[label] = str(self._loggers[label].run_id)
      except UserError:
        raise
      except Exception as e:
        self._warn(label, e)
    with run_folder.writing(workdir, UserError):
      run_folder.replace(path, json.dumps(ids, indent=2).encode() + b'\n')

  def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
    """Hands numbers of a step to all loggers."""
    self._call('write', int(step), dict(metrics))

  def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
    """Hands a PNG file to all loggers."""
    self._call('write_image', int(step), name, path)

  def close(self, failed: bool = False) -> None:
    """Ends the trackers' runs; `failed` where an error ends this one."""
    self._call('close', failed)
    self._loggers = {}

  def _call(self, method: str, *args) -> None:
    for label, logger in list(self._loggers.items()):
      try:
        getattr(logger, method)(*args)
      except Exception as e:
        del self._loggers[label]
        self._warn(label, e)

  def _warn(self, label: str, error: Exception) -> None:
    text = ' '.join(str(error).split())[:300]
    self._on_log(
      f'the logger {label} failed and is switched off until the run continues '
      f'({type(error).__name__}: {printable(text)}); metrics.jsonl has '
      'everything'
    )


def missing(package: str) -> UserError:
  """Returns the error of a logger whose package, also an extra, is missing."""
  return UserError(
    f'config.loggers: {package} is not installed. pip install '
    f"'vit_jax[{package}]', or pip install {package}"
  )


def _section(value: Any, label: str | None) -> dict[str, Any]:
  if not isinstance(value, lookup.SECTION):
    raise UserError(
      f'config.loggers: {label or "an item"} is {value!r}; expected a section '
      "of options, such as {'project': 'pets'}"
    )
  return ({'name': label} if label else {}) | dict(value)


def _read_ids(path: pathlib.Path) -> dict[str, str]:
  """Returns the ids of the trackers' runs; none where there is no good file."""
  try:
    ids = files.read_json_object(path)
  except (OSError, ValueError, UserError):
    return {}
  if not isinstance(ids, dict):
    return {}
  return {k: x for k, x in ids.items() if isinstance(x, str)}
