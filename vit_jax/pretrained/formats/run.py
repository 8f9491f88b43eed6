"""Checkpoints of training runs."""

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from vit_jax import files, lookup, trees
from vit_jax.checkpoints import format as checkpoint_format, reader
from vit_jax.data import device_ops_language
from vit_jax.errors import UserError
from vit_jax.pretrained import blocks, json_fields, model_section
from vit_jax.pretrained.main_evaluation import main_evaluation
from vit_jax.pretrained.weights import Weights
from vit_jax.printable import printable

_CLASS_NAMES = 'class_names.json'
# Of the state: what a model with BatchNorm keeps beside its parameters.
_STATISTICS = 'extra/batch_stats/'
_OPS = {'ops': json_fields.TEXT, 'device_ops': json_fields.TEXT}


def matches(path: str | os.PathLike) -> bool:
  """Whether a path is that of a run; an address may be, if of no known file."""
  text = os.fspath(path)
  if '://' in text:
    known = r'^(https?|hf)://|\.(npz|safetensors|pth?|bin)$'
    return not re.search(known, text)
  return _find(path) is not None or _has_begun(path)


def read(
  path: str | os.PathLike,
  *,
  step: int | str | None = None,
  ema: bool | None = None,
  model: Mapping[str, Any] | None = None,
  evaluation: str | None = None,
  part: str | None = None,
  on_log: Callable[[str], Any] = print,
) -> Weights:
  """Returns the weights of a checkpoint; the run itself may be going on.

  Host ops are those of the run's main evaluation; images are normalised as in
  training. Class names come from `write_class_names`.

  Args:
    path: of a run (the workdir), of its folder of checkpoints, or of one of the
      checkpoints in there.
    step: which checkpoint: a number, `'newest'`, or `'best'` by the metric
      `config.checkpoint.keep_best` of the run. None is the best if the run has
      that, or else the newest. Damaged checkpoints are passed over, unless a
      number was given.
    ema: whether to read the averaged weights; None reads them if the run kept
      an average.
    evaluation: the name of the evaluation whose host ops are taken; None
      chooses, see `main_evaluation`.
    part: the folder of the parameters that is the model's, where the objective
      trains more than the model: 'backbone' beside a head of its own. Of the
      objective multi_task the name of a task.
    model: keys of the model section that win; see `model_section.override`.
    on_log: receives a line of text for every damaged checkpoint, for the best
      checkpoint, and for the evaluation chosen among several that prepare
      images differently.

  Raises:
    UserError: no good checkpoint, no average in it, no best one, no such
      evaluation, or a model with batch statistics.
  """
  directory, only = _checkpoints(path)
  step = only if step is None else step
  metas = _metas(directory)
  order, metric = _order(directory, metas, step)
  if ema is None:
    readable = [metas[s]['leaves'] for s in order if s in metas]
    ema = any(n.startswith('ema_params/') for n in next(iter(readable), ()))
  params, meta = reader.load_params(directory, order, ema=ema, on_log=on_log)
  statistics = [x for x in meta['leaves'] if x.startswith(_STATISTICS)]
  if statistics:
    raise UserError(
      f'{os.fspath(path)} is a run of a model with batch statistics '
      f'({statistics[0]}, ...), which weights do not carry: without them its '
      'answers would be others. To evaluate it, train with the recipe and '
      'workdir of the run and --config.total_steps=0'
    )
  if metric in meta['metrics']:
    on_log(
      printable(
        f'{os.fspath(path)}: step {meta["step"]} has the best {metric} '
        f"({meta['metrics'][metric]:.4g}); step='newest' takes step "
        f'{max(order)}'
      )
    )
  config = _checked_config(meta, os.fspath(path))
  section = config['model']
  # How the run computed it and stored its parameters.
  trusted = model_section.trusted_keys(model)
  dropped = lookup.model_fields(
    section, 'cost', 'layout', trusted='model' in trusted
  )
  section = {k: v for k, v in section.items() if k not in dropped}
  objective = config['objective']
  select = _selection(objective)
  if select is None or _has_no_head(model):
    named = blocks.unstack(trees.below(params, part or '', os.fspath(path)))
  else:
    named, section, objective = select(
      blocks.unstack(trees.below(params, '', os.fspath(path))),
      section,
      objective,
      part,
    )
  named, section = model_section.override(named, section, model)
  try:
    model_section.check(named, section, trusted='model' in trusted)
  except UserError as e:
    fitting = []
    with contextlib.suppress(UserError):  # No model fits the section.
      fitting = [] if part else _parts(named, section)
    problem = str(e)
    if fitting:
      problem = (
        'it holds more than the parameters of its model, which are in'
        f' {" and in ".join(fitting)}: give part={fitting[0]!r}'
      )
    where = f'step {meta["step"]} of {os.fspath(path)}'
    raise UserError(f'{where}: {problem}') from e
  source = dict(format='run', path=os.fspath(path), step=meta['step'], ema=ema)
  if 'loss' in objective:
    source['loss'] = objective['loss']
  has_names = objective.get('label', 'label') == 'label'
  return Weights(
    params=named,
    model=section,
    preprocess=_preprocess(config, named, evaluation, on_log),
    class_names=_read_class_names(directory.parent) if has_names else None,
    source=source,
    trusted=trusted,
  )


