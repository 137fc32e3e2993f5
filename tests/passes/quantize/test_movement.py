"""Movement and resampling on codes: resized, gathered and rearranged codes, and indices that are no codes."""

from __future__ import annotations

import numpy as np
import pytest

from bevel.ir.graph import Graph, Level
from bevel.ir.interp import run
from bevel.ir.ops.index import GatherAttrs, GatherNDAttrs, ScatterNDAttrs
from bevel.ir.ops.movement import BlockAttrs, ExpandAttrs, PadAttrs, ReverseAttrs, TileAttrs
from bevel.ir.ops.resize import ResizeAttrs, ResizeNearestAttrs
from bevel.ir.types import F32, I64, TensorType
from bevel.ir.verify import float_islands, is_integer_only, verify
from bevel.passes.quantize import Calibrate
from tests.passes.quantize.annotated import Annotated, assert_close, lower, ops, q8

DOUBLE = ((2, 3), (16, 8), ((2, -1, 4), (2, -1, 4)))


@pytest.mark.parametrize("retyped", [False, True])
@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("ResizeNearest", ResizeNearestAttrs(*DOUBLE, "round_prefer_floor")),
        ("Reverse", ReverseAttrs((2,))),
        ("Expand", ExpandAttrs((3, 2, 4, 8, 4))),
        ("Tile", TileAttrs((1, 2, 1, 3))),
        ("DepthToSpace", BlockAttrs(2)),
        ("SpaceToDepth", BlockAttrs(2)),
    ],
)
def test_movement_on_codes(op: str, attrs: object, retyped: bool) -> None:
    a = Annotated()
    x = a.input("x", (2, 4, 8, 4), q8(0.05, -4))
    integer = assert_close(a.done(a.node(op, [x], q8(0.0813, 9) if retyped else q8(0.05, -4), attrs, "y")))
    assert ops(integer) == ([op, "Lut"] if retyped else [op])


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_borders_made_of_codes(mode: str) -> None:
    a = Annotated()
    x = a.input("x", (2, 4, 8, 4), q8(0.05, -4))
    pad = PadAttrs((0, 0, 3, 1), (0, 1, 0, 2), mode=mode)
    assert ops(assert_close(a.done(a.node("Pad", [x], q8(0.05, -4), pad, "y")))) == ["Pad"]


@pytest.mark.parametrize("retyped", [False, True])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation_on_codes(mode: str, retyped: bool) -> None:
    a = Annotated()
    x = a.input("x", (2, 4, 8, 4), q8(0.05, -4))
    out = q8(0.0813, 9) if retyped else q8(0.05, -4)
    integer = assert_close(a.done(a.node("Resize", [x], out, ResizeAttrs(*DOUBLE, mode), "y")), equal=0.8)
    if retyped and mode == "cubic":
        assert ops(integer) == ["Dequantize", "Resize", "Quantize"]
        return
    assert ops(integer) == (["IntResize", "Lut"] if retyped else ["IntResize"])
    # What two axes of either filter leave for each.
    assert integer.nodes[0].attrs.bits == 11


def embedding() -> Graph:
    """A table of reals looked up by runtime indices, then a function."""
    graph = Graph("embedding")
    table = graph.add_constant("table", np.random.default_rng(1).normal(0, 1, (20, 6)).astype(np.float32))
    ids = graph.add_input("ids", TensorType((1, 5), I64))
    rows = graph.add_node("Gather", [table, ids], GatherAttrs(0), names=["rows"]).output
    graph.set_outputs([graph.add_node("Relu", [rows], names=["y"]).output])
    verify(graph)
    return graph


def test_an_embedding_table_is_stored_as_codes() -> None:
    graph = embedding()
    ids = np.array([[3, -1, 0, 19, 7]])
    integer = lower(Calibrate(data=[{"ids": ids}], bias_correction=False).run(graph))
    assert is_integer_only(integer)
    gather = next(n for n in integer.nodes if n.op == "Gather")
    assert gather.inputs[0].array.dtype == np.int8
    (codes,), (y,) = run(integer, {"ids": ids}).values(), integer.outputs
    real = y.type.elem.dequantize(codes)  # type: ignore[union-attr]
    np.testing.assert_allclose(real, run(graph, {"ids": ids})["y"], atol=0.04)


def test_gather_of_codes_takes_plain_indices() -> None:
    a = Annotated()
    x = a.input("x", (4, 8), q8(0.05, -4))
    where = a.graph.add_constant("where", np.array([[0], [3], [1]], np.int32))
    y = a.node("GatherND", [x, where], q8(0.05, -4), GatherNDAttrs(), "y")
    assert ops(assert_close(a.done(y))) == ["GatherND"]


def test_scatter_is_a_float_island_with_plain_indices() -> None:
    a = Annotated()
    x, u = a.input("x", (4, 8), q8(0.05, -4)), a.input("u", (1, 8), q8(0.03, 2))
    where = a.graph.add_constant("where", np.array([[2]], np.int64))
    y = a.node("ScatterND", [x, where, u], q8(0.06, 0), ScatterNDAttrs(), "y")
    integer = lower(a.done(y))
    assert integer.level is Level.INTEGER
    assert [n.op for island in float_islands(integer) for n in island if n.op.startswith("S")] == ["ScatterND"]
    assert {v.type.elem for v in integer.nodes[-2].inputs} == {F32, I64}
