"""The arena planner: tensors alive together never overlap, and memory is reused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bevel.backends.memory import ALIGNMENT, TAIL, Request, plan_arena


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    count = draw(st.integers(1, 30))
    result = []
    for i in range(count):
        first = draw(st.integers(0, 20))
        result.append(Request(f"t{i}", draw(st.integers(1, 5000)), first, first + draw(st.integers(0, 10))))
    return result


@given(requests())
def test_living_tensors_do_not_overlap(wanted: list[Request]) -> None:
    offsets, size = plan_arena(wanted)
    for i, a in enumerate(wanted):
        assert offsets[a.name] % ALIGNMENT == 0
        assert offsets[a.name] + a.nbytes + TAIL <= size + ALIGNMENT
        assert offsets[a.name] + a.nbytes <= size - TAIL
        for b in wanted[i + 1 :]:
            together = a.first <= b.last and b.first <= a.last
            apart = offsets[a.name] + a.nbytes <= offsets[b.name] or offsets[b.name] + b.nbytes <= offsets[a.name]
            assert not together or apart


def test_a_chain_needs_two_buffers() -> None:
    chain = [Request(f"t{i}", 1024, i, i + 1) for i in range(10)]
    _, size = plan_arena(chain)
    assert size == 2 * 1024 + TAIL


def test_no_tensors_leave_the_tail_only() -> None:
    assert plan_arena([]) == ({}, TAIL)
