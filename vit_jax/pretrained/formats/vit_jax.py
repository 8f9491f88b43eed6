"""Our own format: .safetensors with the model as JSON in the header.

Any reader of safetensors finds the arrays under our names. The header's
metadata has one more entry, `vit_jax`: the model section, preprocessing, class
names and source, so that the file alone gives the model back.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.pretrained import json_fields, model_section
from vit_jax.pretrained.formats import _safetensors
from vit_jax.pretrained.weights import Weights
from vit_jax.printable import printable

SUFFIXES = ('.safetensors',)
_KEY = 'vit_jax'
_VERSION = 1
# Before the arrays of `Weights.source`, which are not parameters.
_ASIDE = 'source:'


def matches(path: str | os.PathLike) -> bool:
  """Whether `write` wrote a file, or the model.safetensors of a folder.

  Raises:
    UserError: a .safetensors file that cannot be read.
  """
  path = _file(path)
  if path.suffix != '.safetensors' or not path.is_file():
    return False
  return _KEY in files.read_safetensors_header(path)[1]


def read(
  path: str | os.PathLike, *, model: Mapping[str, Any] | None = None
) -> Weights:
  """Returns the weights in a file that `write` wrote.

  Args:
    path: of the file.
    model: keys of the model section that win; see `model_section.override`.

  Raises:
    UserError: it cannot be read, was not written by `write`, or does not hold
      exactly the parameters of its model.
  """
  path = _file(path)
  _, metadata = files.read_safetensors_header(path)
  if _KEY not in metadata:
    raise UserError(f'{path} was not written by vit_jax')
  said = json_fields.parse_description(
    metadata[_KEY],
    f'what {path} says of its model',
    needed=('version', 'model', 'preprocess', 'source'),
  )
  if said['version'] > _VERSION:
    raise UserError(
      f'{path} is of version {said["version"]} of the format, and this vit_jax'
      f' knows those up to {_VERSION}: update it'
    )
  arrays, _ = _safetensors.read(path)
  try:
    return _weights(said, arrays, model)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e


def write(weights: Weights, path: str | os.PathLike) -> None:
  """Writes weights with all that is known about them.

  Where they are from is written too, so that they can later be written as they
  were in their first format. Exact: arrays keep their bits and dtypes.

  Raises:
    UserError: the file cannot be written.
  """
  aside: dict[str, np.ndarray] = {}
  said = dict(
    version=_VERSION,
    model=weights.model,
    preprocess=weights.preprocess,
    class_names=weights.class_names,
    source=_without_arrays(dict(weights.source), aside),
  )
  named = dict(weights.params)
  arrays = {name: np.ascontiguousarray(x) for name, x in named.items()}
  with files.write_atomically(path) as part:
    safetensors.numpy.save_file(
      arrays | aside, part, metadata={_KEY: json.dumps(said)}
    )


def _file(path: str | os.PathLike) -> pathlib.Path:
  path = pathlib.Path(path).expanduser()
  return path / 'model.safetensors' if path.is_dir() else path


def _weights(said, arrays, model) -> Weights:
  named = {k: x for k, x in arrays.items() if not k.startswith(_ASIDE)}
  named, section = model_section.override(named, said['model'], model)
  trusted = model_section.trusted_keys(model)
  model_section.check(named, section, trusted='model' in trusted)
  preprocess = said['preprocess']
  if preprocess.get('image_size'):
    preprocess['image_size'] = tuple(preprocess['image_size'])
  return Weights(
    params=named,
    model=section,
    preprocess=preprocess,
    class_names=said.get('class_names'),
    source=_renamed(_with_arrays(said['source'], arrays)),
    trusted=trusted,
  )


def _renamed(source: dict[str, Any]) -> dict[str, Any]:
  """Returns the source with `unmapped` where an older file has other keys."""
  if 'aside' in source:
    source['unmapped'] = source.pop('aside')
  row = source.pop('class_position', None)
  if getattr(row, 'ndim', 0) == 3 and isinstance(source['dialect'], Mapping):
    prefix = source['dialect'].get('prefix', '')
    token = source.pop('class_token', None)
    source['unmapped'] = {f'{prefix}cls': token, 'rows': row[0]}
  return source


def _without_arrays(value: Any, aside: dict[str, np.ndarray]) -> Any:
  """Returns `value` for JSON; its arrays go into `aside` and leave a name."""
  if isinstance(value, Mapping):
    return {key: _without_arrays(v, aside) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [_without_arrays(v, aside) for v in value]
  if isinstance(value, np.ndarray):
    name = f'{_ASIDE}{len(aside)}'
    aside[name] = np.ascontiguousarray(value)
    return name
  return value


def _with_arrays(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
  if isinstance(value, dict):
    return {key: _with_arrays(v, arrays) for key, v in value.items()}
  if isinstance(value, list):
    return [_with_arrays(v, arrays) for v in value]
  if isinstance(value, str) and value.startswith(_ASIDE):
    if value not in arrays:
      raise UserError(
        f'the source of these weights names an array {printable(value)} that is'
        ' not in the file; write the file again'
      )
    return arrays[value]
  return value
