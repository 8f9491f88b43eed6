"""Small files that claim too much, never end, or are no files."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from vit_jax import files
from vit_jax.errors import UserError


def header_file(path, header, *, length=None, data=b''):
  """Writes a .safetensors of a header (a value or bytes) and its claim."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(length.to_bytes(8, 'little') + text + data)
  return path


def test_a_header_is_read_as_it_was_written(tmp_path):
  path = tmp_path / 'x.safetensors'
  arrays = {'a': np.ones((2, 3), np.float32), 'b': np.float16(3)[None]}
  safetensors.numpy.save_file(arrays, path, metadata={'k': 'v'})
  entries, metadata = files.read_safetensors_header(path)
  assert metadata == {'k': 'v'}
  assert entries == {'a': ('F32', [2, 3]), 'b': ('F16', [1])}


def entry(**changes):
  return dict(dtype='F32', shape=[2], data_offsets=[0, 8]) | changes


@pytest.mark.parametrize(
  'content',
  [
    dict(header={}, length=2**63),
    dict(header={}, length=3),
    dict(header={}, length=0),
    dict(header=b'[' * 100_000),
    dict(header=b'{"a": ' * 70 + b'1' + b'}' * 70),
    dict(header=b'{"a": }'),
    dict(header=b'{"a": ' + b'9' * 5000 + b'}'),
    dict(header=b'\xff\xfe{}'),
    dict(header=[1]),
    dict(header={'__metadata__': [1]}),
    dict(header={'__metadata__': {'k': 1}}),
    dict(header={'a': 3}),
    dict(header={'a': entry()}),  # No data.
    dict(header={'a': entry(shape=[-2])}, data=b'8' * 8),
    dict(header={'a': entry(shape=2)}, data=b'8' * 8),
    dict(header={'a': entry(shape=[10**400])}, data=b'8' * 8),
    dict(header={'a': entry(dtype=4)}, data=b'8' * 8),
    dict(header={'a': entry(data_offsets=[8, 0])}, data=b'8' * 8),
  ],
)
def test_a_broken_header_is_one_line(content, tmp_path):
  path = header_file(tmp_path / 'x.safetensors', **content)
  with pytest.raises(
    UserError, match=r'x\.safetensors as \.safetensors: '
  ) as e:
    files.read_safetensors_header(path)
  assert len(str(e.value).splitlines()) == 1


def test_limits_are_named_and_can_be_set(tmp_path):
  (tmp_path / 'x.json').write_text('[[1]]')
  with pytest.raises(UserError, match=r'5 bytes, .* max_bytes=4'):
    files.read_json(tmp_path / 'x.json', max_bytes=4)
  deepest = json.loads('[' * 64 + '1' + ']' * 64)
  assert files.parse_json(json.dumps(deepest), 'x') == deepest
  with pytest.raises(UserError, match='max_nesting=64'):
    files.parse_json(json.dumps([deepest]), 'x')
  with pytest.raises(UserError, match='must be a JSON object'):
    files.read_json_object(tmp_path / 'x.json')


@pytest.mark.parametrize('kind', ['a pipe', 'a device', 'a folder', 'missing'])
def test_only_regular_files_are_opened(kind, tmp_path):
  path = tmp_path / 'x'
  if kind == 'a pipe':
    os.mkfifo(path)  # Opening it would wait for ever.
  elif kind == 'a device':
    path.symlink_to('/dev/zero')
  elif kind == 'a folder':
    path.mkdir()
  words = 'No such file' if kind == 'missing' else f'it is {kind}'
  start = time.monotonic()
  for read in (files.read_json, files.read_safetensors_header):
    with pytest.raises(UserError, match=words):
      read(path)
  assert time.monotonic() - start < 5


def test_reading_a_header_imports_neither_jax_nor_numpy():
  code = (
    'import sys; import vit_jax.files;'
    'print({"jax", "numpy"} & set(sys.modules))'
  )
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert found.stdout == 'set()\n'


def test_a_file_is_replaced_only_at_the_end(tmp_path):
  path = tmp_path / 'new' / 'x.npz'
  with files.write_atomically(path) as part:
    part.write_text('one')
    assert not path.exists()
  assert path.read_text() == 'one'
  with pytest.raises(KeyError), files.write_atomically(path) as part:
    part.write_text('two')
    raise KeyError
  assert path.read_text() == 'one'
  assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write .*file/x\.npz'):
    with files.write_atomically(tmp_path / 'file' / 'x.npz') as part:
      part.write_text('one')


def test_two_writers_do_not_disturb_each_other(tmp_path):
  path = tmp_path / 'x.npz'
  with files.write_atomically(path) as first:
    first.write_text('first')
    with files.write_atomically(path) as second:
      assert first != second
      second.write_text('second')
    assert path.read_text() == 'second'
  assert path.read_text() == 'first'
  assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_of_a_killed_process_is_reused(tmp_path):
  path = tmp_path / 'x.npz'
  (tmp_path / '.x.npz.part').write_text('half of what was written')
  with files.write_atomically(path) as part:
    assert part.read_text() == ''
    part.write_text('whole')
  assert path.read_text() == 'whole'
  assert list(tmp_path.iterdir()) == [path]
