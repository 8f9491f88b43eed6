"""The tables of names."""

import dataclasses

import pytest

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.pretrained import blocks, google_names
from vit_jax.pretrained.google_names import DIALECTS, Dialect

ALL = [
  dataclasses.replace(
    dialect, prefix=prefix, stacked=stacked, map_head=map_head
  )
  for dialect in DIALECTS.values()
  for prefix in google_names.PREFIXES
  for stacked in (False, True)
  for map_head in ('MAPHead_0/', '')
]


@pytest.mark.parametrize('dialect', ALL, ids=str)
def test_a_table_is_a_bijection(dialect):
  table = google_names.table(dialect, 11)
  assert len(set(table.values())) == len(table)
  assert all(name.startswith(dialect.prefix) for name in table)


@pytest.mark.parametrize('pooling', ['token', 'mean', 'map'])
def test_a_table_has_a_name_for_every_parameter(pooling, make_weights):
  weights = make_weights(pooling=pooling, representation_size=8)
  apart = trees.flatten(weights.params)
  stacked = blocks.stack(apart)
  for dialect in ALL:
    names = set(google_names.table(dialect, 3).values())
    assert set(stacked if dialect.stacked else apart) <= names, dialect


def test_names_of_the_published_files():
  # From vision_transformer's pre-Linen files, and from big_vision's.
  old = google_names.table(DIALECTS['pre_linen'], 12)
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
  new = google_names.table(DIALECTS['big_vision'], 12)
  block = f'params/{block}'
  assert new[f'{block}/LayerNorm_1/bias'] == 'encoder/block_11/norm_mlp/bias'
  assert new[f'{block}/MlpBlock_0/Dense_0/bias'] == (
    'encoder/block_11/mlp/up/bias'
  )
  assert new['params/pos_embedding'] == 'position_embedding'
  assert new['params/MAPHead_0/probe'] == 'pooling/probe'


@pytest.mark.parametrize('dialect', ALL, ids=str)
def test_a_dialect_is_recognised_by_its_names(dialect):
  names = set(google_names.table(dialect, 2))
  # Only shapes tell whether there is a row for the class token, and a stack's
  # parts are always numbered as in Linen.
  expected = dataclasses.replace(dialect, class_row=False)
  if dialect.stacked and dialect.numbering == 'pre_linen':
    return
  assert google_names.detect(names) == expected


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
def test_other_models_are_named(name, what):
  with pytest.raises(UserError, match=what):
    google_names.detect([name, 'head/bias'])
  if what in ('hybrid', 'Mixer'):
    with pytest.raises(UserError, match=what):
      google_names.detect([name, 'embedding/kernel'])


def test_what_may_lie_beside_the_weights():
  tower = Dialect(prefix='params/img/')
  assert google_names.is_beside('params/txt/Encoder_0/x', tower)
  assert google_names.is_beside('params/t', tower)
  assert google_names.is_beside('opt/0/count', tower)
  assert not google_names.is_beside('params/img/extra/x', tower)
  assert not google_names.is_beside('params/tt', tower)
  # A model that is alone has no other tower.
  assert not google_names.is_beside('t', Dialect(prefix='params/'))
  assert not google_names.is_beside('txt/x', Dialect())
  assert google_names.is_beside('opt/state/x', Dialect(prefix='opt/target/'))
  assert not google_names.is_beside('opt/target/x', Dialect('opt/target/'))
