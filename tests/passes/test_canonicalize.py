"""Every canonicalization pass keeps what the graph computes, and rewrites exactly what its docstring shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.ir.text import print_graph
from bevel.ir.types import Dim
from bevel.passes.canonicalize import CANONICAL, canonicalize
from bevel.passes.pipeline import lookup_pass, run_passes
from tests.passes.graph_cases import LEFT_ALONE, REWRITES

Build = Callable[[], Graph]


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
