"""Checks for files that are cut off or of another kind than their suffix.

A server may answer with a web page (a login, a captcha, a notice) instead of
the file, and a connection that is cut looks like the end of the file where the
server did not say how long it is. Both are seen without reading it all.
"""

import json
import pathlib
import zipfile

from vit_jax import files
from vit_jax.errors import UserError

_PICKLES = ('.pth', '.pt', '.bin', '.ckpt', '.tar')
_ZIP, _PICKLE = b'PK', b'\x80'
_HEADER_BYTES = 8  # of safetensors: the length of the JSON that follows


def problem(path: pathlib.Path, suffix: str) -> str | None:
  """Returns the problem of a file, or None.

  Args:
    path: of the file.
    suffix: that it has or will have: '.npz', '.safetensors', '.pth' and its
      like, '.json'. Of others only web pages are found.
  """
  with path.open('rb') as file:
    start = file.read(256)
  if not start:
    return 'it is empty'
  if start.lstrip().lower().startswith((b'<!doctype', b'<html')):
    return f'it is a web page, not a {suffix or "file of weights"}'
  if suffix == '.npz' and not start.startswith(_ZIP):
    return f'it is not an .npz: it begins with {start[:8]!r}'
  if suffix in _PICKLES and not start.startswith((_ZIP, _PICKLE)):
    return f'it is not a {suffix} of torch: it begins with {start[:8]!r}'
  if suffix in ('.npz', *_PICKLES) and start.startswith(_ZIP):
    # The table of contents is at the end.
    return None if zipfile.is_zipfile(path) else 'its end is missing'
  if suffix == '.safetensors':
    return _safetensors_problem(path)
  if suffix == '.json':
    return _json_problem(path)
  return None


def _safetensors_problem(path: pathlib.Path) -> str | None:
  size = path.stat().st_size
  with path.open('rb') as file:
    length = int.from_bytes(file.read(_HEADER_BYTES), 'little')
    if length > files.MAX_HEADER_BYTES or file.read(1) != b'{':
      return 'it is not a .safetensors: it has no header'
    file.seek(_HEADER_BYTES)
    content = file.read(length)
  if len(content) < length:
    return 'its end is missing'
  try:
    header = json.loads(content)
    entries = [v for k, v in header.items() if k != '__metadata__']
    ends = [int(entry['data_offsets'][1]) for entry in entries]
  except (ValueError, TypeError, KeyError, IndexError, AttributeError):
    return 'it is not a .safetensors: its header cannot be read'
  except RecursionError:
    return 'it is not a .safetensors: its header is nested too deeply'
  expected = _HEADER_BYTES + length + max(ends, default=0)
  if size < expected:
    return f'its end is missing: it has {size} of {expected} bytes'
  return None


def _json_problem(path: pathlib.Path) -> str | None:
  if path.stat().st_size > files.MAX_JSON_BYTES:
    return f'it has more than {files.MAX_JSON_BYTES:,} bytes'
  try:
    files.parse_json(path.read_bytes(), 'it')
  except UserError as e:
    return str(e)
  return None
