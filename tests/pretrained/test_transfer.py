"""Files that are cut off, or of another kind than their name says."""

import pytest

from vit_jax.pretrained import transfer


@pytest.fixture
def problem(tmp_path):
  """Returns `problem(content, suffix)`."""

  def of(content, suffix):
    (tmp_path / 'x.part').write_bytes(content)
    return transfer.problem(tmp_path / 'x.part', suffix)

  return of


def test_whole_files_have_no_problem(problem, npz, tensors):
  assert problem(npz, '.npz') is None
  assert problem(npz, '.pth') is None  # torch writes zips, too,
  assert problem(b'\x80\x02}q\x00.', '.bin') is None  # and pickles before.
  assert problem(tensors, '.safetensors') is None
  assert problem(b'{"a": 1}', '.json') is None
  assert problem(b'a,b', '.csv') is None


@pytest.mark.parametrize(
  'suffix', ['.npz', '.pth', '.safetensors', '.json', '']
)
def test_web_pages_and_empty_files_are_found(suffix, problem):
  for page in (b'<!DOCTYPE html><html>', b'\n <html lang="en">'):
    assert problem(page, suffix).startswith('it is a web page, not a ')
  assert problem(b'', suffix) == 'it is empty'


def test_every_cut_of_a_file_is_found(problem, npz, tensors):
  for content, suffix in (
    (npz, '.npz'),
    (npz, '.pth'),
    (tensors, '.safetensors'),
  ):
    for size in (*range(0, 200, 7), len(content) // 2, len(content) - 1):
      assert problem(content[:size], suffix), (suffix, size)


@pytest.mark.parametrize(
  ('content', 'suffix', 'message'),
  [
    (b'\x89PNG', '.npz', 'it is not a whole .npz: it begins with'),
    (b'\x89PNG', '.pth', 'it is not a whole .pth'),
    (b'PK\x03\x04' + bytes(99), '.safetensors', 'its header is not of'),
    (b'\xff' * 8 + b'{', '.safetensors', 'its header is not of'),
    (b'[' * 100_000, '.json', 'nested'),
    (b'{"a": ', '.json', 'it is not valid JSON'),
  ],
)
def test_other_kinds_are_named(content, suffix, message, problem):
  assert message in problem(content, suffix)


@pytest.mark.parametrize(
  'header',
  [
    '{]',
    '{"a": 1}',
    '{"a": {"data_offsets": 3}}',
    '{"a": {"data_offsets": [0]}}',
    '{"a": {"data_offsets": [0, "x"]}}',
    '{"a": ' * 5000,
  ],
)
def test_headers_of_another_shape_are_found(header, problem):
  content = len(header).to_bytes(8, 'little') + header.encode()
  assert 'its header' in problem(content, '.safetensors')
