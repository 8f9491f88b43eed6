"""The tables of names."""

import dataclasses
import re

import numpy as np
import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.pretrained import blocks
from vit_jax.pretrained.formats import npz
from vit_jax.pretrained.names import _vit_google
from vit_jax.pretrained.names._vit_google import STYLES, Style

ALL = [
  dataclasses.replace(
    dialect, prefix=prefix, stacked=stacked, map_head=map_head
  )
  for dialect in STYLES.values()
  for prefix in _vit_google.PREFIXES
  for stacked in (False, True)
  for map_head in ('MAPHead_0/', '')
]


def table(style, depth):
  """Returns `{name in the file: our name}`."""
  dialect = style.dialect()
  names = {k: ours for k, (ours,) in dialect.table(depth).items()}
  return names | {theirs: ours for ours, theirs in dialect.tokens.items()}


@pytest.mark.parametrize('dialect', ALL, ids=str)
def test_a_table_is_a_bijection(dialect):
  names = table(dialect, 11)
  assert len(set(names.values())) == len(names)
  assert all(name.startswith(dialect.prefix) for name in names)


@pytest.mark.parametrize('pooling', ['token', 'mean', 'map'])
def test_a_table_has_a_name_for_every_parameter(pooling, make_weights):
  weights = make_weights(pooling=pooling, representation_size=8)
  apart = trees.flatten(weights.params)
  stacked = blocks.stack(apart)
  for dialect in ALL:
    names = set(table(dialect, 3).values())
    assert set(stacked if dialect.stacked else apart) <= names, dialect


def test_names_of_the_published_files():
  # From vision_transformer's pre-Linen files, and from big_vision's.
  old = table(STYLES['pre_linen'], 12)
  block = 'Transformer/encoderblock_11'
  assert old[f'{block}/LayerNorm_0/scale'].endswith('11/norm_attention/scale')
  assert old[f'{block}/MultiHeadDotProductAttention_1/query/kernel'] == (
    'encoder/block_11/attention/query/kernel'
  )
  assert old[f'{block}/LayerNorm_2/bias'] == 'encoder/block_11/norm_mlp/bias'
  assert old[f'{block}/MlpBlock_3/Dense_1/kernel'] == (
    'encoder/block_11/mlp/down/kernel'
  )
  assert old['Transformer/posembed_input/pos_embedding'] == 'position_embedding'
  assert f'{block}/LayerNorm_1/bias' not in old
  new = table(STYLES['big_vision'], 12)
  block = f'params/{block}'
  assert new[f'{block}/LayerNorm_1/bias'] == 'encoder/block_11/norm_mlp/bias'
  assert new[f'{block}/MlpBlock_0/Dense_0/bias'] == (
    'encoder/block_11/mlp/up/bias'
  )
  assert new['params/pos_embedding'] == 'position_embedding'
  assert new['params/MAPHead_0/probe'] == 'pooling/probe'


@pytest.mark.parametrize('dialect', ALL, ids=str)
def test_a_dialect_is_recognised_by_its_names(dialect):
  names = set(table(dialect, 2))
  # Elsewhere only shapes show whether there is a row for the class token, and a
  # stack's parts are always numbered as in Linen.
  class_row = dialect.position == _vit_google.POSITIONS[0]
  expected = dataclasses.replace(dialect, class_row=class_row)
  if dialect.stacked and dialect.numbering == 'pre_linen':
    return
  assert _vit_google.detect(names) == expected


@pytest.mark.parametrize(
  ('name', 'what'),
  [
    ('conv_root/kernel', 'hybrid'),
    ('opt/target/conv_root/kernel', 'hybrid'),
    ('stem/kernel', 'Mixer'),
    ('params/stem/kernel', 'Mixer'),
    ('resnet/root_block/conv_root/kernel', 'BiT'),
    ('head/kernel', 'embedding/kernel'),
  ],
)
def test_other_models_are_named(name, what, tmp_path):
  zero = np.zeros(1)
  np.savez(tmp_path / 'x.npz', **{name: zero, 'head/bias': zero})
  with pytest.raises(UserError, match=what):
    npz.read(tmp_path / 'x.npz')
  if what in ('hybrid', 'Mixer'):
    with pytest.raises(UserError, match=what):
      _vit_google.detect([name, 'embedding/kernel'])


def test_other_files_may_be_beside_the_weights():
  def is_beside(name, prefix):
    patterns = Style(prefix=prefix).dialect().unused
    return any(re.fullmatch(pattern, name) for pattern in patterns)

  assert is_beside('params/txt/Encoder_0/x', 'params/img/')
  assert is_beside('params/t', 'params/img/')
  assert is_beside('opt/0/count', 'params/img/')
  assert not is_beside('params/img/extra/x', 'params/img/')
  assert not is_beside('params/tt', 'params/img/')
  # A model that is alone has no other tower.
  assert not is_beside('t', 'params/')
  assert not is_beside('txt/x', '')
  assert is_beside('opt/state/x', 'opt/target/')
  assert not is_beside('opt/target/x', 'opt/target/')
