"""Files of state dicts: .safetensors, .pth, and folders with a config.json.

.safetensors needs no torch. The pickles of torch (.pth, .pt, .bin) do, and are
read with `weights_only=True`: no code of theirs is run.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.pretrained.formats import _npz, _pickle, _safetensors
from vit_jax.printable import printable

_PICKLES = ('.pth', '.pt', '.bin', '.ckpt', '.tar')
SUFFIXES = ('.safetensors', *_PICKLES)
# Where checkpoints keep the weights among other things, first choice first.
_ENTRIES = ('model', 'state_dict', 'model_state_dict', 'teacher')
_INDEX = '.index.json'
MAX_SHARING = 4  # Some heads share the weights of another.


@dataclasses.dataclass(frozen=True)
class Stored:
  """A state dict as it was found.

  Attributes:
    arrays: by name.
    config: of config.json; empty without one.
    preprocessor: of preprocessor_config.json; likewise.
    arguments: of the script that trained the weights, where it kept them.
  """

  arrays: dict[str, np.ndarray]
  config: dict[str, Any]
  preprocessor: dict[str, Any]
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def is_part(path: pathlib.Path) -> bool:
  """Whether a name is that of a file of weights, or of an index of several."""
  return path.suffix in SUFFIXES or path.name.endswith(_INDEX)


def read(path: str | os.PathLike, entry: str | None = None) -> Stored:
  """Returns what a file, or a folder in the layout of a hub, holds.

  The JSON files of a folder are read if `path` is the folder, or a file in it
  with the name that such folders give their weights (model.safetensors,
  pytorch_model.bin). Other files have their config inside or none.

  Args:
    path: of a .safetensors or .pth file, or of a folder.
    entry: which of several state dicts in the file: a key, such as 'model_ema'
      or 'student', or the first part of the names (after 'module.'), also of
      those under one of the following keys. None takes the first of model,
      state_dict, model_state_dict and teacher.

  Raises:
    UserError: it cannot be read, or where in it the weights are is unclear.
  """
  path = pathlib.Path(path).expanduser()
  file = _find(path) if path.is_dir() else path
  parts, inside = [file], {}
  if file.name.endswith(_INDEX):
    parts = _parts(file)
  content: dict[str, Any] = {}
  for part in parts:
    arrays, inside = _read_file(part)
    content |= arrays
  arguments = content.get('args')
  arrays = _entry(content, entry, file)
  if not inside and (path.is_dir() or file.stem in ('model', 'pytorch_model')):
    inside = {
      name: files.read_json_object(file.parent / f'{name}.json')
      for name in ('config', 'preprocessor_config')
      if (file.parent / f'{name}.json').exists()
    }
  return Stored(
    arrays=_to_numpy(arrays, file, sum(part.stat().st_size for part in parts)),
    config=inside.get('config', {}),
    preprocessor=inside.get('preprocessor_config', {}),
    arguments=dict(vars(arguments))
    if isinstance(arguments, argparse.Namespace)
    else {},
  )


def write(
  path: str | os.PathLike,
  arrays: Mapping[str, np.ndarray],
  configs: Mapping[str, Any],
) -> None:
  """Writes a folder as the hub has them, or one .safetensors file.

  A file if the path ends in .safetensors, which then has the configs in its
  header. `configs` are contents of JSON files by name without suffix.

  Raises:
    UserError: it cannot be written.
  """
  path = pathlib.Path(path).expanduser()
  header = {'format': 'pt'}  # Without it transformers refuses the file.
  file = path / 'model.safetensors'
  if path.suffix == '.safetensors':
    header |= {name: json.dumps(value) for name, value in configs.items()}
    file, configs = path, {}
  arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  with files.write_atomically(file) as part:
    safetensors.numpy.save_file(arrays, part, metadata=header)
  for name, value in configs.items():
    with files.write_atomically(path / f'{name}.json') as part:
      part.write_text(json.dumps(value, indent=2) + '\n')


def _find(folder: pathlib.Path) -> pathlib.Path:
  """Returns the file with the weights in a folder."""
  for stem in ('model', 'pytorch_model'):
    for suffix in ('.safetensors', '.bin', '.pth'):
      for name in (f'{stem}{suffix}', f'{stem}{suffix}{_INDEX}'):
        if (folder / name).exists():
          return folder / name
  found = sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES)
  if len(found) != 1:
    names = ', '.join(f.name for f in found) or 'none'
    raise UserError(
      f'{folder} should hold one file of weights, such as model.safetensors;'
      f' there are: {names}'
    )
  return found[0]


def _read_file(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the content of a file, and the configs in its header."""
  if path.suffix not in SUFFIXES:
    raise UserError(f'{path}: expected one of {", ".join(SUFFIXES)}')
  if path.suffix in _PICKLES:
    return _pickle.read(path), {}
  arrays, metadata = _safetensors.read(path)
  configs = {}
  for name in ('config', 'preprocessor_config'):
    if name in metadata:
      where = f'the {name} in {path}'
      value = files.parse_json(metadata[name], where)
      configs[name] = files.check_object(value, where)
  return arrays, configs


