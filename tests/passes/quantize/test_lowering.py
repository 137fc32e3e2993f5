"""Every other operator family: sums, products, tables, pools, movement, islands."""

from __future__ import annotations

import numpy as np
import pytest

from bevel.errors import UnsupportedModel, UsageError
from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.ir.ops import Call, lookup
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.integer import SOFTMAX_OUT
from bevel.ir.ops.movement import ConcatAttrs, PadAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from bevel.ir.ops.normalize import AxisAttrs
from bevel.ir.ops.pool import AveragePoolAttrs, PoolAttrs
from bevel.ir.types import F32, Quant, TensorType
from bevel.ir.verify import float_islands, is_integer_only
from bevel.passes.quantize import ToInteger
from bevel.passes.quantize.lower_elementwise import UNARY_OPS
from tests.passes.quantize.annotated import Annotated, assert_close, lower, ops, q8, random_inputs


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize("scales", [(0.05, 0.05, 0.1), (0.1, 0.0003, 0.09), (0.001, 3.0, 0.5)])
@pytest.mark.parametrize("relu", [False, True])
def test_sum_of_differently_scaled_operands(op: str, scales: tuple[float, float, float], relu: bool) -> None:
    a = Annotated()
    x, y = a.input("x", (2, 3, 8, 8), q8(scales[0], -128)), a.input("y", (2, 3, 1, 8), q8(scales[1], 17))
    out = q8(scales[2], -9)
    s = a.node(op, [x, y], None if relu else out, name="s")
    end = a.node("Relu", [s], out, name="r") if relu else s
    # Operands on one coarse grid meet exact ties, where the float side rounds to even.
    integer = assert_close(a.done(end), equal=0.7 if scales[0] == scales[1] else 0.97)
    assert ops(integer) == ["IntAdd"]
    assert integer.nodes[0].output is integer.outputs[0]


def test_operand_added_to_itself() -> None:
    a = Annotated()
    x = a.input("x", (64,), q8(0.05, 3))
    assert_close(a.done(a.node("Add", [x, x], q8(0.07, -9), name="s")))


def test_sum_that_cannot_fit_int32_names_the_layer() -> None:
    a = Annotated()
    x, y = a.input("x", (4,), q8(2.0**30)), a.input("y", (4,), q8(1.0))
    with pytest.raises(UnsupportedModel, match="layer 'sum'"):
        lower(a.done(a.node("Add", [x, y], q8(1.0), name="sum")))


def test_product_with_broadcast_and_clamp() -> None:
    a = Annotated()
    x, y = a.input("x", (2, 8, 5, 5), q8(0.05, -20)), a.input("y", (2, 8, 1, 1), q8(1 / 256, -128))
    p = a.node("Mul", [x, y], None, name="p")
    assert ops(assert_close(a.done(a.node("Clip", [p], q8(0.03, -90), ClipAttrs(-1.0, 3.0), "c")))) == ["IntMul"]


@pytest.mark.parametrize("op", UNARY_OPS)
def test_unary_functions_are_tables_over_every_code(op: str) -> None:
    a, elem = Annotated(), q8(0.0217, -11)
    codes = np.arange(-128, 128).astype(np.int8)
    attrs = ClipAttrs(-0.5, 1.5) if op == "Clip" else lookup(op).attrs()
    type_ = TensorType((256,), F32)
    with np.errstate(all="ignore"):
        codes = codes[~np.isnan(lookup(op).reference(Call(attrs, (type_,), (type_,)), elem.dequantize(codes)))]
        y = a.node(op, [a.input("x", codes.shape, elem)], q8(0.03, -30), attrs, "y")
        assert ops(assert_close(a.done(y), {"x": codes}, equal=0.99)) == ["Lut"]


def test_undefined_table_entries_are_real_zero() -> None:
    a = Annotated()
    x = a.input("x", (256,), q8(0.02, 0))
    integer = lower(a.done(a.node("Sqrt", [x], q8(0.03, 5), name="y")))
    found = run(integer, {"x": np.arange(-128, 128).astype(np.int8)})["y"]
    assert (found[:128] == 5).all()
    assert (np.diff(found[128:].astype(int)) >= 0).all()


