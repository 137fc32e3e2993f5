"""Reductions and selection along an axis at INTEGER level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.ir.ops.normalize import ReduceAttrs
from bevel.ir.ops.select_axis import ArgAttrs, TopKAttrs
from bevel.ir.types import F32, I64, Dim, Quant, TensorType
from bevel.ir.verify import float_islands, is_integer_only, verify
from bevel.passes.quantize import Calibrate
from tests.passes.quantize.annotated import Annotated, assert_close, lower, ops, q8, random_inputs


@pytest.mark.parametrize("axes", [(1,), (2, 3), (0, 1, 2, 3), ()])
@pytest.mark.parametrize("relu", [False, True])
def test_sums_and_means_are_one_requantized_sum(axes: tuple[int, ...], relu: bool) -> None:
    for op in ("ReduceMean", "ReduceSum"):
        a = Annotated()
        x = a.input("x", (4, 6, 5, 7), q8(0.05, -40))
        # A few hundred summands of both signs stay within a hundred steps.
        out = q8(0.011 if op == "ReduceMean" else 0.31, -90 if relu else 3)
        r = a.node(op, [x], None if relu else out, ReduceAttrs(axes, keepdims=bool(axes)), "r")
        graph = a.done(a.node("Relu", [r], out, name="y") if relu else r)
        if axes == (0, 1, 2, 3):
            integer = lower(graph)
            expected, found = run(graph, random_inputs(graph)), run(integer, random_inputs(graph))
            assert all(abs(out.quantize(expected[k]).astype(int) - found[k]).max() <= 1 for k in expected)
        else:
            integer = assert_close(graph)
        assert ops(integer) == ["IntReduce"]


def test_symbolic_reduction_stays_a_named_float_island() -> None:
    a = Annotated()
    x = a.input("x", (1, Dim("seq", 1, 9), 4), q8(0.05))
    graph = lower(a.done(a.node("ReduceMean", [x], q8(0.05), ReduceAttrs((1,)), "mean")))
    assert [n.op for island in float_islands(graph) for n in island if n.op == "ReduceMean"] == ["ReduceMean"]


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("retyped", [False, True])
def test_extrema_move_codes(op: str, retyped: bool) -> None:
    a = Annotated()
    x = a.input("x", (3, 4, 50), q8(0.05, -4))
    y = a.node(op, [x], q8(0.0813, 9) if retyped else q8(0.05, -4), ReduceAttrs((1,), keepdims=False), "y")
    assert ops(assert_close(a.done(y), equal=0.99)) == ([op, "Lut"] if retyped else [op])


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_arguments_are_found_on_codes(op: str) -> None:
    a = Annotated()
    x = a.input("x", (16, 300), q8(0.05, -4))
    graph = a.done(a.node(op, [x], None, ArgAttrs(1, keepdims=False), "y"))
    integer = lower(graph)
    assert ops(integer) == [op]
    assert is_integer_only(integer)
    feed = random_inputs(graph)
    np.testing.assert_array_equal(run(integer, feed)["y"], run(graph, feed)["y"])


@pytest.mark.parametrize("out", [None, q8(0.05, -4), q8(0.081, 9)])
def test_top_k_selects_codes(out: Quant | None) -> None:
    a = Annotated()
    x = a.input("x", (8, 300), q8(0.05, -4))
    node = a.graph.add_node("TopK", [x], TopKAttrs(1, 20), names=["values", "indices"], loc="top")
    values, indices = node.outputs
    if out is not None:
        values.type = values.type.with_elem(out)
    graph = a.done(values, indices)
    feed = random_inputs(graph)
    expected = run(graph, feed)
    integer = lower(graph)
    assert is_integer_only(integer)
    assert ops(integer) == (["TopK", "Lut"] if out == q8(0.081, 9) else ["TopK"])
    found = run(integer, feed)
    np.testing.assert_array_equal(found["indices"], expected["indices"])
    elem = integer.value("values").type.elem
    assert isinstance(elem, Quant)
    np.testing.assert_allclose(elem.dequantize(found["values"]), expected["values"], atol=0.5 * elem.scale[0])


def head() -> Graph:
    """A detector's head in small: scores, the best of them, and their sum."""
    g = Graph("head")
    x = g.add_input("x", TensorType((1, 40, 12), F32))
    w = g.add_constant("w", np.random.default_rng(1).normal(size=(6, 12)).astype(np.float32))
    scores = g.add_node("Gemm", [x, w], names=["scores"]).output
    best = g.add_node("ReduceMax", [scores], ReduceAttrs((2,), keepdims=False), names=["best"]).output
    top, where = g.add_node("TopK", [best], TopKAttrs(1, 5), names=["top", "where"]).outputs
    total = g.add_node("ReduceSum", [top], ReduceAttrs((1,)), names=["total"]).output
    label = g.add_node("ArgMax", [scores], ArgAttrs(2, keepdims=False), names=["label"]).output
    g.set_outputs([top, where, total, label])
    verify(g)
    return g


def test_a_calibrated_head_computes_on_codes_alone() -> None:
    graph = head()
    data: list[dict[str, Any]] = [{"x": np.random.default_rng(i).normal(size=(1, 40, 12)).astype(np.float32)} for i in range(8)]
    annotated = Calibrate(data=data).run(graph)
    verify(annotated)
    integer = lower(annotated)
    assert is_integer_only(integer)
    assert [op for op in ops(integer) if op not in ("IntGemm", "Requantize")] == ["ReduceMax", "TopK", "IntReduce", "ArgMax"]
    assert integer.value("where").type.elem == I64
    found, expected = run(integer, data[0]), run(annotated, data[0])
    np.testing.assert_array_equal(found["where"], expected["where"])
    np.testing.assert_array_equal(found["label"], expected["label"])
