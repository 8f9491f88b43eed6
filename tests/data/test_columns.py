"""Numbers and texts of other columns of a source, without a source."""

import numpy as np
import pytest

from vit_jax.data.fields import Columns
from vit_jax.errors import UserError


def test_empty_cells_leave_a_column_of_whole_numbers_whole():
  columns = Columns(['age'])
  columns.learn('age', ['61', '', None, '9'])
  assert columns.texts == {}
  found = columns.encode({'age': '9'})['age']
  assert found == 9 and found.dtype == np.int32
  for empty in ('', None):
    with pytest.raises(UserError, match="the column 'age' is empty"):
      columns.encode({'age': empty})


def test_a_code_passes_and_a_bad_number_does_not():
  columns = Columns({'site': ['a', 'b']})
  assert columns.encode({'site': np.int64(1)})['site'] == 1
  for wrong in (2, -1):
    with pytest.raises(UserError, match='not among its 2 texts'):
      columns.encode({'site': wrong})
