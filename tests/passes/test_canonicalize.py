"""Every canonicalization pass keeps what the graph computes, and rewrites exactly what its docstring shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.ir.ops.movement import SliceAttrs, TransposeAttrs
from bevel.ir.text import print_graph
from bevel.ir.types import F32, Dim, TensorType
from bevel.passes.canonicalize import CANONICAL, canonicalize
from bevel.passes.canonicalize_slices import MergeSlices
from bevel.passes.canonicalize_transposes import MergeTransposes
from bevel.passes.pipeline import lookup_pass, run_passes
from tests.passes import graph_cases, norm_cases

Build = Callable[[], Graph]

REWRITES = graph_cases.REWRITES | norm_cases.REWRITES
LEFT_ALONE = graph_cases.LEFT_ALONE | norm_cases.LEFT_ALONE


def flat(table: dict[str, tuple[Build, ...]]) -> list[object]:
    return [pytest.param(name, build, id=f"{name}-{build.__name__}") for name, builds in table.items() for build in builds]


def outputs(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    feeds = {}
    for value in graph.inputs:
        shape = [3 if isinstance(d, Dim) else d for d in value.type.shape]
        feeds[value.name] = (3 * rng.normal(size=shape)).astype(np.float32)
    results = run(graph, feeds)
    return [results[v.name] for v in graph.outputs]


def check_same(before: Graph, after: Graph) -> None:
    assert [v.name for v in after.outputs] == [v.name for v in before.outputs]
    assert [v.type for v in after.outputs] == [v.type for v in before.outputs]
    for want, got in zip(outputs(before), outputs(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize(("name", "build"), flat(REWRITES))
def test_rewrites_keep_the_outputs_and_match_their_golden_text(
    name: str, build: Build, golden: Callable[[str, str], None]
) -> None:
    before = build()
    text = print_graph(before)
    after = run_passes(before, [lookup_pass(name)()])
    assert print_graph(before) == text, "the pass changed its input"
    check_same(before, after)
    golden(f"{name}-{build.__name__}", f"{text}\n// {name}\n\n{print_graph(after)}")
    assert print_graph(run_passes(after, [lookup_pass(name)()])) == print_graph(after), "a second run still changes the graph"


@pytest.mark.parametrize(("name", "build"), flat(LEFT_ALONE))
def test_graphs_that_look_alike_stay(name: str, build: Build) -> None:
    before = build()
    assert print_graph(run_passes(before, [lookup_pass(name)()])) == print_graph(before)


@pytest.mark.parametrize(
    "build", sorted({b for t in (REWRITES, LEFT_ALONE) for bs in t.values() for b in bs}, key=lambda b: b.__name__)
)
def test_the_whole_list_keeps_the_outputs_of_every_case(build: Build) -> None:
    before = build()
    after = canonicalize(before)
    check_same(before, after)
    assert print_graph(canonicalize(after)) == print_graph(after), "canonical form is not a fixed point"


def test_every_pass_of_the_list_has_a_rewrite_case() -> None:
    assert {p.name for p in CANONICAL} == set(REWRITES)


@st.composite
def cuts(draw: st.DrawFn, extent: int) -> tuple[int, int, int]:
    start = draw(st.integers(0, extent))
    return start, draw(st.integers(start, extent)), draw(st.integers(1, 4))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_merged_slices_take_what_the_chain_took(data: st.DataObject) -> None:
    graph = Graph("cuts")
    value, shape = graph.add_input("x", TensorType((7, 9), F32)), (7, 9)
    for _ in range(data.draw(st.integers(2, 4))):
        chosen = [data.draw(cuts(extent)) for extent in shape]
        starts, ends, steps = zip(*chosen, strict=True)
        ends = tuple(-1 if e == d and data.draw(st.booleans()) else e for e, d in zip(ends, shape, strict=True))
        value = graph.add_node("Slice", [value], SliceAttrs(starts, ends, steps)).output
        shape = value.type.static_shape
    graph.set_outputs([value])
    after = run_passes(graph, [MergeSlices()])
    assert len(after.nodes) == 1
    x = np.arange(63, dtype=np.float32).reshape(7, 9)
    np.testing.assert_array_equal(run(after, {"x": x})[value.name], run(graph, {"x": x})[value.name])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.permutations(range(4)), min_size=1, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5))
def test_merged_transposes_order_as_the_chain_did(perms: list[list[int]], relus: list[bool]) -> None:
    graph = Graph("turns")
    value = graph.add_node("Neg", [graph.add_input("x", TensorType((2, 1, 3, 4), F32))]).output
    for perm, relu in zip(perms, relus, strict=False):
        value = graph.add_node("Transpose", [value], TransposeAttrs(tuple(perm))).output
        value = graph.add_node("Tanh", [value]).output if relu else value
    graph.set_outputs([value])
    after = run_passes(graph, [MergeTransposes()])
    assert sum(n.op in ("Transpose", "Reshape") for n in after.nodes) <= 1
    x = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(after, {"x": x})[value.name], run(graph, {"x": x})[value.name])
