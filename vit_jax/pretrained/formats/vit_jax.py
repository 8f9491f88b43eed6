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
import safetensors
import safetensors.numpy

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.pretrained import json_fields, model_section
from vit_jax.pretrained.weights import Weights
from vit_jax.printable import printable

SUFFIXES = ('.safetensors',)
_KEY = 'vit_jax'
_VERSION = 1
# Before arrays of older files that are not parameters.
_ASIDE = 'source:'
# Types that numpy has, and bfloat16 of ml_dtypes. Files have others, such as
# F8_E4M3 and F4, which are scaled in ways that no header says.
_DTYPES = frozenset(
  'BOOL U8 I8 U16 I16 U32 I32 U64 I64 F16 BF16 F32 F64'.split()
)


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
  arrays, metadata = read_safetensors(path)
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
  named = {k: x for k, x in arrays.items() if not k.startswith(_ASIDE)}
  trusted = model_section.trusted_keys(model)
  try:
    named, section = model_section.override(named, said['model'], model)
    model_section.check(named, section, trusted='model' in trusted)
  except UserError as e:
    raise UserError(f'{path}: {e}') from e
  preprocess = said['preprocess']
  if preprocess.get('image_size'):
    preprocess['image_size'] = tuple(preprocess['image_size'])
  return Weights(
    params=named,
    model=section,
    preprocess=preprocess,
    class_names=said.get('class_names'),
    source=said['source'],
    trusted=trusted,
  )


def read_safetensors(
  path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns arrays by name, and the metadata.

  Raises:
    UserError: no such file, a broken one, or types that numpy does not have.
  """
  path = os.path.expanduser(path)
  entries, metadata = files.read_safetensors_header(path)
  problems = []
  for name, (dtype, shape) in entries.items():
    label = f'{printable(name, max_length=80)} {tuple(shape)}'
    if dtype not in _DTYPES:
      problems.append(f'{label} is {dtype}')
    elif 0 in shape and not name.startswith(_ASIDE):
      problems.append(f'{label} is empty')
  if problems:
    more = f'; and {len(problems) - 3} more' if len(problems) > 3 else ''
    raise UserError(
      f'cannot use the arrays in {printable(path)}:'
      f' {"; ".join(problems[:3])}{more}. Write the file again with float32,'
      ' bfloat16 or float16'
    )
  try:
    return safetensors.numpy.load_file(path), metadata
  except (OSError, MemoryError, safetensors.SafetensorError) as e:
    raise files.unreadable(path, e) from e


def write(weights: Weights, path: str | os.PathLike) -> None:
  """Writes weights with all that is known about them.

  Where they are from is written too. Arrays keep their bits and dtypes.

  Raises:
    UserError: the file cannot be written.
  """
  said = dict(
    version=_VERSION,
    model=weights.model,
    preprocess=weights.preprocess,
    class_names=weights.class_names,
    source=dict(weights.source),
  )
  arrays = {k: np.ascontiguousarray(x) for k, x in weights.params.items()}
  with files.write_atomically(path) as part:
    safetensors.numpy.save_file(arrays, part, metadata={_KEY: json.dumps(said)})


def _file(path: str | os.PathLike) -> pathlib.Path:
  path = pathlib.Path(path).expanduser()
  return path / 'model.safetensors' if path.is_dir() else path
