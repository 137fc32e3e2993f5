"""Extrema, channel slopes and functions with attributes in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bevel.ir.graph import Graph
from bevel.ir.interp import run, to_real
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.functions import LeakyReluAttrs, PowerAttrs
from bevel.ir.types import F32, TensorType
from bevel.ir.verify import is_integer_only
from bevel.passes.quantize import ToInteger
from bevel.passes.quantize.calibrate import Calibrate
from tests.passes.quantize.annotated import Annotated, assert_close, lower, ops, q8


@pytest.mark.parametrize("op", ["Min", "Max"])
def test_extremum_of_one_type_is_itself(op: str) -> None:
    a = Annotated()
    x, y = a.input("x", (2, 3, 8, 8), q8(0.05, 7)), a.input("y", (3, 1, 8), q8(0.05, 7))
    integer = assert_close(a.done(a.node(op, [x, y], q8(0.05, 7), name="m")), equal=1.0)
    assert ops(integer) == [op]


@pytest.mark.parametrize("op", ["Min", "Max"])
def test_extremum_of_other_types_rescales_each_operand_once(op: str) -> None:
    a = Annotated()
    x, y = a.input("x", (4, 64), q8(0.05, 7)), a.input("y", (4, 64), q8(0.031, -100))
    integer = assert_close(a.done(a.node(op, [x, y], q8(0.0617, -9), name="m")), equal=0.99)
    assert ops(integer) == ["Lut", "Lut", op]


def test_clamp_behind_an_extremum_narrows_its_operands() -> None:
    a = Annotated()
    x, y = a.input("x", (4, 64), q8(0.05, 0)), a.input("y", (4, 64), q8(0.05, 0))
    m = a.node("Max", [x, y], None, name="m")
    graph = a.done(a.node("Clip", [m], q8(0.05, 0), ClipAttrs(-1.0, 2.0), "c"))
    assert ops(assert_close(graph, equal=1.0)) == ["Lut", "Lut", "Max"]


def calibrated(op: str, attrs: Any, constant: np.ndarray[Any, Any] | None, shape: tuple[int, ...]) -> tuple[Graph, Graph, Any]:
    """A graph of one node, its integer form, and the data it was calibrated on."""
    graph = Graph("g")
    x = graph.add_input("x", TensorType(shape, F32))
    operands = [x] if constant is None else [x, graph.add_constant("c", constant)]
    graph.set_outputs(graph.add_node(op, operands, attrs, names=["y"]).outputs)
    data = {"x": np.random.default_rng(3).normal(0, 2, shape).astype(np.float32)}
    return graph, ToInteger().run(Calibrate(data=[data], bias_correction=False).run(graph)), data


@pytest.mark.parametrize(
    ("op", "attrs", "constant", "kinds"),
    [
        ("LeakyRelu", LeakyReluAttrs(0.1), None, ["Lut"]),
        ("Power", PowerAttrs(3.0), None, ["Lut"]),
        ("Mish", None, None, ["Lut"]),
        ("PRelu", None, np.array([[[0.25]], [[-0.5]], [[3.0]]], np.float32), ["ChannelLut"]),
        ("Max", None, np.array([[[0.5]], [[-0.5]], [[1.5]]], np.float32), ["Lut", "Max"]),
    ],
)
def test_calibrated_functions_compute_in_integers(op: str, attrs: Any, constant: Any, kinds: list[str]) -> None:
    graph, integer, data = calibrated(op, attrs, constant, (2, 3, 8, 8))
    assert is_integer_only(integer)
    assert ops(integer) == kinds
    expected = run(graph, data)["y"]
    found = to_real(integer.value("y"), run(integer, data)["y"])
    step = integer.value("y").type.elem.scale[0]  # type: ignore[union-attr]
    # Half a step of the result's rounding, and what half a step of the operand's grows to.
    assert np.abs(found - expected).max() <= (0.51 + 0.51 * max(3.0, 3 * 8.0**2 if op == "Power" else 0)) * max(step, 8 / 255)


def test_slopes_keep_their_precision() -> None:
    """Quantizing slopes of such different size to 8 bits together would lose the small one."""
    slopes = np.array([[[1e-3]], [[40.0]]], np.float32)
    _, integer, _ = calibrated("PRelu", None, slopes, (1, 2, 16, 16))
    (node,) = integer.nodes
    assert node.inputs[1].array.shape == (2, 256)
    assert len(np.unique(node.inputs[1].array[1])) > 64


def test_comparisons_are_float_islands() -> None:
    a = Annotated()
    x, y = a.input("x", (4,), q8(0.05, 7)), a.input("y", (4,), q8(0.031, -100))
    integer = lower(a.done(a.graph.add_node("Less", [x, y], names=["l"]).output))
    assert ops(integer) == ["Dequantize", "Dequantize", "Less"]
    found = run(integer, {"x": np.array([7, 8, -128, 127], np.int8), "y": np.full(4, -100, np.int8)})["l"]
    assert found.tolist() == [False, False, True, False]
