"""Limits of the objects in a pickle of torch, checked before it is loaded.

A pickle can put an object into another one twice, and that one into the next
twice, and so on: 60 such steps are 400 bytes, and hashing or printing what
comes out takes 2^60 steps, in C, where not even Ctrl-C ends them. So the
opcodes are walked first, with the sizes of the objects in place of them.
"""

import io
import os
import pickletools
import zipfile

MAX_PICKLE_BYTES = 16 * 2**20  # Without the tensors, which are beside it.
# A ViT of 40 blocks with its optimizer and its average needs 0.1 million.
MAX_OBJECTS = 2**20
_ZIP = b'PK\x03\x04'
# Pickles before the tensors of a file that is not a zip: a magic number, the
# version, the machine, the content, the keys of the storages.
_NUM_LEGACY = 5
_PUT = ('PUT', 'BINPUT', 'LONG_BINPUT')
_GET = ('GET', 'BINGET', 'LONG_BINGET')
# These change the object below their arguments.
_CHANGES = ('APPEND', 'APPENDS', 'SETITEM', 'SETITEMS', 'BUILD')
_MARK = [0]


def is_zip(path: str | os.PathLike) -> bool:
  """Whether torch reads the file as a zip archive, by its first bytes."""
  with open(path, 'rb') as file:
    return file.read(len(_ZIP)) == _ZIP


def check_archive(
  archive: zipfile.ZipFile,
  *,
  max_bytes: int = MAX_PICKLE_BYTES,
  max_objects: int = MAX_OBJECTS,
) -> None:
  """Checks the pickles in a file of torch that is a zip archive.

  Args:
    archive: the open file.
    max_bytes: of a pickle.
    max_objects: that it may build, each counted wherever it occurs.

  Raises:
    ValueError: they are larger, or broken.
  """
  for member in archive.infolist():
    # torch ignores the case.
    if member.filename.lower().endswith('data.pkl'):
      if member.file_size > max_bytes:
        raise ValueError(
          f'its pickle has {member.file_size:,} bytes, and the limit is'
          f' max_bytes={max_bytes:,}'
        )
      _check(io.BytesIO(archive.read(member)), max_objects)


def check_legacy(
  path: str | os.PathLike,
  *,
  max_bytes: int = MAX_PICKLE_BYTES,
  max_objects: int = MAX_OBJECTS,
) -> None:
  """Checks the pickles at the start of a file of torch that is not an archive.

  Args:
    path: of the file.
    max_bytes: of these pickles together.
    max_objects: see `check_archive`.

  Raises:
    ValueError: they are larger, or broken.
  """
  with open(path, 'rb') as file:
    pickles = io.BytesIO(file.read(max_bytes))
  for _ in range(_NUM_LEGACY):
    _check(pickles, max_objects)


def _check(pickle: io.BytesIO, max_objects: int) -> None:
  """Walks one pickle with a stack of sizes: lists of one number.

  They are lists for the reason that what was put into the memo may grow later.
  """
  stack: list[list[int]] = []
  memo: dict[int, list[int]] = {}
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
      if size > max_objects:
        raise _too_many(max_objects)
    if i > max_objects:
      raise _too_many(max_objects)


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


def _too_many(max_objects: int) -> ValueError:
  return ValueError(
    'its pickle holds more objects, with those that occur repeatedly, than'
    f' max_objects={max_objects:,}'
  )
