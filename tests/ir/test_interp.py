"""The interpreter: level semantics, the boundary's checks, observation, constant evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevel.errors import UsageError
from bevel.ir.graph import Graph, Level
from bevel.ir.interp import boundary_codes, evaluate, run, to_real
from bevel.ir.ops.movement import ConcatAttrs, PadAttrs, TransposeAttrs
from bevel.ir.types import F32, I8, I64, Dim, Int, Quant, TensorType
from bevel.ir.verify import verify
from tests.ir.graphs import graphs

Q = Quant(I8, (0.25,), (10,))
COARSE = Quant(Int(4), (2.0,), (0,))


def random_inputs(graph: Graph, seed: int) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    symbols: dict[str, int] = {}
    found = {}
    for value in graph.inputs:
        shape = [
            d if isinstance(d, int) else symbols.setdefault(d.name, int(rng.integers(d.lo, (d.hi or 3) + 1)))
            for d in value.type.shape
        ]
        found[value.name] = rng.standard_normal(shape).astype(np.float32)
    return found


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 99))
def test_results_are_what_their_types_say(graph: Graph, seed: int) -> None:
    """Shapes, dtypes and storage ranges of every value of random graphs; the same result twice and from a clone."""
    verify(graph)
    inputs = random_inputs(graph, seed)
    seen: dict[str, npt.NDArray[Any]] = {}
    found = run(graph, inputs, observe=lambda value, array: seen.__setitem__(value.name, array))
    assert list(found) == [v.name for v in graph.outputs]
    assert list(seen) == [v.name for node in graph.nodes for v in node.outputs]
    for node in graph.nodes:
        for value in node.outputs:
            array = seen[value.name]
            for dim, extent in zip(value.type.shape, array.shape, strict=True):
                assert dim == extent if isinstance(dim, int) else dim.lo <= extent
            if graph.level is Level.INTEGER:
                assert array.dtype == value.type.dtype
                if isinstance(value.type.elem, Quant):
                    assert (
                        value.type.elem.storage.min <= array.min(initial=0) <= array.max(initial=0) <= value.type.elem.storage.max
                    )
            else:
                assert array.dtype == np.float32
    again = run(graph.clone(), inputs)
    for name, array in found.items():
        np.testing.assert_array_equal(array, again[name])


def test_annotated_values_pass_through_quantization() -> None:
    """x and the sum are rounded to their types, the constant is stored as codes, the unannotated product is not rounded."""
    graph = Graph("g", Level.ANNOTATED)
    x = graph.add_input("x", TensorType((4,), Q))
    c = graph.add_constant("c", np.array([1, 2, 3, -8], np.int8), TensorType((4,), COARSE))
    total = graph.add_node("Add", [x, c], names=["total"], types=[TensorType((4,), COARSE)]).output
    graph.set_outputs([graph.add_node("Mul", [total, x], names=["out"]).output])
    verify(graph)
    observed = {}
    found = run(graph, {"x": np.array([0.1, 0.2, -100.0, 7.4], np.float32)}, observe=lambda v, a: observed.update({v.name: a}))
    real_x = np.array([0.0, 0.25, -34.5, 7.5])  # -100 saturates at code -128; 7.4 / 0.25 = 29.6 -> 30
    np.testing.assert_array_equal(observed["total"], real_x + np.array([2.0, 4.0, 6.0, -16.0]))
    real_total = np.array([2.0, 4.0, -16.0, -8.0])  # steps of 2, half to even: 4.25 -> 4, -28.5 saturates at -16, -8.5 -> -8
    np.testing.assert_array_equal(found["out"], real_total * real_x)


def test_annotated_inputs_may_be_codes() -> None:
    graph = Graph("g", Level.ANNOTATED)
    x = graph.add_input("x", TensorType((2,), Q))
    graph.set_outputs([graph.add_node("Relu", [x], names=["y"]).output])
    np.testing.assert_array_equal(run(graph, {"x": np.array([14, 6], np.int8)})["y"], [1.0, 0.0])


def test_concat_of_several_scales_joins_reals() -> None:
    graph = Graph("g", Level.ANNOTATED)
    a, b = graph.add_input("a", TensorType((2,), Q)), graph.add_input("b", TensorType((2,), COARSE))
    node = graph.add_node("Concat", [a, b], ConcatAttrs(0), names=["y"])
    graph.set_outputs([node.output])
    assert node.output.type == TensorType((4,), F32)
    verify(graph)
    found = run(graph, {"a": np.array([11, 12], np.int8), "b": np.array([1, -1], np.int8)})["y"]
    np.testing.assert_array_equal(found, [0.25, 0.5, 2.0, -2.0])


def simple(type_: TensorType, level: Level = Level.FLOAT) -> Graph:
    graph = Graph("g", level)
    graph.set_outputs([graph.add_input("x", type_)])
    return graph


N = Dim("n", 2, 4)


@pytest.mark.parametrize(
    ("type_", "array", "message"),
    [
        (TensorType((2, 3), F32), np.zeros((2, 4), np.float32), r"input 'x': shape \[2, 4\] given, expected \[2, 3\]"),
        (TensorType((2, 3), F32), np.zeros(6, np.float32), r"shape \[6\] given"),
        (TensorType((N,), F32), np.zeros(1, np.float32), r"expected \[n\(2..4\)\]"),
        (TensorType((N,), F32), np.zeros(5, np.float32), r"expected \[n\(2..4\)\]"),
        (TensorType((N, N), F32), np.zeros((2, 3), np.float32), "dimension n is 3, another input has 2"),
        (TensorType((1,), F32), np.array([np.nan], np.float32), "holds NaN or infinity"),
        (TensorType((1,), F32), np.array([-np.inf], np.float32), "holds NaN or infinity"),
        (TensorType((1,), F32), np.zeros(1), "dtype float64 given, expected float32"),
        (TensorType((1,), I64), np.zeros(1, np.int32), "dtype int32 given, expected int64"),
    ],
)
def test_boundary_refuses(type_: TensorType, array: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(simple(type_), {"x": array})


def test_boundary_of_codes() -> None:
    graph = simple(TensorType((2,), COARSE), Level.INTEGER)
    assert run(graph, {"x": np.array([-8, 7], np.int8)})["x"].tolist() == [-8, 7]
    assert run(graph, {"x": np.array([3.0, 1e9], np.float32)})["x"].tolist() == [2, 7]
    with pytest.raises(UsageError, match=r"codes -8..8 given, i4 holds -8..7"):
        run(graph, {"x": np.array([-8, 8], np.int8)})
    with pytest.raises(UsageError, match="dtype uint8 given, expected int8 or float32"):
        run(graph, {"x": np.array([1, 2], np.uint8)})
    np.testing.assert_array_equal(to_real(graph.inputs[0], np.array([-8, 7], np.int8)), [-16.0, 14.0])


@pytest.mark.parametrize(
    "inputs", [{}, {"x": np.zeros(1, np.float32), "y": np.zeros(1, np.float32)}, {"z": np.zeros(1, np.float32)}]
)
def test_input_names(inputs: dict[str, npt.NDArray[Any]]) -> None:
    with pytest.raises(UsageError, match=r"expects \['x'\]"):
        run(simple(TensorType((1,), F32)), inputs)


def test_extra_outputs_survive_and_come_after_the_graphs_own() -> None:
    graph = Graph("g")
    x = graph.add_input("x", TensorType((2,), F32))
    y = graph.add_node("Neg", [x], names=["y"]).output
    graph.set_outputs([graph.add_node("Abs", [y], names=["z"]).output])
    found = run(graph, {"x": np.array([1, -2], np.float32)}, extra_outputs=("y", "x"))
    assert {name: a.tolist() for name, a in found.items()} == {"z": [1, 2], "y": [-1, 2], "x": [1, -2]}
    assert list(found) == ["z", "y", "x"]


def test_unknown_extra_outputs() -> None:
    with pytest.raises(UsageError, match="'nope'"):
        run(simple(TensorType((1,), F32)), {"x": np.zeros(1, np.float32)}, extra_outputs=("nope",))


def test_evaluate_moves_codes_and_computes_on_reals() -> None:
    graph = Graph("g", Level.ANNOTATED)
    exact = Quant(Int(32), (1e-3,))
    big = graph.add_constant("big", np.array([[2**31 - 1, -(2**31)]], np.int32), TensorType((1, 2), exact))
    moved = graph.add_node("Transpose", [big], TransposeAttrs((1, 0)))
    assert evaluate(moved, Level.ANNOTATED)[0].tolist() == [[2**31 - 1], [-(2**31)]]
    c = graph.add_constant("c", np.array([14, 2], np.int8), TensorType((2,), Q))
    (relu,) = evaluate(graph.add_node("Relu", [c]), Level.ANNOTATED)
    np.testing.assert_array_equal(relu, np.array([1.0, 0.0], np.float32))
    typed = graph.add_node("Relu", [c], types=[TensorType((2,), COARSE)])
    (codes,) = evaluate(typed, Level.ANNOTATED)
    assert codes.dtype == np.int8
    assert codes.tolist() == [0, 0]  # 1.0 / 2.0 is a tie, half to even
    d = graph.add_constant("d", np.array([1], np.int8), TensorType((1,), COARSE))
    (joined,) = evaluate(graph.add_node("Concat", [c, d], ConcatAttrs(0)), Level.ANNOTATED)
    np.testing.assert_array_equal(joined, np.array([1.0, -2.0, 2.0], np.float32))


def test_integer_padding_is_the_code_of_its_real_value() -> None:
    graph = Graph("g", Level.INTEGER)
    x = graph.add_input("x", TensorType((1,), Q))
    outs = [graph.add_node("Pad", [x], PadAttrs((1,), (0,), value), names=[f"p{value}"]).output for value in (0.0, 0.3, 1e6)]
    graph.set_outputs(outs)
    found = run(graph, {"x": np.array([77], np.int8)})
    assert [a.tolist() for a in found.values()] == [[10, 77], [11, 77], [127, 77]]


def test_boundary_codes_of_plain_values_pass() -> None:
    value = simple(TensorType((2,), F32)).inputs[0]
    array = np.array([1, 2], np.float32)
    assert boundary_codes(value, array) is array
