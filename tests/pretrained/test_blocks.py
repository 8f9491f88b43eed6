"""Stacks of blocks."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained import blocks


def named(depth=3, folder='encoder/'):
  return {
    f'{folder}block_{i:02d}/{leaf}': np.full(shape, i, np.float32)
    for i in range(depth)
    for leaf, shape in (('mlp/up/kernel', (2, 3)), ('norm/bias', (2,)))
  }


@pytest.mark.parametrize('folder', ['', 'encoder/', 'params/image/encoder/'])
def test_stacking_and_back(folder):
  apart = named(11, folder) | {'head/bias': np.zeros(2)}
  stacked = blocks.stack(apart)
  assert set(stacked) == {
    f'{folder}blocks/mlp/up/kernel',
    f'{folder}blocks/norm/bias',
    'head/bias',
  }
  np.testing.assert_array_equal(
    stacked[f'{folder}blocks/norm/bias'][:, 0], np.arange(11)
  )
  back = blocks.unstack(stacked)
  assert set(back) == set(apart)
  for name, array in apart.items():
    np.testing.assert_array_equal(back[name], array)
  assert blocks.is_stacked(stacked) and not blocks.is_stacked(apart)


def test_two_encoders_are_two_stacks():
  apart = named(2, 'image/') | named(3, 'text/')
  stacked = blocks.stack(apart)
  assert stacked['image/blocks/norm/bias'].shape == (2, 2)
  assert stacked['text/blocks/norm/bias'].shape == (3, 2)


def test_blocks_that_are_not_alike_are_refused():
  apart = named()
  del apart['encoder/block_01/norm/bias']
  apart['encoder/block_02/mlp/up/kernel'] = np.zeros((2, 4))
  with pytest.raises(UserError) as e:
    blocks.stack(apart)
  assert 'norm/bias is missing in blocks [1] of encoder/' in str(e.value)
  assert 'mlp/up/kernel has shapes [(2, 3), (2, 4)]' in str(e.value)
