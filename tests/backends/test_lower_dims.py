"""Lowering of bounded symbolic dimensions: static memory at the bound, copies at the border, what stays whole or is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bevel.backends.kernel import ConvProblem, DimRef, Extent
from bevel.backends.lower import lower
from bevel.backends.schedule import Place, Schedule
from bevel.devices.profile import load_profile
from bevel.errors import UnsupportedOp, UsageError
from bevel.ir.graph import Graph, Value
from bevel.ir.ops.movement import ReshapeAttrs, TransposeAttrs
from bevel.ir.ops.normalize import AxisAttrs
from bevel.ir.types import F32, Dim, TensorType
from bevel.passes.bind_dims import bind_dims

AVX2 = load_profile("x86-64-avx2").target()
SEQ = Dim("seq", 1, 32)


def graph_of(shape: tuple[int | Dim, ...], body: Callable[[Graph, Value], Value]) -> Graph:
    graph = Graph("net")
    graph.set_outputs([body(graph, graph.add_input("x", TensorType(shape, F32)))])
    return graph


def ops(schedule: Schedule) -> list[str]:
    return [step.op for step in schedule.steps]


def relu(graph: Graph, x: Value) -> Value:
    return graph.add_node("Relu", [x]).output


def gemm(graph: Graph, x: Value) -> Value:
    return graph.add_node("Gemm", [x, graph.add_constant("w", np.ones((8, 16), np.float32))], loc="dense").output


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((SEQ,), ["Relu"]),
        ((1, SEQ, 8), ["Relu"]),
        ((SEQ, 3, 8), ["Relu"]),
        ((2, SEQ), ["Spread", "Relu", "Compact"]),
        ((1, SEQ, SEQ), ["Spread", "Relu", "Compact"]),
        ((1, 3, SEQ, 2), ["Spread", "Relu", "Compact"]),
    ],
)
def test_border_copies_only_where_an_axis_lies_inside_another(shape: tuple[int | Dim, ...], expected: list[str]) -> None:
    assert ops(lower(graph_of(shape, relu), AVX2)) == expected


def test_memory_is_that_of_the_bound() -> None:
    """Offsets, the arena and the weights of the dynamic graph are those of the graph bound to its largest extent."""
    graph = graph_of((1, SEQ, 16), lambda g, x: relu(g, gemm(g, relu(g, x))))
    dynamic, static = lower(graph, AVX2), lower(bind_dims(graph, {"seq": 32}), AVX2)
    assert (dynamic.arena_bytes, dynamic.lifetimes) == (static.arena_bytes, static.lifetimes)
    assert dynamic.weights == static.weights
    assert dynamic.dims == (SEQ,)
    assert static.dims == ()
    assert [(i.shape, i.dims) for i in dynamic.inputs] == [((1, 32, 16), (None, "seq", None))]
    assert [step.macs for step in dynamic.steps] == [step.macs for step in static.steps]


def test_steps_take_extents_where_their_kernels_need_them() -> None:
    """A GEMM is only cut short; a softmax over the extent takes it as an argument before its output."""
    schedule = lower(graph_of((1, SEQ, 16), gemm), AVX2)
    (step,) = schedule.steps
    assert isinstance(step.extent, Extent)
    assert step.extent.dims == ("seq",)
    assert step.dims == ()
    problem = schedule.kernels[0].problem
    assert isinstance(problem, ConvProblem)
    assert problem.dim == DimRef("seq", 32)
    schedule = lower(graph_of((3, SEQ), lambda g, x: g.add_node("Softmax", [x], AxisAttrs(1)).output), AVX2)
    softmax = next(step for step in schedule.steps if step.op == "Softmax")
    assert softmax.dims == ("seq",)
    assert softmax.args[1] == Place("dims", 0)
    assert softmax.extent == 3


def test_rows_behind_a_fixed_axis_are_all_computed() -> None:
    """Rows of several batches are not the first rows of memory, so none may be left out."""
    step = next(s for s in lower(graph_of((2, SEQ, 16), gemm), AVX2).steps if s.op == "Gemm")
    assert isinstance(step.extent, int)


def test_heads_are_views() -> None:
    """Splitting channels into heads and back moves nothing, whatever the extent."""

    def body(graph: Graph, x: Value) -> Value:
        split = graph.add_node("Reshape", [relu(graph, x)], ReshapeAttrs((1, SEQ, 2, 8))).output
        swapped = graph.add_node("Transpose", [split], TransposeAttrs((0, 2, 1, 3))).output
        back = graph.add_node("Transpose", [swapped], TransposeAttrs((0, 2, 1, 3))).output
        return relu(graph, graph.add_node("Reshape", [back], ReshapeAttrs((SEQ, 16))).output)

    assert ops(lower(graph_of((1, SEQ, 16), body), AVX2)) == ["Relu", "Relu"]


def test_reshapes_across_an_extent_are_refused() -> None:
    def body(graph: Graph, x: Value) -> Value:
        return graph.add_node("Reshape", [x], ReshapeAttrs((3, SEQ, 4)), loc="mix").output

    with pytest.raises(UnsupportedOp, match=r"'mix'.*--dim seq=N"):
        lower(graph_of((2, SEQ, 6), body), AVX2)


@pytest.mark.parametrize("dim", [Dim("seq"), Dim("seq", 0, 8)])
def test_dimensions_without_bounds_are_refused(dim: Dim) -> None:
    with pytest.raises(UsageError, match=r"--dim seq=LO:HI"):
        lower(graph_of((1, dim, 4), relu), AVX2)


def test_a_dimension_of_one_extent_is_fixed() -> None:
    schedule = lower(graph_of((3, Dim("seq", 5, 5)), relu), AVX2)
    assert schedule.dims == ()
    assert ops(schedule) == ["Relu"]
