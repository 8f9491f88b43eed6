"""State dicts on disk: .safetensors, .pth, and folders with a config.json.

.safetensors needs no torch. The pickles of torch (.pth, .pt, .bin) do, and are
read with `weights_only=True`: no code of theirs is run.
"""

import argparse
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vit_jax.errors import UserError
from vit_jax.pretrained import files

_PICKLES = ('.pth', '.pt', '.bin', '.ckpt', '.tar')
SUFFIXES = ('.safetensors', *_PICKLES)
# Where checkpoints keep the weights among other things, first choice first.
_ENTRIES = ('model', 'state_dict', 'model_state_dict', 'teacher')
_INDEX = '.index.json'


@dataclasses.dataclass(frozen=True)
class Stored:
  """A state dict as it was found.

  Attributes:
    arrays: by name.
    config: of config.json; empty if there is none.
    preprocessor: of preprocessor_config.json; likewise.
  """

  arrays: dict[str, np.ndarray]
  config: dict[str, Any]
  preprocessor: dict[str, Any]


def read(path: str | os.PathLike, entry: str | None = None) -> Stored:
  """Returns what a file, or a folder in the layout of a hub, holds.

  The JSON files of a folder are read if `path` is the folder, or a file in it
  with the name that such folders give their weights (model.safetensors,
  pytorch_model.bin). Other files tell of their config inside or not at all.

  Args:
    path: of a .safetensors or .pth file, or of a folder.
    entry: which of several state dicts in the file: a key, such as 'model_ema'
      or 'student', or the first part of the names. None takes the first of
      model, state_dict, model_state_dict and teacher.

  Raises:
    UserError: it cannot be read, or where in it the weights are is unclear.
  """
  path = pathlib.Path(path).expanduser()
  file = _find(path) if path.is_dir() else path
  parts, inside = [file], {}
  if file.name.endswith(_INDEX):
    index = _json(file)['weight_map']
    parts = [file.parent / name for name in sorted(set(index.values()))]
  arrays: dict[str, Any] = {}
  for part in parts:
    content, inside = _read_file(part)
    arrays |= content
  arrays = _entry(arrays, entry, file)
  if not inside and (path.is_dir() or file.stem in ('model', 'pytorch_model')):
    inside = {
      name: _json(file.parent / f'{name}.json')
      for name in ('config', 'preprocessor_config')
      if (file.parent / f'{name}.json').exists()
    }
  return Stored(
    arrays={k: _array(v) for k, v in arrays.items() if hasattr(v, 'shape')},
    config=inside.get('config', {}),
    preprocessor=inside.get('preprocessor_config', {}),
  )


def write(
  path: str | os.PathLike,
  arrays: Mapping[str, np.ndarray],
  configs: Mapping[str, Any],
) -> None:
  """Writes a folder as the hub has them, or one .safetensors file.

  Args:
    path: of a file if it ends in .safetensors, which then has the configs in
      its header; otherwise of a folder, which is made.
    arrays: by name.
    configs: content of JSON files by name without suffix.

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
  with files.writing(file) as part:
    safetensors.numpy.save_file(arrays, part, metadata=header)
  for name, value in configs.items():
    with files.writing(path / f'{name}.json') as part:
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
    return _read_pickle(path), {}
  try:
    with safetensors.safe_open(path, framework='np') as file:
      header = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}
  except (OSError, safetensors.SafetensorError) as e:
    raise _unreadable(path, e) from e
  names = ('config', 'preprocessor_config')
  return arrays, {n: json.loads(header[n]) for n in names if n in header}


def _read_pickle(path: pathlib.Path) -> dict[str, Any]:
  try:
    import torch
  except ImportError as e:
    raise UserError(
      f'{path} is a pickle of torch, which is not installed: pip install torch,'
      ' or get the weights as .safetensors'
    ) from e
  try:
    # Training scripts put their arguments beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
      content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as e:  # torch raises many kinds for a broken file.
    raise _unreadable(path, e) from e
  if not isinstance(content, Mapping):
    raise UserError(
      f'{path} holds a {type(content).__name__}, not a state dict'
    )
  return dict(content)


def _entry(content, entry: str | None, path) -> dict[str, Any]:
  """Returns the state dict among other things that a file may hold."""
  nested = [k for k, v in content.items() if isinstance(v, Mapping)]
  tensors = any(hasattr(v, 'shape') for v in content.values())
  if entry is not None:
    inside = {k: v for k, v in content.items() if k.startswith(f'{entry}.')}
    if entry not in nested and not inside:
      raise UserError(f'{path} has no entry {entry!r}; it has {list(content)}')
    return dict(content[entry]) if entry in nested else inside
  if tensors:
    return content
  for name in _ENTRIES:
    if name in nested:
      return dict(content[name])
  raise UserError(
    f'{path}: say entry= to choose where the weights are; there are'
    f' {list(content)}'
  )


def _array(tensor: Any) -> np.ndarray:
  if isinstance(tensor, np.ndarray):
    return tensor
  tensor = tensor.detach()
  if str(tensor.dtype) == 'torch.bfloat16':  # numpy has none of its own.
    import torch

    bits = tensor.contiguous().view(torch.int16).numpy()
    return bits.view(ml_dtypes.bfloat16)
  return tensor.numpy()


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as e:
    raise _unreadable(path, e) from e


def _unreadable(path, e: Exception) -> UserError:
  return UserError(
    f'cannot read {path}: {e}; if it was downloaded, delete it and try again'
  )