def read_config(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the config of a run, with its sections as dicts.

  Raises:
    UserError: no run, or no `config.json` in it.
  """
  file = _checkpoints(path)[0].parent / 'config.json'
  if not file.exists():
    raise UserError(f'{os.fspath(path)} is not a run with a config.json')
  config = files.parse_json(file.read_text(), str(file))
  return _checked_config({'config': config}, os.fspath(path))


def write_class_names(
  workdir: str | os.PathLike, class_names: Sequence[str] | None
) -> None:
  """Keeps the names of the classes with a run, for those who use its model."""
  if class_names is not None:
    path = epath.Path(workdir) / _CLASS_NAMES
    path.write_text(json.dumps(list(class_names), indent=1) + '\n')


def _selection(objective: Mapping[str, Any]) -> Callable[..., Any] | None:
  """Returns the function `part` beside an objective of this package, if any."""
  name = objective.get('name')
  if name not in lookup.names('objectives'):
    return None
  try:
    return lookup.find('objectives', name, 'part')
  except UserError:
    return None


def _has_no_head(model: Mapping[str, Any] | None) -> bool:
  model = model or {}
  return 'num_classes' in model and model['num_classes'] is None


def _find(path: str | os.PathLike) -> tuple[epath.Path, int | None] | None:
  """Returns the folder of checkpoints and the step that the path names."""
  path = checkpoint_format.absolute(path)
  try:
    for directory in (path / 'checkpoints', path):
      if checkpoint_format.steps(directory):
        return directory, None
  except ImportError as e:  # The client of a cloud is missing.
    raise UserError(f'cannot look into {path}: {e}') from e
  # A folder of timm or Hugging Face may have a number for a name.
  if path.name.isdecimal() and not (path / 'config.json').exists():
    if int(path.name) in checkpoint_format.steps(path.parent):
      return path.parent, int(path.name)
  return None


def _checkpoints(path: str | os.PathLike) -> tuple[epath.Path, int | None]:
  """Returns what `_find` does, or raises UserError."""
  if found := _find(path):
    return found
  lacks = 'is not a run and has no checkpoints'
  if _has_begun(path):
    lacks = 'has no checkpoint yet; wait until the run saves one'
  raise UserError(f'{os.fspath(path)} {lacks}')


def _has_begun(path: str | os.PathLike) -> bool:
  """Whether a folder is that of a run, which may have no checkpoint yet."""
  return (checkpoint_format.absolute(path) / 'metrics.jsonl').exists()


def _metas(directory: epath.Path) -> dict[int, dict[str, Any]]:
  """Returns the metadata of checkpoints by step, the newest first."""
  metas = {}
  for step in checkpoint_format.steps(directory):
    # What is damaged is named where the weights are read.
    with contextlib.suppress(checkpoint_format.DamagedError):
      metas[step] = checkpoint_format.read_meta(directory, step)
  return metas


def _order(
  directory: epath.Path, metas: Mapping[int, Any], step: int | str | None
) -> tuple[list[int], str | None]:
  """Returns steps in order of preference, and the metric that decided it."""
  if isinstance(step, int):
    return [step], None
  if step not in (None, 'best', 'newest'):
    raise UserError(
      f"step={step!r}: expected the number of a step, 'best' or 'newest'"
    )
  newest_first = checkpoint_format.steps(directory)
  if step == 'newest':
    return newest_first, None
  config = next(iter(metas.values()))['config'] if metas else {}
  section = config.get('checkpoint')
  section = section if isinstance(section, Mapping) else {}
  metric = section.get('keep_best')
  sign = -1 if section.get('keep_best_mode') == 'min' else 1
  values = {}
  if isinstance(metric, str):
    values = {s: m['metrics'].get(metric, math.nan) for s, m in metas.items()}
    values = {s: sign * x for s, x in values.items() if math.isfinite(x)}
  if not values:
    if step == 'best':
      raise UserError(
        f"step='best': no checkpoint in {directory} has the metric by which "
        f'the run keeps its best (config.checkpoint.keep_best is {metric!r}). '
        f"Give the number of a step, or 'newest'"
      )
    return newest_first, None
  # The newer of equals, as `Checkpointer` keeps it.
  best_first = sorted(values, key=lambda s: (values[s], s), reverse=True)
  rest = [s for s in newest_first if s not in values]
  return [*best_first, *rest], metric


def _parts(named: Mapping[str, Any], section: Mapping[str, Any]) -> list[str]:
  """Returns the folders whose arrays are those of a model of this package."""
  parts = sorted({name.split('/')[0] for name in named if '/' in name})
  found = {part: trees.below(named, part, '') for part in parts}
  return [
    part for part in parts if not model_section.problems(found[part], section)
  ]


def _checked_config(meta: Mapping[str, Any], path: str) -> dict[str, Any]:
  """Returns the config of a run, with the sections that are read here."""
  where = f'the config in the checkpoint of {path}'
  config = files.check_object(meta.get('config'), where)
  sections = ('model', 'input', 'objective', 'evals')
  json_fields.check(config, dict.fromkeys(sections, json_fields.OBJECT), where)
  config = {**config, **{k: config.get(k) or {} for k in sections}}
  evals = {k: v for k, v in config['evals'].items() if v is not None}
  json_fields.check(evals, dict.fromkeys(evals, json_fields.OBJECT), where)
  json_fields.check(config['objective'], {'loss': json_fields.TEXT}, where)
  for section in (config['input'], *evals.values()):
    json_fields.check(section, _OPS, where)
  return config | dict(evals=evals)


def _preprocess(
  config: Mapping[str, Any],
  named: Mapping[str, Any],
  evaluation: str | None,
  on_log: Callable[[str], Any],
) -> dict[str, Any]:
  """Returns how images are prepared for the weights, see `Weights`."""
  ops = config['input'].get('device_ops') or ''
  preprocess = {'device_ops': device_ops_language.of_evaluation(ops)}
  if size := model_section.image_size(named):
    preprocess['image_size'] = size
  evals = config['evals'].items()
  evals = {k: v for k, v in evals if v.get('ops') is not None}
  if evaluation is not None and evaluation not in evals:
    raise UserError(
      f'evaluation={evaluation!r}: the evaluations of the run that prepare '
      f'images are {printable(", ".join(evals) or "none")}'
    )
  name = evaluation or main_evaluation(
    {**config, 'evals': evals}, preprocess.get('image_size')
  )
  if name is None:
    return preprocess
  preprocess['ops'] = evals[name]['ops']
  others = [n for n in evals if evals[n]['ops'] != preprocess['ops']]
  if evaluation is None and others:
    on_log(
      printable(
        f'images are prepared as in the evaluation {name}: '
        f'{preprocess["ops"] or "no ops"}; evaluation= takes another: '
        f'{", ".join(others)}'
      )
    )
  return preprocess


def _read_class_names(workdir: epath.Path) -> list[str] | None:
  path = workdir / _CLASS_NAMES
  if not path.exists():
    return None
  if '://' in os.fspath(path):
    value = files.parse_json(path.read_text(), str(path))
  else:
    value = files.read_json(path)
  return json_fields.class_names(value, str(path))
