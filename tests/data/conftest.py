"""Records that cannot be read, on demand."""

import pytest

from vit_jax.data.sources import synthetic


@pytest.fixture
def broken(monkeypatch):
  """Makes the records of a set unreadable: `broken.update({3, 4})`."""
  numbers = set()
  read = synthetic.Source.__getitem__

  def getitem(self, index):
    if index in numbers:
      raise OSError('bad checksum')
    return read(self, index)

  monkeypatch.setattr(synthetic.Source, '__getitem__', getitem)
  return numbers
