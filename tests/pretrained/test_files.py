"""Files that are there whole or not at all."""

import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained import files


def test_a_file_is_replaced_only_at_the_end(tmp_path):
  path = tmp_path / 'new' / 'x.npz'
  with files.writing(path) as part:
    part.write_text('one')
    assert not path.exists()
  assert path.read_text() == 'one'
  with pytest.raises(KeyError), files.writing(path) as part:
    part.write_text('two')
    raise KeyError
  assert path.read_text() == 'one'
  assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write .*file/x\.npz'):
    with files.writing(tmp_path / 'file' / 'x.npz') as part:
      part.write_text('one')