def test_activation_behind_a_table_folds_into_it() -> None:
    a = Annotated()
    x = a.input("x", (256,), q8(0.05, 0))
    t = a.node("Tanh", [x], None, name="t")
    r = a.node("Relu", [t], q8(1 / 127, -128), name="r")
    assert ops(assert_close(a.done(r), {"x": np.arange(-128, 128).astype(np.int8)}, equal=0.99)) == ["Lut"]


@pytest.mark.parametrize("include", [False, True])
def test_average_pool_with_borders(include: bool) -> None:
    a = Annotated()
    x = a.input("x", (2, 3, 9, 7), q8(0.05, -40))
    at = AveragePoolAttrs((3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=include)
    assert ops(assert_close(a.done(a.node("AveragePool", [x], q8(0.03, -10), at, "y")))) == ["IntAveragePool"]


@pytest.mark.parametrize("side", [8, 7])
def test_global_average_pool_in_one_type_meets_ties_and_agrees(side: int) -> None:
    a = Annotated()
    # A power of two keeps the float side's products exact, so that its ties are ties.
    x = a.input("x", (8, 64, side, side), q8(0.0625, -128))
    p = a.node("GlobalAveragePool", [x], None, name="p")
    assert ops(assert_close(a.done(a.node("Relu", [p], q8(0.0625, -128), name="r")), equal=1.0)) == ["IntAveragePool"]


@pytest.mark.parametrize("scale", [0.02, 0.15, 2.0])
def test_softmax(scale: float) -> None:
    a = Annotated()
    x = a.input("x", (64, 10), q8(scale, 14))
    assert ops(assert_close(a.done(a.node("Softmax", [x], SOFTMAX_OUT, AxisAttrs(1), "y")))) == ["IntSoftmax"]


def test_softmax_of_another_type_gets_a_table() -> None:
    a = Annotated()
    x = a.input("x", (64, 10), q8(0.1, 14))
    graph = a.done(a.node("Softmax", [x], q8(0.0073, 0), AxisAttrs(1), "y"))
    assert ops(assert_close(graph, equal=0.9)) == ["IntSoftmax", "Lut"]


@pytest.mark.parametrize("retyped", [False, True])
@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Reshape", ReshapeAttrs((2, 96))),
        ("Transpose", TransposeAttrs((0, 2, 3, 1))),
        ("Slice", SliceAttrs((0, 1, 0, 0), (-1, -1, -1, -1), (1, 1, 2, 2))),
        ("Pad", PadAttrs((0, 1, 0, 0), (0, 0, 2, 0), 0.7)),
        ("MaxPool", PoolAttrs((3, 3), (2, 2), (1, 1, 1, 1))),
    ],
)
def test_movement_on_codes(op: str, attrs: object, retyped: bool) -> None:
    a = Annotated()
    x = a.input("x", (2, 3, 8, 4), q8(0.05, -4))
    integer = assert_close(a.done(a.node(op, [x], q8(0.0813, 9) if retyped else q8(0.05, -4), attrs, "y")))
    assert sorted(ops(integer)) == sorted([op, "Lut"] if retyped else [op])


def test_concat_converts_only_operands_that_differ() -> None:
    a = Annotated()
    x, y = a.input("x", (1, 2, 8, 8), q8(0.05, -4)), a.input("y", (1, 3, 8, 8), q8(0.03, 7))
    integer = assert_close(a.done(a.node("Concat", [x, y], q8(0.05, -4), ConcatAttrs(1), "y2")))
    assert ops(integer) == ["Lut", "Concat"]


def test_types_spread_over_movement_between_layer_and_activation() -> None:
    """Conv -> Transpose -> quantize: the convolution takes the type behind the movement."""
    a = Annotated()
    x = a.input("x", (1, 3, 8, 8), q8(0.04, 2))
    c = a.node("Conv", [x, a.weights((4, 3, 1, 1), np.full(4, 0.01))], None, ConvAttrs((1, 1)), "c")
    t = a.node("Transpose", [c], q8(0.05, 1), TransposeAttrs((0, 2, 3, 1)), "t")
    assert ops(assert_close(a.done(t))) == ["IntConv", "Requantize", "Transpose"]


