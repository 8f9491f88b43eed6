"""Metrics and pictures in Weights & Biases (https://docs.wandb.ai)."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.reporting import run_loggers


class Logger:
  """A run of W&B; `pip install 'vit_jax[wandb]'` and `wandb login` first.

  W&B keeps the first row of a step: those between the last checkpoint and a
  kill, which the continued run computes again, are ignored there.

  Args:
    workdir, config, run_id: see `run_loggers`.
    project, entity, group, tags, mode: as in `wandb.init`; with
      `mode='offline'` nothing is sent until `wandb sync`.
    run_name: shown for the run; None is the name of the workdir.
  """

  def __init__(
    self,
    *,
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    run_id: str | None,
    project: str = 'vit_jax',
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    mode: str | None = None,
    run_name: str | None = None,
  ):
    try:
      import wandb
    except ImportError as e:
      raise run_loggers.missing('wandb') from e
    self._image = wandb.Image
    self._run = wandb.init(
      dir=workdir,
      config=dict(config),
      id=run_id,
      resume='allow' if run_id and mode != 'offline' else None,
      project=project,
      entity=entity,
      group=group,
      tags=list(tags),
      mode=mode,
      name=run_name or workdir.name,
    )
    self.run_id = self._run.id

  def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
    self._run.log(dict(metrics), step=step)

  def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
    self._run.log({name: self._image(str(path))}, step=step)

  def close(self, failed: bool) -> None:
    self._run.finish(exit_code=int(failed))
