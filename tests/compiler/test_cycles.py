"""Cycles of a small program, added up by hand."""

import math

import pytest

from vit_jax.compiler import cycles

# As libtpu writes it, cut down. The entry runs a fusion, two loops and kernels;
# the loop bodies a fusion with a matrix product and a collective.
_PROGRAM = """\
HloModule jit_step, is_scheduled=true

%products.1 (p: f32[8]) -> f32[8] {
  %c = f32[8]{0} convolution(%p, %p), window={}
  ROOT %all-reduce.9 = bf16[4]{0} all-reduce(%c), replica_groups={}
}

%wrapped (p: f32[8]) -> f32[8] {
  ROOT %w = f32[8]{0} fusion(%p), kind=kLoop, calls=%x, \
backend_config={"estimated_cycles":"7"}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%p), calls=%products.1, metadata={op_name="jit(step)/\
transpose(jvp(ViT))/mlp/dot"}, backend_config={"estimated_cycles":"100"}
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%p, %n), direction=LT
}

%unknown (p: s32[]) -> pred[] {
  ROOT %lt2 = pred[] compare(%p, %p), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %a = f32[8]{0} fusion(%p), calls=%x, metadata={op_name="jit(step)/jvp(ViT)/\
norm"}, backend_config={"estimated_cycles":"20"}
  %b = f32[8]{0} fusion(%p), calls=%products.1, metadata={op_name="no cycles"}
  %o = f32[8]{0} fusion(%p), calls=%x, metadata={op_name="jit(step)/optimizer/\
mul"}, backend_config={"estimated_cycles":"3"}
  %s = f32[8]{0} async-start(%p), calls=%wrapped
  %l1 = (s32[], f32[8]) while(%t), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
  %l2 = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %l3 = (s32[], f32[8]) while(%t), condition=%unknown, body=%body
  %kern.1 = bf16[4,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_\
call", operand_layout_constraints={f32[4]{0}}, metadata={op_name="jit(step)/\
jvp(ViT)/kern"}, backend_config={"custom_call_config":{"body":"aa"}}
  %kern.2 = bf16[4,8]{1,0} custom-call(%p), custom_call_target="tpu_custom_\
call", operand_layout_constraints={f32[4]{0}}, metadata={op_name="jit(step)/\
jvp(ViT)/kern"}, backend_config={"custom_call_config":{"body":"aa"}}
}
"""
_MESH = dict(data=4, fsdp=1, tensor=1)


def test_cycles_are_added_up_by_phase_as_often_as_they_run():
  found = cycles.read(_PROGRAM, _MESH)
  # Loops of 12, of at most 5 and of unknown length, which counts as one.
  assert found.cycles == dict(
    forward=20, backward=100 * (12 + 5 + 1), optimizer=3, other=7
  )
  assert found.unknown_loops == 1


def test_a_loop_inside_a_loop_runs_as_often_as_both():
  # As micro-batches around scanned blocks: 3 turns of a loop of 5 turns, and of
  # 2 turns of that loop inside a call.
  nested = """\
HloModule jit_step, is_scheduled=true

%block (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%p), calls=%products, metadata={op_name="jit(step)/\
jvp(ViT)/mlp/dot"}, backend_config={"estimated_cycles":"100"}
}

%products (p: f32[8]) -> f32[8] {
  %c = f32[8]{0} convolution(%p, %p), window={}
  ROOT %all-reduce.9 = bf16[4]{0} all-reduce(%c), replica_groups={}
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%p, %n), direction=LT
}

%called (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %l3 = (s32[], f32[8]) while(%p), condition=%unknown, body=%block, \
backend_config={"known_trip_count":{"n":"2"}}
}

%micro_batch (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[8]{0} fusion(%p), calls=%x, metadata={op_name="jit(step)/\
optimizer/add"}, backend_config={"estimated_cycles":"7"}
  %l2 = (s32[], f32[8]) while(%p), condition=%condition, body=%block
  %d = (s32[], f32[8]) call(%p), to_apply=%called
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %l1 = (s32[], f32[8]) while(%t), condition=%unknown, body=%micro_batch, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""
  found = cycles.read(nested, _MESH)
  assert found.cycles['forward'] == 3 * (5 + 2) * 100
  assert found.cycles['optimizer'] == 3 * 7
  assert [c.count for c in found.collectives] == [3 * (5 + 2)]


def test_products_without_cycles_are_reported():
  # %b, and %f in three loops.
  assert cycles.read(_PROGRAM, _MESH).products == (4, 3)


def test_collectives_inside_fusions_and_loops_are_found():
  (found,) = cycles.read(_PROGRAM, _MESH).collectives
  assert (found.kind, found.axes) == ('all-reduce', ('data',))
  assert (found.count, found.bytes) == (19, 19 * 8)


def test_equal_kernels_share_the_schedule_of_one_of_them(tmp_path):
  schedule = tmp_path / '17-kern.2-71-schedule-analysis_final_bundles.txt'
  schedule.write_text('Schedule analysis:\n\ttotal scheduled bundles:    250\n')
  found = cycles.read(
    _PROGRAM, _MESH, grids=dict(kern=4), schedules=str(tmp_path)
  )
  (kernel,) = found.kernels
  assert (kernel.name, kernel.calls) == ('kern', 2)
  assert (kernel.iterations, kernel.bundles) == (4, 250)
  assert kernel.bytes == 4 * 8 * 2 + 4 * 4
  # 2 x 4 x 250 cycles of 1 ns and a copy of a quarter of the bytes; the memory
  # is slower than that in the second case.
  assert kernel.seconds(1e9, 1e9) == pytest.approx(2 * (1000 + 20) * 1e-9)
  assert kernel.seconds(1e9, 8e6) == pytest.approx(2 * (10 + 2.5) * 1e-6)
  seconds = found.seconds(1e9, 1e9)
  assert seconds['forward'] == pytest.approx(20e-9 + 2.04e-6)
  assert seconds['optimizer'] == pytest.approx(3e-9)
  again = cycles.read(
    _PROGRAM.replace('jvp(ViT)/kern"', 'transpose(jvp(ViT))/kern"', 1),
    _MESH,
    grids=dict(kern=4),
    schedules=str(tmp_path),
  )
  assert [(k.phase, k.calls, k.bundles) for k in again.kernels] == [
    ('backward', 1, 250),
    ('forward', 1, 250),
  ]
  wrapped = cycles.read(
    _PROGRAM.replace('%kern.', '%jvp_kern_.'), _MESH, grids=dict(kern=4, k=9)
  )
  assert [kernel.iterations for kernel in wrapped.kernels] == [4]


def test_a_kernel_without_a_schedule_or_grid_makes_the_time_unknown(tmp_path):
  for grids, schedules in ((dict(kern=4), str(tmp_path)), ({}, None)):
    found = cycles.read(_PROGRAM, _MESH, grids=grids, schedules=schedules)
    assert math.isnan(found.seconds(1e9, 1e9)['forward'])
    assert not math.isnan(found.seconds(1e9, 1e9)['backward'])
