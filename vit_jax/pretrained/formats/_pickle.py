"""Reading of torch pickles with `weights_only=True`, which runs no code.

A pickle can put an object into another one twice, and that one into the next
twice, and so on: 60 such steps are 400 bytes, and hashing or printing what
comes out takes 2^60 steps, in C, where not even Ctrl-C ends them. So the
opcodes are walked first, with the sizes of the objects in place of them.
"""

import argparse
import io
import os
import pathlib
import pickletools
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.pretrained.formats import npz
from vit_jax.printable import printable

MAX_PICKLE_BYTES = 16 * 2**20  # Without the tensors, which are beside it.
# A ViT of 40 blocks with its optimizer and its average needs 0.1 million.
MAX_OBJECTS = 2**20
# Pickles before the tensors of a file that is not a zip: a magic number, the
# version, the machine, the content, the keys of the storages.
_NUM_LEGACY = 5
_PUT = ('PUT', 'BINPUT', 'LONG_BINPUT')
_GET = ('GET', 'BINGET', 'LONG_BINGET')
# These change the object below their arguments.
_CHANGES = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'BUILD')
_MARK = [0]


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the dict in a file that `torch.save` wrote."""
  try:
    import torch
  except ImportError as e:
    raise UserError(
      f'{path} is a pickle of torch, which is not installed: pip install torch,'
      ' or get the weights as .safetensors'
    ) from e
  files.check_regular(path)
  try:
    check(path)
    # Training scripts put their arguments beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
      content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as e:  # torch raises many kinds for a broken file.
    raise _refused(path, e) from e
  if not isinstance(content, Mapping):
    raise UserError(
      f'{path} holds a {type(content).__name__}, not a state dict'
    )
  return dict(content)


def to_numpy(tensor: Any, where: str) -> np.ndarray:
  """Returns a tensor of torch as a view of numpy; arrays stay what they are."""
  if isinstance(tensor, np.ndarray):
    return tensor
  import torch

  try:
    tensor = tensor.detach()
    held = tensor.untyped_storage().nbytes()
    if not 0 < tensor.numel() * tensor.element_size() <= held:
      raise ValueError(
        f'it has the shape {tuple(tensor.shape)} and {held:,} bytes'
      )
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own.
      bits = tensor.contiguous().view(torch.int16).numpy()
      return bits.view(ml_dtypes.bfloat16)
    return tensor.numpy()
  except (TypeError, ValueError, RuntimeError, NotImplementedError) as e:
    reason = printable(' '.join(str(e).split()), max_length=200)
    raise UserError(
      f'cannot use {where}: {reason}; write the file again with tensors of'
      ' float32, bfloat16 or float16'
    ) from e


def check(
  path: str | os.PathLike,
  *,
  max_bytes: int = MAX_PICKLE_BYTES,
  max_objects: int = MAX_OBJECTS,
) -> None:
  """Raises ValueError for a file of torch with large or broken pickles.

  Args:
    path: of a zip, or of a file that begins with pickles.
    max_bytes: of a pickle.
    max_objects: that it may build, each counted wherever it occurs.
  """
  with open(path, 'rb') as file:
    start = file.read(max_bytes)
  if not start.startswith(b'PK\x03\x04'):  # As torch decides it.
    pickles = io.BytesIO(start)
    for _ in range(_NUM_LEGACY):
      _walk(pickles, max_objects)
    return
  with zipfile.ZipFile(path) as archive:
    npz.check_members(archive, os.path.getsize(path))
    for member in archive.infolist():
      # torch ignores the case.
      if not member.filename.lower().endswith('data.pkl'):
        continue
      if member.file_size > max_bytes:
        raise ValueError(
          f'its pickle has {member.file_size:,} bytes, and the limit is'
          f' max_bytes={max_bytes:,}'
        )
      _walk(io.BytesIO(archive.read(member)), max_objects)


def _refused(path: pathlib.Path, e: Exception) -> UserError:
  """Returns the error for a pickle, in one line and without torch's advice.

  Torch suggests to load the file with `weights_only=False`, which runs whatever
  code is in it.
  """
  text = ' '.join(str(e).split())
  named = re.search(r'GLOBAL ([\w.<>]+)', text)
  if named is None and 'weights_only' not in text.lower().replace(' ', '_'):
    return files.unreadable(path, e)
  what = 'more than tensors'
  if named:
    what = f'the Python object {printable(named[1], max_length=80)}'
  return UserError(
    f'cannot read {path}: it holds {what}, and of pickles only tensors are'
    ' read, since others can run code; get the weights as .safetensors, or save'
    ' the state dict alone where the file is from'
  )


def _walk(pickle: io.BytesIO, max_objects: int) -> None:
  """Walks one pickle with a stack of sizes: lists of one number.

  They are lists for the reason that what was put into the memo may grow later.
  """
  stack: list[list[int]] = []
  memo: dict[int, list[int]] = {}
  largest = 0
  for i, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
    if opcode.name in _PUT:
      memo[argument] = stack[-1]
    elif opcode.name in _GET:
      if argument not in memo:
        raise ValueError(f'its pickle has no object {argument}')
      stack.append(memo[argument])
    elif opcode.name == 'MARK':
      stack.append(_MARK)
    else:
      taken = _take(stack, opcode)
      size = 1 + sum(size for [size] in taken)
      if opcode.name in _CHANGES:
        taken[0][0] = size
        stack.append(taken[0])
      else:
        stack += [[size] for _ in opcode.stack_after]
      largest = max(largest, size)
    if max(i, largest) > max_objects:
      raise ValueError(
        'its pickle holds more objects, with those that occur repeatedly, than'
        f' max_objects={max_objects:,}'
      )


def _take(stack, opcode: pickletools.OpcodeInfo) -> list[list[int]]:
  """Removes the arguments of an opcode from the stack, and returns them."""
  wanted, taken = opcode.stack_before, []
  if pickletools.markobject in wanted:
    while stack[-1] is not _MARK:
      taken.append(stack.pop())
    stack.pop()
    wanted = wanted[: wanted.index(pickletools.markobject)]
  start = len(stack) - len(wanted)
  if start < 0:
    raise ValueError('its pickle takes more objects than it has')
  taken = stack[start:] + taken
  del stack[start:]
  return taken
