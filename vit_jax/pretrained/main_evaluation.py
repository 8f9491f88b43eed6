"""The main evaluation of a run, whose preprocessing goes with its weights.

Imports neither jax nor numpy: recipes read runs with it.
"""

import re
from collections.abc import Mapping
from typing import Any

_SIDES = re.compile(
  r'\w*(?:resize|crop)\w*\((?:size=)?[(\[]?(\d+)(?:, *(\d+))?'
)


def main_evaluation(
  config: Mapping[str, Any], image_size: tuple[int, int] | None = None
) -> str | None:
  """Returns the name of the evaluation that represents a run, None without.

  `image_size` is the model's; None is the size that the training ops make.

  Preferred are, in this order: a classification; images of the size that the
  model takes; the evaluation of `config.checkpoint.keep_best`; the data set
  that the run trains on; the name 'val'; the one written first.
  """
  evals = config.get('evals') or {}
  evals = {k: v for k, v in evals.items() if isinstance(v, Mapping)}
  training = config.get('input') or {}
  image_size = image_size or sides(training.get('ops'))
  metric = (config.get('checkpoint') or {}).get('keep_best')
  best = metric.partition('/')[0] if isinstance(metric, str) else ''

  def rank(name: str) -> tuple[bool, ...]:
    section = evals[name]
    size = sides(section.get('ops'))
    return (
      section.get('name') == 'classification',
      None in (size, image_size) or size == tuple(image_size),
      best in (name, f'{name}_ema', f'{name}_params'),
      _same_dataset(section.get('data'), training.get('data')),
      name == 'val',
    )

  # The first of equals.
  return max(evals, key=rank, default=None)


def sides(ops: str | None) -> tuple[int, int] | None:
  """Returns (height, width) of what the last resize or crop makes."""
  matches = _SIDES.findall(ops or '')
  if not matches:
    return None
  height, width = matches[-1]
  return int(height), int(width or height)


def _same_dataset(one: Any, other: Any) -> bool:
  if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
    return False
  shared = (one.keys() & other.keys()) - {'split'}
  return all(one[key] == other[key] for key in shared)
