"""Kind, bytes and axes of communication, read from lines of programs."""

import pytest

from vit_jax.compiler import collectives

_MESH = dict(data=2, fsdp=4, tensor=1)


def _line(kind, groups, result='bf16[8,4]{1,0}'):
  return f'  %x.1 = {result} {kind}(%p), channel_id=1, {groups}, dims={{0}}'


@pytest.mark.parametrize(
  ('groups', 'axes'),
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', ('fsdp',)),
    ('replica_groups={{0,4},{1,5},{2,6},{3,7}}', ('data',)),
    ('replica_groups={}', ('data', 'fsdp')),
    ('replica_groups=[2,4]<=[8]', ('fsdp',)),
    ('replica_groups=[4,2]<=[2,4]T(1,0)', ('data',)),
    ('replica_groups=[1,8]<=[8]', ('data', 'fsdp')),
    ("replica_groups=mesh['axis_0'=8] {'axis_0'}", ('data', 'fsdp')),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ('fsdp',)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", ('data',)),
    ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b','c'}", ('fsdp',)),
    ('replica_groups=something new', ('?',)),
  ],
)
def test_axes_are_those_along_which_a_group_differs(groups, axes):
  found = collectives.parse(_line('all-reduce', groups), _MESH)
  assert found == collectives.Collective('all-reduce', axes, 64)


def test_pairs_of_a_permutation_are_its_groups():
  line = _line('collective-permute', 'source_target_pairs={{0,1},{1,0},{4,5}}')
  found = collectives.parse(line, _MESH)
  assert (found.kind, found.axes) == ('collective-permute', ('fsdp',))


def test_bytes_are_those_of_all_results():
  result = '(f32[3]{0:T(256)}, /*index=1*/bf16[2,5]{1,0:T(8,128)(2,1)}, pred[])'
  line = _line('all-reduce', 'replica_groups={}', result)
  assert collectives.parse(line, _MESH).bytes == 3 * 4 + 2 * 5 * 2 + 1


def test_a_start_counts_its_result_but_not_its_argument():
  result = '(bf16[2,4]{1,0}, bf16[8,4]{1,0})'
  line = _line('all-gather-start', 'replica_groups=[2,4]<=[8]', result)
  found = collectives.parse(line, _MESH)
  assert (found.kind, found.bytes) == ('all-gather', 64)


def test_other_lines_do_not_communicate():
  for line in (
    '  %d.1 = bf16[8]{0} all-gather-done(%all-gather-start.1)',
    '  %f.1 = f32[] fusion(%all-reduce.1), kind=kLoop, calls=%c',
  ):
    assert collectives.parse(line, _MESH) is None
    assert not collectives.is_one(line)


def test_equal_ones_are_added_up_the_largest_first():
  small = collectives.Collective('all-gather', ('fsdp',), 10)
  large = collectives.Collective('all-reduce', ('data',), 300)
  other = collectives.Collective('all-gather', ('fsdp',), 20)
  merged = collectives.merge({small: 12, large: 1, other: 1})
  assert merged == (
    collectives.Collective('all-reduce', ('data',), 300, 1),
    collectives.Collective('all-gather', ('fsdp',), 140, 13),
  )
