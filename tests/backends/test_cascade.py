"""Cascades: the plan of every stripe is played through, for random chains of convolutions, and which layers join is checked.

Proved here: whatever stripes a thread computes, each member finds every pixel it reads in the rolling buffer, none of them is
overwritten or outside it, and together the threads compute every unit of the last member once.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.backends.calls import Call
from bevel.backends.cascade import Member, plan_stripes
from bevel.backends.kernel import ConvProblem
from bevel.backends.lower import lower
from bevel.backends.schedule import Cascade, Schedule
from bevel.devices.profile import load_profile
from bevel.ir.graph import Graph, Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.protocols import Cache, Target
from bevel.ir.types import F32, TensorType

HOST = load_profile("x86-64-avx2").target()
SMALL = replace(HOST, caches=(Cache(1, 1024, 64), Cache(2, 4096, 64)))


@st.composite
def chains(draw: st.DrawFn) -> list[Member]:
    """Convolutions that follow each other, their units cut anywhere or at rows."""
    h, w = draw(st.integers(1, 24)), draw(st.integers(1, 9))
    members = []
    for _ in range(draw(st.integers(2, 4))):
        kernel, stride = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        dilation = draw(st.integers(1, 2))
        pads = [draw(st.integers(0, kernel)) for _ in range(4)]
        problem = ConvProblem(
            1, h, w, 3, draw(st.integers(1, 40)), kernel, kernel, stride, stride, dilation, dilation,
            pad_top=pads[0], pad_left=pads[1], pad_bottom=pads[2], pad_right=pads[3],
        )  # fmt: skip
        if problem.oh < 1 or problem.ow < 1:
            problem = replace(problem, kh=1, kw=1, dilation_h=1, dilation_w=1)
        pixels = problem.oh * problem.ow
        step = draw(st.integers(1, pixels))
        ends = [*range(step, pixels, step), pixels]
        members.append(Member(Call("", "", problem, [], []), problem, ends))
        h, w = problem.oh, problem.ow
    return members


def pixels_read(member: Member, start: int, stop: int) -> set[int]:
    """Input pixels of output pixels [start, stop), one tap at a time."""
    p, found = member.problem, set()
    for pixel in range(start, stop):
        y, x = divmod(pixel, p.ow)
        for i in range(p.kh):
            for j in range(p.kw):
                row, column = y * p.stride_h - p.pad_top + i * p.dilation_h, x * p.stride_w - p.pad_left + j * p.dilation_w
                if 0 <= row < p.h and 0 <= column < p.w:
                    found.add(row * p.w + column)
    return found


@settings(deadline=None, max_examples=150)
@given(chains(), st.integers(1, 5), st.integers(64, 65536))
def test_every_stripe_finds_what_it_reads(members: list[Member], threads: int, cache: int) -> None:
    stripes, sizes = plan_stripes(members, replace(HOST, caches=(Cache(2, cache, 64),)))
    computed = []
    for thread in range(threads):
        lo, hi = (len(stripes) * t // threads for t in (thread, thread + 1))
        held: list[set[int]] = [set() for _ in sizes]
        for index in range(lo, hi):
            row = stripes[index]
            for i, size in enumerate(sizes):
                part, width = row[i], members[i].pixel_bytes
                assert part.origin % 64 == 0
                assert part.done - part.origin <= size
                # Rolling moves what was there up to `done`; what lay before the new origin is gone.
                held[i] = {pixel for pixel in held[i] if pixel * width >= part.origin}
            for i, part in enumerate(row):
                first = part.fresh if index == lo else part.first
                start, stop = members[i].start(first), members[i].ends[part.end - 1]
                if first >= part.end:
                    continue
                if i:
                    assert pixels_read(members[i], start, stop) <= held[i - 1]
                if i == len(sizes):
                    computed += range(first, part.end)
                    continue
                width = members[i].pixel_bytes
                assert part.origin <= start * width
                assert stop * width <= part.done
                held[i] |= set(range(start, stop))
    assert computed == list(range(len(members[-1].ends)))


def conv(graph: Graph, x: Value, oc: int, kernel: int, groups: int = 1) -> Value:
    ic = x.type.static_shape[1]
    w = graph.add_constant(f"w{len(graph.nodes)}", np.ones((oc, ic // groups, kernel, kernel), np.float32))
    b = graph.add_constant(f"b{len(graph.nodes)}", np.zeros(oc, np.float32))
    return graph.add_node("Conv", [x, w, b], ConvAttrs((kernel, kernel), pads=(kernel // 2,) * 4, groups=groups)).output


def lowered(target: Target = SMALL, *, shared: bool = False, batch: int = 1) -> Schedule:
    """Expand, depthwise, project; the expanded tensor is an output too where it is `shared`."""
    graph = Graph("net")
    x = graph.add_input("x", TensorType((batch, 8, 12, 12), F32))
    expanded = conv(graph, x, 32, 1)
    y = conv(graph, conv(graph, expanded, 32, 3, groups=32), 8, 1)
    graph.set_outputs([y, expanded] if shared else [y])
    return lower(graph, target)


def cascades(schedule: Schedule) -> list[Cascade]:
    return [step for step in schedule.steps if isinstance(step, Cascade)]


def test_large_tensors_are_never_whole() -> None:
    (cascade,) = cascades(lowered())
    assert [member.op for member in cascade.members] == ["Conv", "Conv", "Conv"]
    whole = lowered(HOST)
    assert not cascades(whole), "in a large cache there is nothing to gain"
    assert lowered().arena_bytes < whole.arena_bytes / 2
    assert sum(cascade.buffers) < 32 * 144 * 4


def test_a_tensor_with_another_reader_stays_whole() -> None:
    (cascade,) = cascades(lowered(shared=True))
    assert [len(member.args) for member in cascade.members] == [4, 4]


@pytest.mark.parametrize("batch", [2, 3])
def test_several_images_make_no_cascade(batch: int) -> None:
    assert not cascades(lowered(batch=batch))
