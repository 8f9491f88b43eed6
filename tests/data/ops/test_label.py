"""Class ids as vectors."""

import numpy as np
import pytest

from vit_jax.data import ops_language
from vit_jax.errors import UserError


def onehot(label, num_classes=4):
  op = ops_language.parse(f'onehot({num_classes})')
  return op({'label': label}, np.random.default_rng(0))['label']


@pytest.mark.parametrize(
  'label, hot',
  [
    (2, [0, 0, 1, 0]),
    (np.int64(0), [1, 0, 0, 0]),
    ([3, 1], [0, 1, 0, 1]),
    (np.array([3, 3]), [0, 0, 0, 1]),
    ([], [0, 0, 0, 0]),
  ],
)
def test_ids_become_ones(label, hot):
  got = onehot(label)
  np.testing.assert_array_equal(got, hot)
  assert got.dtype == np.float32


@pytest.mark.parametrize('label', [4, -1, [0, 4]])
def test_an_id_outside_the_classes_is_named(label):
  with pytest.raises(UserError, match=r'is outside 0 \.\. 3; is num_classes=4'):
    onehot(label)


def test_impossible_ids_are_refused():
  with pytest.raises(UserError, match='must hold class ids; got float64'):
    onehot([0.0, 1.0])
  with pytest.raises(UserError, match=r"no 'label'; it has \['image'\]"):
    ops_language.parse('onehot(3)')({'image': 0}, np.random.default_rng(0))
