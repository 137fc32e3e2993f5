"""Small annotated graphs and the comparison every lowering must pass: INTEGER codes against the ANNOTATED interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.graph import Graph, Level, Value
from bevel.ir.interp import run
from bevel.ir.types import I8, Quant, Shape, TensorType
from bevel.ir.verify import verify
from bevel.passes.quantize import ToInteger

Array = npt.NDArray[Any]


def q8(scale: float, zero_point: int = 0) -> Quant:
    return Quant(I8, (float(np.float32(scale)),), (zero_point,))


class Annotated:
    """Builds an ANNOTATED graph; a result of type None stays float32."""

    def __init__(self, seed: int = 0) -> None:
        self.graph = Graph("test", Level.ANNOTATED)
        self.rng = np.random.default_rng(seed)

    def input(self, name: str, shape: Shape, elem: Quant) -> Value:
        return self.graph.add_input(name, TensorType(shape, elem))

    def node(self, op: str, inputs: list[Value], out: Quant | None, attrs: Any = None, name: str = "") -> Value:
        node = self.graph.add_node(op, inputs, attrs, names=[name or op.lower()], loc=name or op)
        if out is not None:
            node.output.type = node.output.type.with_elem(out)
        return node.output

    def weights(self, shape: tuple[int, ...], scales: Array, codes: Array | None = None) -> Value:
        data = self.rng.integers(-127, 128, shape).astype(np.int8) if codes is None else codes
        elem = Quant(I8, tuple(float(np.float32(s)) for s in scales), (0,), axis=0)
        return self.graph.add_constant("w", data, TensorType(shape, elem))

    def bias(self, values: Array) -> Value:
        return self.graph.add_constant("b", np.asarray(values, np.float32))

    def done(self, *outputs: Value) -> Graph:
        self.graph.set_outputs(outputs)
        verify(self.graph)
        return self.graph


def lower(graph: Graph) -> Graph:
    result = ToInteger().run(graph)
    verify(result)
    return result


def random_inputs(graph: Graph, seed: int = 1) -> dict[str, Array]:
    """All codes of every input, extremes included."""
    rng = np.random.default_rng(seed)
    return {v.name: rng.integers(-128, 128, v.type.static_shape).astype(np.int8) for v in graph.inputs}


def assert_close(graph: Graph, inputs: dict[str, Array] | None = None, *, equal: float = 0.97) -> Graph:
    """Lower, run both, and require every code within 1 and at least `equal` of them identical."""
    integer = lower(graph)
    feed = random_inputs(graph) if inputs is None else inputs
    expected, found = run(graph, feed), run(integer, feed)
    for value in graph.outputs:
        elem = value.type.elem
        assert isinstance(elem, Quant)
        distance = np.abs(elem.quantize(expected[value.name]).astype(int) - found[value.name])
        assert distance.max() <= 1, f"{value.name}: {distance.max()} codes apart"
        assert (distance == 0).mean() >= equal, f"{value.name}: {(distance == 0).mean():.4f} equal"
        assert len(np.unique(found[value.name])) > 1, f"{value.name} is constant: the comparison would prove nothing"
    return integer


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]