def _parts(index: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that an index names, which are beside it."""
  table = files.read_json_object(index).get('weight_map')
  if not (
    isinstance(table, dict)
    and table
    and all(
      isinstance(name, str) and pathlib.PurePath(name).name == name
      for name in table.values()
    )
  ):
    raise UserError(
      f'{index} must have a weight_map from names of arrays to names of files'
      ' beside it; if it was downloaded, delete it and try again'
    )
  return [index.parent / name for name in sorted(set(table.values()))]


def _entry(content, entry: str | None, path) -> dict[str, Any]:
  """Returns the state dict among other things that a file may hold."""
  found = _choose(content, entry, path)
  strange = [key for key in found if not isinstance(key, str)]
  if strange:
    raise UserError(
      f'{path} holds no state dict: the name of an array is'
      f' {printable(reprlib.repr(strange[0]), max_length=80)}; set entry= to'
      ' choose another part of the file'
    )
  return found


def _to_numpy(
  tensors: Mapping[str, Any],
  file: pathlib.Path,
  size: int,
  *,
  max_sharing: float = MAX_SHARING,
) -> dict[str, np.ndarray]:
  """Returns the arrays and tensors among the values, as arrays.

  Tensors of a pickle may share their memory: all together may have
  `max_sharing` times the `size` of their files in bytes, or `_npz.SMALL_BYTES`.
  """
  limit = max(_npz.SMALL_BYTES, max_sharing * size)
  arrays, total = {}, 0
  for name, value in tensors.items():
    if hasattr(value, 'shape'):
      where = f'{printable(name, max_length=80)} in {file}'
      arrays[name] = _pickle.to_numpy(value, where)
      total += arrays[name].nbytes
      if total > limit:
        raise UserError(
          f'cannot read {file}: of {size:,} bytes, it has tensors of over'
          f' {total:,} bytes that share their memory, and the limit is'
          f' max_sharing={max_sharing:g}; write the file again with tensors of'
          ' their own'
        )
  return arrays


def _choose(content, entry: str | None, path) -> dict[str, Any]:
  nested = {k: v for k, v in content.items() if isinstance(v, Mapping)}
  usual = [nested[name] for name in _ENTRIES if name in nested]
  if entry is not None:
    for place in (content, *usual):
      if isinstance(place.get(entry), Mapping):
        return dict(place[entry])
      for prefix in (f'{entry}.', f'module.{entry}.'):
        inside = {k: v for k, v in place.items() if str(k).startswith(prefix)}
        if inside:
          return inside
    choices = list(content)
    for place in usual:
      choices += [str(k).removeprefix('module.').split('.')[0] for k in place]
    raise UserError(f'{path} has no entry {entry!r}; it has {_some(choices)}')
  if any(hasattr(value, 'shape') for value in content.values()):
    return content
  if usual:
    return dict(usual[0])
  raise UserError(
    f'{path}: set entry= (--entry= on the command line) to choose where the'
    ' weights are; there are'
    f' {_some(content)}'
  )


def _some(names: Iterable[Any], *, max_names: int = 20) -> str:
  names = list(dict.fromkeys(names))
  more = f' and {len(names) - max_names} more' if len(names) > max_names else ''
  return printable(names[:max_names], max_length=1000) + more
