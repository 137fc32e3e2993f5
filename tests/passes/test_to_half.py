"""Half precision: what becomes float16, what stays, what the interpreter makes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bevel.errors import UsageError
from bevel.ir.graph import Graph, Level
from bevel.ir.interp import run
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.ops.movement import ConcatAttrs, ReshapeAttrs
from bevel.ir.ops.normalize import AxisAttrs
from bevel.ir.text import print_graph
from bevel.ir.types import F16, F32, TensorType
from bevel.ir.verify import verify
from bevel.passes.to_half import ToHalf


def network(scale: float = 1.0) -> Graph:
    """A convolution with a skip connection, a concatenation with a constant, and an output that is also read."""
    rng = np.random.default_rng(0)
    graph = Graph("half")
    x = graph.add_input("x", TensorType((1, 8, 6, 6), F32))
    w = graph.add_constant("w", (rng.standard_normal((8, 8, 3, 3)) * scale).astype(np.float32))
    b = graph.add_constant("b", rng.standard_normal(8).astype(np.float32))
    attrs = ConvAttrs(kernel=(3, 3), pads=(1, 1, 1, 1))
    y = graph.add_node("Conv", [x, w, b], attrs, names=["y"]).output
    z = graph.add_node("Add", [y, x], names=["z"]).output
    border = graph.add_constant("border", np.full((1, 8, 6, 1), 0.7, np.float32))
    joined = graph.add_node("Concat", [z, border], ConcatAttrs(axis=3), names=["joined"]).output
    flat = graph.add_node("Reshape", [joined], ReshapeAttrs((1, 336)), names=["flat"]).output
    scores = graph.add_node("Softmax", [flat], AxisAttrs(axis=1), names=["scores"]).output
    graph.set_outputs([scores, z])
    verify(graph)
    return graph


def test_values_and_weights_are_halves_inside(golden: Callable[[str, str], None]) -> None:
    half = ToHalf().run(network())
    verify(half)
    golden("to-half-skip_connection", print_graph(half))
    assert {v.type.elem for v in (*half.inputs, *half.outputs)} == {F32}
    assert [v.name for v in half.outputs] == ["scores", "z"]
    assert half.value("y").type.elem == F16
    inside = {v.name: v.type.elem for v in half.constants}
    assert inside == {"w.half": F16, "b": F32, "border.half": F16}


def test_the_interpreter_rounds_what_is_stored() -> None:
    graph = network()
    half = ToHalf().run(graph)
    x = np.random.default_rng(1).standard_normal((1, 8, 6, 6)).astype(np.float32)
    found, exact = run(half, {"x": x}, extra_outputs=("y",)), run(graph, {"x": x})
    assert np.array_equal(found["y"], found["y"].astype(np.float16).astype(np.float32))
    for name, want in exact.items():
        assert found[name].dtype == np.float32
        error = np.abs(found[name] - want).max() / np.abs(want).max()
        assert 0 < error < 5e-3, name


def test_what_half_precision_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match=r"layer 'y': weights reach .*65504: compile with fp32"):
        ToHalf().run(network(1e5))
    quantized = network()
    quantized.level = Level.ANNOTATED
    with pytest.raises(UsageError, match="annotated level, expected float"):
        ToHalf().run(quantized)
