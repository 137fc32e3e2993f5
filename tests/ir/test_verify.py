"""The verifier accepts what passes make and refuses each broken rule, naming the place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from bevel.errors import UnsupportedOp, VerifyError
from bevel.ir.graph import Graph, Level, Value
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.integer import (
    ChannelLutAttrs,
    IntAddAttrs,
    IntAveragePoolAttrs,
    IntMulAttrs,
    OutAttrs,
    RequantizeAttrs,
    softmax_table,
)
from bevel.ir.ops.movement import ConcatAttrs, ReshapeAttrs
from bevel.ir.ops.normalize import AxisAttrs
from bevel.ir.ops.reduce import IntReduceAttrs
from bevel.ir.ops.resize import IntResizeAttrs
from bevel.ir.types import F32, I32, Codebook, Dim, Int, Quant, TensorType
from bevel.ir.verify import accumulator_bound, float_islands, is_integer_only, verify
from tests.ir.graphs import graphs

Q = Quant(Int(8), (0.5,), (3,))


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_accepts_generated_graphs(graph: Graph) -> None:
    verify(graph)
    verify(graph.clone())


def refused(graph: Graph, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(graph)


# Structure -----------------------------------------------------------------------------------------------------------------


def chain() -> Graph:
    graph = Graph("chain")
    x = graph.add_input("x", TensorType((2, 4), F32))
    w = graph.add_constant("w", np.ones((3, 4), np.float32))
    y = graph.add_node("Gemm", [x, w], names=["y"], loc="fc").output
    graph.set_outputs([graph.add_node("Relu", [y], names=["z"], loc="act").output])
    return graph


def drop_output(g: Graph) -> None:
    g.outputs = []


def swap_nodes(g: Graph) -> None:
    g._nodes.reverse()


def foreign_operand(g: Graph) -> None:
    g.nodes[1].inputs = (Value("y", g.value("y").type),)


def foreign_output(g: Graph) -> None:
    g.outputs = [Value("z", g.value("z").type)]


def lose_use(g: Graph) -> None:
    g.value("y")._uses.clear()


def miscount_use(g: Graph) -> None:
    g.value("x")._uses[g.nodes[0]] = 2


def wrong_producer(g: Graph) -> None:
    g.value("y").producer = g.nodes[1]


def rename_behind(g: Graph) -> None:
    g.value("y").name = "w"


def empty_name(g: Graph) -> None:
    g.rename(g.value("y"), "")


def control_name(g: Graph) -> None:
    g.rename(g.value("y"), "a\nb")


def output_twice(g: Graph) -> None:
    g.outputs *= 2


def input_with_data(g: Graph) -> None:
    g.inputs[0].data = np.zeros((2, 4), np.float32)


def result_with_data(g: Graph) -> None:
    g.value("y").data = np.zeros((2, 3), np.float32)


def no_results(g: Graph) -> None:
    g.nodes[1].outputs = ()


def defined_twice(g: Graph) -> None:
    g.nodes[1].outputs = g.nodes[0].outputs


def stale_name(g: Graph) -> None:
    g._values["ghost"] = Value("ghost", g.value("y").type)


def state_of_nothing(g: Graph) -> None:
    g.states = {"w": "z"}


def state_from_nothing(g: Graph) -> None:
    g.states = {"x": "y"}


def state_of_another_type(g: Graph) -> None:
    g.states = {"x": "z"}


STRUCTURE: list[tuple[Callable[[Graph], None], str]] = [
    (drop_output, "has no outputs"),
    (swap_nodes, "Relu 'act': reads 'y' before it is defined"),
    (foreign_operand, "Relu 'act': reads 'y' before it is defined, or from another graph"),
    (foreign_output, "output 'z' is not defined"),
    (lose_use, "'y': recorded readers differ"),
    (miscount_use, "'x': recorded readers differ"),
    (wrong_producer, "Gemm 'fc': result 'y' names another producer"),
    (rename_behind, "knows another value, or none, by the name 'w'"),
    (empty_name, "is empty"),
    (control_name, "cannot be printed"),
    (output_twice, "lists output 'z' twice"),
    (input_with_data, "input 'x' has a producer or data"),
    (result_with_data, "result 'y' holds constant data"),
    (no_results, "has no results"),
    (stale_name, "still knows 'ghost'"),
    (defined_twice, "defines 'y' a second time"),
    (state_of_nothing, "state 'w' = 'z' of graph 'chain': not an input and an output"),
    (state_from_nothing, "state 'x' = 'y' of graph 'chain': not an input and an output"),
    (state_of_another_type, r"state 'x' is f32\[2,4\], but output 'z', which it takes, is f32\[2,3\]"),
]


@pytest.mark.parametrize(("damage", "message"), STRUCTURE, ids=[d.__name__ for d, _ in STRUCTURE])
def test_structure(damage: Callable[[Graph], None], message: str) -> None:
    graph = chain()
    verify(graph)
    damage(graph)
    refused(graph, message)


# Types and data ------------------------------------------------------------------------------------------------------------


def retype(name: str, type_: TensorType) -> Callable[[Graph], None]:
    def damage(graph: Graph) -> None:
        graph.value(name).type = type_

    return damage


def constant(data: Any, elem: Any = F32) -> Callable[[Graph], None]:
    def damage(graph: Graph) -> None:
        graph.value("w").data = np.asarray(data)
        graph.value("w").type = TensorType((3, 4), elem)

    return damage


HOLED = np.full((3, 4), np.nan, np.float32)
TYPES: list[tuple[str, Level, Callable[[Graph], None], str]] = [
    ("shape", Level.FLOAT, retype("y", TensorType((2, 5), F32)), "Gemm 'fc': result is .* its type rule says"),
    ("elem", Level.FLOAT, retype("z", TensorType((2, 3), I32)), "Relu 'act': result is .* its type rule says"),
    ("annotated shape", Level.ANNOTATED, retype("y", TensorType((2, 5), Q)), "its type rule says"),
    ("annotated elem", Level.ANNOTATED, retype("y", TensorType((2, 3), I32)), "its type rule says"),
    ("quant at float", Level.FLOAT, retype("y", TensorType((2, 3), Q)), "quantized types start at ANNOTATED"),
    ("layout", Level.FLOAT, retype("x", TensorType((2, 4), F32, (1, 0))), "graphs are row-major"),
    ("too large", Level.FLOAT, retype("x", TensorType((2**16, 2**15), F32)), r"2\^31 - 1 elements"),
    ("negative", Level.FLOAT, retype("x", TensorType((-1, -4), F32)), r"2\^31 - 1 elements"),
    ("axis", Level.ANNOTATED, retype("y", TensorType((2, 3), replace(Q, axis=2))), "channel axis 2 .* missing"),
    ("scales", Level.ANNOTATED, retype("y", TensorType((2, 3), Quant(Int(8), (1.0, 2.0), axis=1))), "2 scales, expected 3"),
    ("block", Level.ANNOTATED, retype("y", TensorType((2, 3), Quant(Int(8), (1.0,), axis=1, block=2))), "1 scales, expected 2"),
    ("data shape", Level.FLOAT, constant(np.ones((4, 3), np.float32)), "constant 'w': data is"),
    ("data dtype", Level.FLOAT, constant(np.ones((3, 4))), "constant 'w': data is float64"),
    ("nan", Level.FLOAT, constant(HOLED), "constant 'w' holds NaN or infinity"),
    ("inf", Level.FLOAT, constant(np.full((3, 4), np.inf, np.float32)), "NaN or infinity"),
    ("codes", Level.ANNOTATED, constant(np.full((3, 4), 8, np.int8), Quant(Int(4), (1.0,))), "holds 8, expected -8..7"),
    ("low codes", Level.ANNOTATED, constant(np.full((3, 4), -9, np.int8), Quant(Int(4), (1.0,))), "holds -9, expected -8..7"),
    (
        "codebook",
        Level.ANNOTATED,
        constant(np.full((3, 4), 1, np.uint8), Codebook(Int(2, False), (1.0,))),
        "holds 1, expected 0..0",
    ),
    ("bipolar", Level.ANNOTATED, constant(np.zeros((3, 4), np.int8), Quant(Int(1), (1.0,))), "holds 0, expected -1 and"),
    (
        "codebook scales",
        Level.ANNOTATED,
        constant(np.zeros((3, 4), np.uint8), Codebook(Int(2, False), (1.0,), (1.0, 2.0), axis=0)),
        "2 scales along axis 0",
    ),
]


@pytest.mark.parametrize(("level", "damage", "message"), [t[1:] for t in TYPES], ids=[t[0] for t in TYPES])
def test_types_and_data(level: Level, damage: Callable[[Graph], None], message: str) -> None:
    graph = chain()
    graph.level = level
    verify(graph)
    damage(graph)
    refused(graph, message)


def test_annotations_may_override_real_results() -> None:
    graph = chain()
    graph.level = Level.ANNOTATED
    graph.value("y").type = TensorType((2, 3), Q)
    graph.value("x").type = TensorType((2, 4), Q)
    verify(graph)


def test_symbols_of_one_name_agree() -> None:
    graph = Graph("g")
    a = graph.add_input("a", TensorType((Dim("n", 1, 4),), F32))
    graph.add_input("b", TensorType((Dim("n", 1, 8),), F32))
    graph.set_outputs([a])
    refused(graph, r"dimension n\(1..8\) is n\(1..4\) elsewhere")


def test_unknown_operator() -> None:
    graph = chain()
    graph.nodes[1].op = "Relv"
    with pytest.raises(UnsupportedOp, match="Relv"):
        verify(graph)


def test_wrong_attributes() -> None:
    graph = chain()
    graph.nodes[1].attrs = AxisAttrs(0)
    refused(graph, "expected NoAttrs")


# Levels --------------------------------------------------------------------------------------------------------------------


def integer_graph() -> Graph:
    """int8 conv with 2 channels, requantized, added to itself, through a float island and a table."""
    graph = Graph("integer", Level.INTEGER)
    frame = Quant(Int(8, signed=False), Q.scale, (Q.zero_point[0] + 128,))
    u = graph.add_input("u", TensorType((1, 1, 4, 4), frame))
    x = graph.add_node("Recode", [u], OutAttrs(Q), names=["x"], loc="recode").output
    w = graph.add_constant(
        "w", np.array([[1, -2], [127, 127]], np.int8).reshape(2, 1, 1, 2), TensorType((2, 1, 1, 2), Quant(Int(8), (1.0,)))
    )
    b = graph.add_constant("b", np.array([7, -1000], np.int32))
    m = graph.add_constant("m", np.array([2**30, 2**31 - 1], np.int32))
    n = graph.add_constant("n", np.array([1, 62], np.int32))
    acc = graph.add_node("IntConv", [x, w, b], ConvAttrs((1, 2)), names=["acc"], loc="conv").output
    y = graph.add_node("Requantize", [acc, m, n], RequantizeAttrs(Q, 1, -128, 127), names=["y"], loc="requant").output
    s = graph.add_node("IntAdd", [y, y], IntAddAttrs(Q, 2**22, 2**21, 22, -128, 127), names=["s"], loc="add").output
    p = graph.add_node("IntMul", [s, y], IntMulAttrs(Q, 2**30, 40, -128, 127), names=["p"], loc="mul").output
    square = graph.add_constant("square", np.arange(16, dtype=np.int8).reshape(4, 4), TensorType((4, 4), Q))
    p = graph.add_node("IntMatMul", [square, p], IntMulAttrs(Q, 2**30, 40, -128, 127), names=["turned"], loc="matmul").output
    t = graph.add_constant("t", np.arange(-128, 128, dtype=np.int8))
    lut = graph.add_node("Lut", [p, t], OutAttrs(Q), names=["lut"], loc="lut").output
    pool = IntAveragePoolAttrs((2, 2), pads=(1, 1, 0, 0), out=Q, counts=(1, 2, 4), m=(2**30,) * 3, n=(30, 31, 32))
    rows = graph.add_constant("rows", np.stack([t.array, -1 - t.array]))
    lut = graph.add_node("ChannelLut", [lut, rows], ChannelLutAttrs(Q, 1), names=["channels"], loc="channels").output
    avg = graph.add_node("IntAveragePool", [lut], pool, names=["avg"], loc="avg").output
    twice = IntResizeAttrs((2,), (6,), ((2, -1, 4),))
    avg = graph.add_node("IntResize", [avg], twice, names=["resized"], loc="resize").output
    sums = IntReduceAttrs((3,), True, Q, 2**30, 30, -128, 127)
    red = graph.add_node("IntReduce", [avg], sums, names=["red"], loc="reduce").output
    e = graph.add_constant("e", softmax_table(0.5))
    soft = graph.add_node("IntSoftmax", [red, e], AxisAttrs(1), names=["soft"], loc="soft").output
    d = graph.add_node("Dequantize", [soft], names=["d"], loc="island in").output
    r = graph.add_node("Sigmoid", [d], names=["r"], loc="sigmoid").output
    q = graph.add_node("Quantize", [r], OutAttrs(Q), names=["q"], loc="island out").output
    graph.set_outputs([graph.add_node("Concat", [q, q], ConcatAttrs(1), names=["out"], loc="join").output])
    return graph


def attrs_of(loc: str, **changes: Any) -> Callable[[Graph], None]:
    def damage(graph: Graph) -> None:
        node = next(n for n in graph.nodes if n.loc == loc)
        node.attrs = replace(node.attrs, **changes)

    return damage


def data_of(name: str, data: Any) -> Callable[[Graph], None]:
    def damage(graph: Graph) -> None:
        value = graph.value(name)
        value.data = np.asarray(data, value.type.dtype).reshape(value.type.static_shape)

    return damage


def not_constant(name: str) -> Callable[[Graph], None]:
    def damage(graph: Graph) -> None:
        value = graph.value(name)
        graph.replace_uses(value, graph.add_input(f"{name}.in", value.type))

    return damage


def float_on_codes(graph: Graph) -> None:
    node = graph.add_node("Relu", [graph.value("y")], names=["relu"], loc="relu")
    graph.set_outputs([*graph.outputs, node.output])


def mixed_concat(graph: Graph) -> None:
    other = graph.add_input("other", TensorType((1, 1, 4, 3), Quant(Int(8), (0.25,))))
    graph.set_outputs([graph.add_node("Concat", [graph.value("y"), other], ConcatAttrs(1), loc="mixed").output])


def annotation_at_integer(graph: Graph) -> None:
    graph.value("r").type = graph.value("r").type.with_elem(Q)


INTEGER: list[tuple[str, Callable[[Graph], None], str]] = [
    ("multiplier low", data_of("m", [2**30 - 1, 2**30]), "Requantize 'requant': multiplier holds 1073741823"),
    ("multiplier negative", data_of("m", [-(2**30), 2**30]), "multiplier holds -1073741824"),
    ("shift 0", data_of("n", [0, 5]), "Requantize 'requant': shift holds 0, expected 1..62"),
    ("attribute beyond int64", attrs_of("mul", m=10**20), "multiplier holds 100000000000000000000"),
    ("shift 63", data_of("n", [1, 63]), "shift holds 63, expected 1..62"),
    ("multiplier unknown", not_constant("m"), "'m.in' is not a constant"),
    ("bias unknown", not_constant("b"), "IntConv 'conv': value 'b.in' is not a constant"),
    ("accumulator", data_of("b", [2**31 - 3 * 131, 0]), "IntConv 'conv': accumulator can reach 2147483648"),
    ("negative accumulator", data_of("b", [0, -(2**31)]), "accumulator can reach"),
    ("clamp order", attrs_of("requant", lo=5, hi=4), "Requantize 'requant': clamp 5..4 outside i8"),
    ("clamp range", attrs_of("add", hi=128), "IntAdd 'add': clamp -128..128 outside i8"),
    ("add overflow", attrs_of("add", ma=2**23, mb=2**23), "IntAdd 'add': sum can reach"),
    ("add overflow negative", attrs_of("add", ma=2**23, mb=-(2**23)), "IntAdd 'add': sum can reach"),
    ("add rounding overflow", attrs_of("add", ma=1, mb=1, n=32), "IntAdd 'add': sum can reach"),
    ("add shift", attrs_of("add", n=0), "IntAdd 'add': shift holds 0"),
    ("mul multiplier", attrs_of("mul", m=3), "IntMul 'mul': multiplier holds 3"),
    ("mul shift", attrs_of("mul", n=63), "IntMul 'mul': shift holds 63"),
    ("reduce multiplier", attrs_of("reduce", m=1), "IntReduce 'reduce': multiplier holds 1"),
    ("reduce shift", attrs_of("reduce", n=63), "IntReduce 'reduce': shift holds 63"),
    ("reduce clamp", attrs_of("reduce", lo=9, hi=8), "IntReduce 'reduce': clamp 9..8 outside i8"),
    ("pool multiplier", attrs_of("avg", m=(1, 2**30, 2**30)), "IntAveragePool 'avg': multiplier holds 1"),
    ("pool shift", attrs_of("avg", n=(0, 1, 1)), "IntAveragePool 'avg': shift holds 0"),
    ("pool counts", attrs_of("avg", counts=(1, 3, 4)), r"windows over \[2\] elements have no factor"),
    ("pool order", attrs_of("avg", counts=(2, 1, 4)), "must be sorted"),
    ("pool lengths", attrs_of("avg", counts=(1, 2)), "equal lengths"),
    ("softmax table", data_of("e", np.full(256, 2**15 + 1)), "IntSoftmax 'soft': table 'e' holds 32769"),
    ("softmax zero", data_of("e", np.zeros(256)), "table entry 0"),
    ("softmax negative", data_of("e", np.full(256, -1)), "holds -1"),
    ("float on codes", float_on_codes, "Relu 'relu': a float operator reads %y"),
    ("mixed concat", mixed_concat, "Concat 'mixed': moves"),
    ("annotation", annotation_at_integer, "Sigmoid 'sigmoid': result is .* its type rule says"),
]


@pytest.mark.parametrize(("damage", "message"), [t[1:] for t in INTEGER], ids=[t[0] for t in INTEGER])
def test_integer_rules(damage: Callable[[Graph], None], message: str) -> None:
    graph = integer_graph()
    verify(graph)
    damage(graph)
    refused(graph, message)


def test_zero_multiplier_is_legal() -> None:
    graph = integer_graph()
    data_of("m", [0, 2**30])(graph)
    verify(graph)


def test_narrow_table_range() -> None:
    graph = Graph("g", Level.INTEGER)
    x = graph.add_input("x", TensorType((4,), Quant(Int(2), (1.0,))))
    t = graph.add_constant("t", np.array([-8, 0, 7, 8], np.int8))
    graph.set_outputs([graph.add_node("Lut", [x, t], OutAttrs(Quant(Int(4), (1.0,)))).output])
    refused(graph, "table 't' holds 8, expected -8..7")


@pytest.mark.parametrize("level", [Level.FLOAT, Level.ANNOTATED])
def test_integer_operators_need_integer_level(level: Level) -> None:
    graph = Graph("g", level)
    x = graph.add_input("x", TensorType((4,), I32))
    m, n = graph.add_constant("m", np.array([0], np.int32)), graph.add_constant("n", np.array([1], np.int32))
    rows = graph.add_node("Reshape", [x], ReshapeAttrs((4, 1))).output
    graph.set_outputs([graph.add_node("Requantize", [rows, m, n], RequantizeAttrs(Q, 1, -128, 127), loc="r").output])
    refused(graph, "Requantize 'r': an operator of INTEGER level" if level is Level.ANNOTATED else "quantized types start")


def test_int_mul_product_bound() -> None:
    wide = Quant(Int(32), (1.0,))
    graph = Graph("g", Level.INTEGER)
    x = graph.add_input("x", TensorType((4,), wide))
    graph.set_outputs([graph.add_node("IntMul", [x, x], IntMulAttrs(Q, 2**30, 40, -128, 127)).output])
    refused(graph, "product can reach")


# Proofs and reports --------------------------------------------------------------------------------------------------------


def test_accumulator_bound_is_reached_exactly() -> None:
    node = next(n for n in integer_graph().nodes if n.op == "IntConv")
    # Channel 1: (127 + 127) * max(|127 - 3|, |-128 - 3|) + |-1000|, reached by code -128 everywhere.
    assert accumulator_bound(node) == 254 * 131 + 1000


def test_accumulator_bound_of_unknown_weights_takes_the_type() -> None:
    graph = Graph("g", Level.INTEGER)
    x = graph.add_input("x", TensorType((2, 5), Q))
    w = graph.add_input("w", TensorType((3, 5), Quant(Int(4), (1.0,))))
    b = graph.add_constant("b", np.array([1, -2, 0], np.int32))
    assert accumulator_bound(graph.add_node("IntGemm", [x, w, b]).output.producer) == 5 * 8 * 131 + 2  # type: ignore[arg-type]


def test_islands_name_their_nodes() -> None:
    graph = integer_graph()
    assert [[n.loc for n in island] for island in float_islands(graph)] == [["island in", "sigmoid", "island out"]]
    assert not is_integer_only(graph)
    assert float_islands(chain()) == []
    assert not is_integer_only(chain())


def test_islands_are_separate_and_joined_by_float_values() -> None:
    graph = Graph("g", Level.INTEGER)
    x = graph.add_input("x", TensorType((4,), Q))
    f = graph.add_input("f", TensorType((4,), F32))
    a = graph.add_node("Dequantize", [x], loc="a").output
    b = graph.add_node("Dequantize", [x], loc="b").output
    c = graph.add_node("Relu", [a], loc="c").output
    d = graph.add_node("Add", [b, f], loc="d").output
    e = graph.add_node("Reshape", [c], ReshapeAttrs((2, 2)), loc="e").output
    graph.set_outputs([e, d])
    verify(graph)
    assert [[n.loc for n in island] for island in float_islands(graph)] == [["a", "c", "e"], ["b", "d"]]


def test_integer_only_without_island() -> None:
    graph = integer_graph()
    graph.set_outputs([graph.value("soft")])
    graph.prune_dead()
    verify(graph)
    assert is_integer_only(graph)
    assert float_islands(graph) == []