def test_unbounded_clip_of_the_same_type_vanishes_and_of_another_is_a_table() -> None:
    a = Annotated()
    x = a.input("x", (64,), q8(0.05, 3))
    same = a.node("Clip", [x], q8(0.05, 3), ClipAttrs(), "same")
    other = a.node("Clip", [same], q8(0.07, 3), ClipAttrs(), "other")
    n = a.node("Neg", [same], q8(0.05, -3), name="n")
    assert ops(assert_close(a.done(other, n))) == ["Lut", "Lut"]


def test_residual_block_keeps_names_and_origins() -> None:
    a = Annotated()
    x = a.input("x", (2, 4, 8, 8), q8(0.05, -100))
    c1 = a.node("Conv", [x, a.weights((4, 4, 3, 3), np.full(4, 0.004))], None, ConvAttrs((3, 3), pads=(1, 1, 1, 1)), "c1")
    r1 = a.node("Relu", [c1], q8(0.03, -128), name="r1")
    c2 = a.node("Conv", [r1, a.weights((4, 4, 1, 1), np.full(4, 0.0043))], q8(0.0217, 4), ConvAttrs((1, 1)), "c2")
    s = a.node("Add", [x, c2], None, name="sum")
    end = a.node("Relu", [s], q8(0.0611, -128), name="out")
    integer = assert_close(a.done(end), equal=0.95)
    assert ops(integer) == ["IntConv", "Requantize", "IntConv", "Requantize", "IntAdd"]
    assert [n.output.name for n in integer.nodes if n.op != "IntConv"] == ["r1", "c2", "out"]
    assert [n.loc for n in integer.nodes] == ["c1", "c1", "c2", "c2", "sum"]
    assert is_integer_only(integer)


def _island() -> Graph:
    a = Annotated()
    x, y = a.input("x", (64,), q8(0.05, -128)), a.input("y", (64,), q8(0.05, -128))
    scaled = a.node("Neg", [y], q8(0.05, 127), name="neg")
    d = a.node("Div", [x, a.graph.add_constant("k", np.full(64, 3.0, np.float32))], q8(0.02, -128), name="div")
    return a.done(a.node("Add", [d, scaled], q8(0.1, 0), name="s"), a.node("Div", [x, x], None, name="raw"))


def test_island_has_borders_and_is_reported() -> None:
    graph = _island()
    integer = lower(graph)
    islands = float_islands(integer)
    assert sorted(n.op for island in islands for n in island) == ["Dequantize", "Div", "Div", "Quantize"]
    assert {n.loc for island in islands for n in island} >= {"div", "raw"}
    feed = {name: np.maximum(array, -127).astype(np.int8) for name, array in random_inputs(graph).items()}
    found, expected = run(integer, feed), run(graph, feed)
    np.testing.assert_array_equal(found["raw"], expected["raw"])
    elem = graph.outputs[0].type.elem
    assert isinstance(elem, Quant)
    assert np.abs(found["s"].astype(int) - elem.quantize(expected["s"])).max() <= 1
    assert not is_integer_only(integer)


def test_float_layer_keeps_its_weights_as_reals() -> None:
    a = Annotated()
    x = a.input("x", (2, 8), q8(0.04))
    g = a.node("Gemm", [x, a.weights((4, 8), np.full(4, 0.01)), a.bias(np.ones(4))], None, name="logits")
    graph = a.done(g)
    integer = lower(graph)
    assert ops(integer) == ["Dequantize", "Gemm"]
    feed = random_inputs(graph)
    np.testing.assert_allclose(run(integer, feed)["logits"], run(graph, feed)["logits"], rtol=1e-6)


def test_other_levels_are_refused() -> None:
    with pytest.raises(UsageError, match="calibrate first"):
        ToInteger().run(Graph("g"))


def test_source_graph_is_left_alone() -> None:
    graph = _island()
    before = [(n.op, tuple(v.name for v in n.inputs), n.output.type) for n in graph.nodes]
    ToInteger().run(graph)
    assert [(n.op, tuple(v.name for v in n.inputs), n.output.type) for n in graph.nodes] == before
