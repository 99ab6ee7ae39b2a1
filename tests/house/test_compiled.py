"""Counting of operations and launches in compiled programs (`benchmarks.compiled`)."""

import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compiled, hlo, thunks
from benchmarks.cases import CASES
from benchmarks.hlo import Body, Count, Loop

HLO = """HloModule jit_run, is_scheduled=true

FileNames
1 "model.py"

FunctionNames
1 "run"
2 "layer.<locals>.forward"

FileLocations
1 {file_name_id=1 function_name_id=1 line=5 end_line=5 column=21 end_column=26}
2 {file_name_id=1 function_name_id=2 line=7 end_line=7 column=21 end_column=26}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%fused_pad (p: f32[6]) -> f32[8] {
  %p = f32[6]{0} parameter(0)
  %c = f32[] constant(0)
  ROOT %pad = f32[8]{0} pad(%p, %c), padding=0_2
}

%fused_copy (p: f32[6]) -> f32[6] {
  %p = f32[6]{0} parameter(0)
  ROOT %copy = f32[6]{0} copy(%p)
}

%time (state: (s32[], f32[6])) -> (s32[], f32[6]) {
  %state = (s32[], f32[6]{0}) parameter(0)
  %x = f32[6]{0} get-tuple-element(%state), index=1
  %pads = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_pad
  %started = ((f32[6]{0}), f32[6]{0}, s32[]) fusion-start(%x), kind=kLoop, calls=%fused_copy
  %done = f32[6]{0} fusion-done(%started)
  %sum = f32[6]{0} all-reduce(%x), to_apply=%add
  ROOT %after = (s32[], f32[6]{0}) tuple(%i, %sum)
}

%time_condition (state: (s32[], f32[6])) -> pred[] {
  %most = s32[] constant(7)
  %state = (s32[], f32[6]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %lt = pred[] compare(%i, %most), direction=LT
}

%updates (state: (s32[], f32[6])) -> (s32[], f32[6]) {
  %state = (s32[], f32[6]{0}) parameter(0)
  %w = (s32[], f32[6]{0}) while(%state), condition=%time_condition, body=%time, \
metadata={op_name="jit(run)/while/body/transpose(jvp())/while" stack_frame_id=2}
  %v = (s32[], f32[6]{0}) while(%w), condition=%go_on, body=%empty, \
metadata={op_name="jit(run)/while/body/while" stack_frame_id=1}, \
backend_config={"known_trip_count":{"n":"3"}}
  %x = f32[6]{0} get-tuple-element(%w), index=1
  %y = f32[6]{0} call(%x), to_apply=%called
  %z = f32[6]{0} conditional(%p, %y, %y), true_computation=%called, false_computation=%twice
  ROOT %after = (s32[], f32[6]{0}) tuple(%i, %z)
}

%called (x: f32[6]) -> f32[6] {
  %x = f32[6]{0} parameter(0)
  ROOT %custom = f32[6]{0} custom-call(%x), custom_call_target="library"
}

%twice (x: f32[6]) -> f32[6] {
  %x = f32[6]{0} parameter(0)
  %once = f32[6]{0} copy(%x)
  ROOT %twice = f32[6]{0} copy(%once)
}

ENTRY %main (x: (s32[], f32[6])) -> (s32[], f32[6]) {
  %x = (s32[], f32[6]{0}) parameter(0)
  ROOT %w = (s32[], f32[6]{0}) while(%x), condition=%go_on, body=%updates, \
metadata={op_name="jit(run)/while" stack_frame_id=1}
}
"""

THUNKS = """001: kWhile        [source | sink]
condition:
    002: kCustomKernel [source | sink] loop_and_fusion
  body:
    003: kWhile         [source | next=010 (1)]
condition:
        004: kCustomKernel  [source | sink] loop_compare
      body:
        005: kAsyncStart    [source       | next=034 (5)] stream=computation_stream[0]
            006: kDynamicSliceFusion [source | sink] params=1, results=1
                007: kCopy [source | sink] kCopy
        008: kAsyncDone     [source       | sink        ] async_id=25
        000: kCommandBuffer [prev=034 (2) | next=044 (2)]
            009: kCustomKernel [source | sink] one
            010: kCustomKernel [source | sink] another
    000: kCommandBuffer [prev=003 (1) | sink]
        011: kCopy [source | sink] kCopy
        012: kWhile         [source | sink]
condition:
            013: kCustomKernel  [source | sink] loop_compare
          body:
            014: kCustomKernel  [source | sink] in_a_graph
    015: kCustomKernel [source | sink] last
"""


