"""Our forward on imported weights is theirs, and theirs on exported ones ours.

The cases are those of scripts/parity_table.py, which prints the numbers.
"""

import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

from parity_models import CASES
from parity_table import installed, measure

# Two float32 sums of the same numbers in different order, over 12 layers.
TOLERANCE = 1e-5


@pytest.mark.parametrize('case', CASES, ids=lambda c: f'{c.source}: {c.what}')
def test_outputs_are_equal_in_both_directions(case, tmp_path):
  if not installed(case.library):
    pytest.skip(f'{case.library} is not installed')
  row = measure(case, tmp_path)
  assert row.read < TOLERANCE
  assert row.written.keys() == set(filter(installed, case.targets))
  assert all(error < TOLERANCE for error in row.written.values())
  # The tolerance is for outputs of this size.
  assert 0.2 < row.size < 2
