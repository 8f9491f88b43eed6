"""Metrics, settings and pictures in MLflow (https://mlflow.org)."""

import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from vit_jax.reporting import run_loggers

_PARAMS_AT_ONCE = 100  # MLflow's limit for a batch.
_MOST_CHARACTERS = 500  # Of a parameter's value; older servers refuse more.
_REFUSED = re.compile(r'[^\w\-. /]')  # In names of metrics and parameters.


class Logger:
  """A run of MLflow; `pip install 'vit_jax[mlflow]'` first.

  Steps between the last checkpoint and a kill, which the continued run computes
  again, have two equal points there.

  Args:
    workdir, config, run_id: see `run_loggers`.
    tracking_uri: of the server or store; None is $MLFLOW_TRACKING_URI, or what
      MLflow does without it.
    experiment: its name; made if it is missing.
    run_name: shown for the run; None is the name of the workdir.
  """

  def __init__(
    self,
    *,
    workdir: pathlib.Path,
    config: Mapping[str, Any],
    run_id: str | None,
    tracking_uri: str | None = None,
    experiment: str = 'vit_jax',
    run_name: str | None = None,
  ):
    try:
      import mlflow
    except ImportError as e:
      raise run_loggers.missing('mlflow') from e
    entities = mlflow.entities
    self._metric = entities.Metric
    self._client = client = mlflow.MlflowClient(tracking_uri)
    if run_id is not None:
      client.update_run(run_id, status='RUNNING')
      self.run_id = run_id
      return
    found = client.get_experiment_by_name(experiment)
    where = (
      found.experiment_id if found else client.create_experiment(experiment)
    )
    run = client.create_run(where, run_name=run_name or workdir.name)
    self.run_id = run.info.run_id
    params = [
      entities.Param(_name(key), str(value)[:_MOST_CHARACTERS])
      for key, value in _flat(config)
    ]
    for i in range(0, len(params), _PARAMS_AT_ONCE):
      client.log_batch(self.run_id, params=params[i : i + _PARAMS_AT_ONCE])

  def write(self, step: int, metrics: Mapping[str, float | int]) -> None:
    now = time.time_ns() // 10**6
    self._client.log_batch(
      self.run_id,
      metrics=[
        self._metric(_name(name), float(value), now, step)
        for name, value in metrics.items()
      ],
    )

  def write_image(self, step: int, name: str, path: pathlib.Path) -> None:
    self._client.log_artifact(self.run_id, str(path))

  def close(self, failed: bool) -> None:
    status = 'FAILED' if failed else 'FINISHED'
    self._client.set_terminated(self.run_id, status)


def _name(text: str) -> str:
  return _REFUSED.sub('_', text)


def _flat(config: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  """Returns the settings of all sections with their dotted names."""
  found = []
  for key, value in config.items():
    if isinstance(value, Mapping):
      found += _flat(value, f'{prefix}{key}.')
    else:
      found.append((f'{prefix}{key}', value))
  return found