def test_operations_of_loops_and_what_they_are():
    (updates,) = hlo.program(HLO).loops
    assert (updates.turns, updates.source) == (None, "model.py, run")
    assert updates.body.own == Count(operations=4, copies=2)  # The larger branch of the two.
    time, other = updates.body.loops
    assert (time.turns, time.backward, time.source) == (7, True, "model.py, layer.<locals>.forward")
    assert time.body.own == Count(operations=3, pads=1, copies=1, collectives=1)
    assert (other.turns, other.backward, other.body) == (3, False, Body(Count()))
    assert updates.body.total == Count(operations=4 + 7 * 3, pads=7, copies=9, collectives=7)


def test_launches_count_a_graph_once_and_the_loop_inside_a_graph_not_at_all():
    (updates,) = thunks.with_launches(hlo.program(HLO), THUNKS).loops
    time, other = updates.body.loops
    assert (time.body.own.launches, time.body.own.in_graphs) == (2, 2)
    assert (other.body.own.launches, other.body.own.in_graphs) == (0, 1)
    assert (updates.body.own.launches, updates.body.own.in_graphs) == (2, 1)
    assert updates.body.total.launches == 2 + 7 * 2
    with pytest.raises(ValueError, match="3 loops in HLO, 0 in thunks"):
        thunks.with_launches(hlo.program(HLO), "001: kCopy [source | sink]")


def test_the_loops_over_time_are_found_in_an_update_without_those_of_the_loss():
    inner = Loop(11, False, "segment", Body(Count(2)))
    outer = Loop(12, True, "recompute", Body(Count(3), (inner,)))
    loss = Loop(64, False, "fused.py, _sweep", Body(Count(9)))
    short = Loop(2, False, "random", Body(Count(9)))
    update = Body(Count(5), (outer, loss, short))
    whole = Body(Count(1), (Loop(None, False, compiled.UPDATES, update),))
    assert compiled.one_update(whole) == update
    assert compiled.one_update(update) == update
    assert compiled.loops_over_time(update, 128) == [outer]
    assert compiled.in_turns([outer]).operations == 12 * (3 + 11 * 2)


def test_a_scan_and_its_gradient_are_two_loops_with_a_turn_for_each_step():
    def total(W):
        def step(h, _):
            h = jnp.tanh(h @ W)
            return h, h

        return jnp.sum(jax.lax.scan(step, jnp.ones((2, 3), W.dtype), None, length=5)[1])

    text = jax.jit(jax.grad(total)).lower(jnp.ones((3, 3))).compile().as_text()
    found = [(loop.turns, loop.backward) for loop in hlo.program(text).all_loops()]
    assert found == [(5, False), (5, True)]


def test_a_line_has_the_counts_of_a_time_step():
    case = CASES["update, char lstm 512"]
    forward = Loop(128, False, "forward", Body(Count(5, launches=2, in_graphs=4, pads=1)))
    backward = Loop(32, True, "backward", Body(Count(9, launches=0, in_graphs=9, copies=4)))
    body = Body(Count(7, launches=3, collectives=2), (forward, backward))
    line = compiled.line_of("a name", compiled.Found("cuda", body, 12_345_678, 4.2, ""), case)
    assert line.split("  ")[0] == "a name"
    assert " ".join(line.split()) == "a name 5 + 2.25 2 + 0 935 259 1 1 2, 0 12.3 4"
    assert compiled.lines_of_loops(body) == [
        "  128 turns of forward: operations 5, launches 2, in graphs 4, pads 1",
        "  32 turns of backward, backward: operations 9, in graphs 9, copies 4",
    ]


def test_a_missing_compiler_is_named_with_the_file_that_has_it(monkeypatch, capsys):
    missing = compiled.Target("cuda", "no_such_package", 8)
    monkeypatch.setitem(compiled.TARGETS, "h100", missing)
    monkeypatch.setattr(sys, "argv", ["compiled", "--target", "h100"])
    with pytest.raises(SystemExit, match=r"h100.*no_such_package.*requirements-compiled.txt"):
        compiled.main()
    monkeypatch.setitem(compiled.TARGETS, "h100", missing._replace(package="jax"))
    monkeypatch.setattr(sys, "argv", ["compiled", "--target", "h100", "--devices", "9"])
    with pytest.raises(SystemExit):
        compiled.main()
    assert "--devices 9: h100 has 1 to 8" in capsys.readouterr().err
