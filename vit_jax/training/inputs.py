"""Checks and a description of all data in a config."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from vit_jax import lookup
from vit_jax.data import records
from vit_jax.errors import DataError, DevicesError, UserError
from vit_jax.printable import printable

# Keys with the place of the data in a section; the first one present counts.
_PLACES = ('dataset', 'data_dir', 'path', 'paths')


@contextlib.contextmanager
def all_problems(config: Mapping[str, Any]) -> Iterator[None]:
  """Adds all problems of a config's data to an error with data or devices.

  Only after an error are all inputs opened again, to read a few images of each.

  Raises:
    DataError: for one, or a DevicesError, that was raised inside.
  """
  try:
    yield
  except (DataError, DevicesError) as e:
    found = _problems(config)
    lines = [f'{", ".join(names)}: {text}' for text, names in found.items()]
    if not any(text in str(e) for text in found):
      lines = [str(e), *lines]
    if len(lines) > 1:
      lines.insert(0, f'{len(lines)} problems:')
    raise DataError('\n'.join(lines)) from e


def check_num_classes(wanted: Any, found: int | None, where: str = '') -> None:
  """Raises DataError where model and data disagree about the classes."""
  if wanted is not None and found is not None and wanted != found:
    raise DataError(
      f'{where}config.model.num_classes={wanted}, but the data has {found} '
      f'classes; set --config.model.num_classes={found} or choose another '
      'dataset'
    )


def check_image(run: Any, image: jax.ShapeDtypeStruct, where: str) -> None:
  """Raises DataError where a run's model cannot take images of a shape."""
  trained = run.batch_spec['image']
  size = trained.shape[1:]
  if (image.shape, image.dtype) == (size, trained.dtype):
    return
  ours = jax.ShapeDtypeStruct((trained.shape[0], *image.shape), image.dtype)
  try:
    weights = run.weights(run.abstract_state)
    jax.eval_shape(run.predict, weights, {**run.batch_spec, 'image': ours})
  except Exception as e:  # Whatever a model raises for shapes that do not fit.
    raise DataError(
      f'{where}: the model is trained on images {trained.dtype}{list(size)}, '
      f'and cannot take {image.dtype}{list(image.shape)}, which the ops of '
      'this section make. Let both end in the same size'
    ) from e


def check_outputs(
  run: Any,
  batch_spec: Mapping[str, jax.ShapeDtypeStruct],
  needed: Sequence[str],
  where: str,
) -> None:
  """Raises UserError where a run's `predict` lacks outputs of an evaluator."""
  if not needed:
    return
  weights = run.weights(run.abstract_state)
  outputs = jax.eval_shape(run.predict, weights, dict(batch_spec))
  if missing := sorted(set(needed) - set(outputs)):
    raise UserError(
      f'{where} needs the outputs {missing}, and predict of '
      f'{type(run.objective).__module__} returns {sorted(outputs)}: set '
      'config.model.num_classes, return them from predict, or evaluate the '
      'features (knn, linear_probe)'
    )


def describe(config: Mapping[str, Any], num_examples: Mapping[str, int]) -> str:
  """Returns a line that names the data of training and evaluations."""
  parts: dict[str, list[str]] = {}
  for where, _, data in _inputs(config):
    kind, _, name = where.removeprefix('config.').partition('.')
    if kind == 'pictures':
      continue
    place = next((data[x] for x in _PLACES if data.get(x)), data.get('name'))
    text = printable(f'{data.get("split", "")} of {place or ""}')
    if count := num_examples.get(where):
      text += f' ({count:,} images)'
    parts.setdefault(text, []).append(name.removesuffix('.data') or 'training')
  return 'data: ' + '; '.join(
    f'{", ".join(names)}: {text}' for text, names in parts.items()
  )


def _problems(config: Mapping[str, Any]) -> dict[str, list[str]]:
  """Returns the places of each problem."""
  model = config.get('model')
  wanted = model.get('num_classes') if isinstance(model, Mapping) else None
  places: dict[str, list[str]] = {}
  for where, section, data in _inputs(config):
    try:
      reader = records.Reader(
        data,
        section.get('ops', ''),
        on_error=section.get('on_error', 'stop'),
        training=where == 'config.input',
      )
      if where == 'config.input' or section.get('name') == 'classification':
        check_num_classes(wanted, reader.source.num_classes)
    except UserError as e:
      places.setdefault(str(e), []).append(where)
  return places


def _inputs(
  config: Mapping[str, Any],
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
  """Yields the place of each input, the section, and its data section."""
  section = config.get('input')
  if isinstance(section, lookup.SECTION) and 'data' in section:
    yield 'config.input', section, section['data']
  for kind in ('evals', 'pictures'):
    for name, section in (config.get(kind) or {}).items():
      if not isinstance(section, lookup.SECTION):
        continue
      for key in ('data', 'data_train', 'data_test'):
        if isinstance(section.get(key), lookup.SECTION):
          where = f'config.{kind}.{name}'
          where += '' if key == 'data' else f'.{key}'
          yield where, section, section[key]
